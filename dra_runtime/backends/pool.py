"""A fixed number of things that many threads share, each used by one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from dra_runtime.errors import BackendError

Item = TypeVar("Item")


class Pool(Generic[Item]):
    """Items that are lent; who finds none waits. The one given back last is lent first: it is warm.

    ``release`` gets each item once when the pool is closed, those that are lent as soon as they come back.
    """

    def __init__(self, items: Sequence[Item], release: Callable[[Item], None]) -> None:
        self._free = list(items)
        self._release = release
        self._closed = False
        self._changed = threading.Condition()

    @contextmanager
    def take(self) -> Iterator[Item]:
        """Lend an item for the length of a ``with`` block, whatever happens in it.

        Raises
        ------
        BackendError
            The pool was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if not self._free:
                raise BackendError("the session was closed; open the bundle again")
            item = self._free.pop()
        try:
            yield item
        finally:
            with self._changed:
                closed = self._closed
                if not closed:
                    self._free.append(item)
                    self._changed.notify()
            if closed:
                self._release(item)

    def close(self) -> None:
        """Release what isn't lent, and refuse all that wait and come."""
        with self._changed:
            self._closed = True
            idle, self._free = self._free, []
            self._changed.notify_all()
        for item in idle:
            self._release(item)
