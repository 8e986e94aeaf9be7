"""Which shapes are worth a CUDA graph."""

from __future__ import annotations

from collections.abc import Hashable


class Captures:
    """Choose the shapes that get a CUDA graph: the first ``most`` that come a second time.

    A graph is for one shape alone, costs time and memory to make, and saves some at every later run; a shape that comes
    once isn't worth it. None is ever dropped for another, so that shapes in turn never make graphs over and over.
    Not for several threads at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[Hashable] = set()
        self._chosen: set[Hashable] = set()

    def choose(self, shapes: Hashable) -> bool:
        """Tell whether these shapes shall run as a CUDA graph, from now on."""
        if shapes in self._chosen:
            return True
        if len(self._chosen) >= self._most:
            return False
        if shapes not in self._seen:
            self._seen.add(shapes)
            return False
        self._chosen.add(shapes)
        if len(self._chosen) >= self._most:
            self._seen.clear()  # nothing is chosen any more
        return True

    def stop(self) -> None:
        """Choose none any more: they can't be captured."""
        self._most = 0
        self._seen.clear()
        self._chosen.clear()
