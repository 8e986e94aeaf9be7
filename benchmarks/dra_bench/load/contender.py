"""What a contender under load is, and a pool of callers that makes a service of any function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from dra_bench.load.queries import LoadQuery

Answer = Callable[[LoadQuery], object]  #: answers one query
AnswerAll = Callable[[Sequence[LoadQuery]], object]  #: answers queries that are all at hand


class QueryService(Protocol):
    """Who answers queries that come at any time."""

    def submit(self, query: LoadQuery) -> Future[Any]:
        """Take a query and return at once."""

    def settled(self) -> bool:
        """Whether nothing of the queries taken so far is being worked on, cancelled ones included."""


@dataclass(frozen=True)
class Contender:
    """One way to answer whole queries. What it opens is open within the ``with`` block, and its threads end with it."""

    backend: str  #: what tables call it
    about: str
    precision: str
    serve: Callable[[], AbstractContextManager[QueryService]]
    batches: Callable[[int], AbstractContextManager[AnswerAll]] | None
    """Takes the batch size. None where nothing but the service differs from another contender."""


@dataclass(frozen=True)
class Pool:
    """Callers in threads, each with one query at a time; queries wait for a free one."""

    answer: Answer
    threads: ThreadPoolExecutor

    def submit(self, query: LoadQuery) -> Future[Any]:
        """Take a query and return at once."""
        return self.threads.submit(self.answer, query)

    def settled(self) -> bool:
        """Return True: a future of the pool is done no sooner than the work."""
        return True


@contextmanager
def pool(answer: Answer, callers: int) -> Iterator[Pool]:
    """Open a pool of ``callers`` threads, each of which calls ``answer``."""
    with ThreadPoolExecutor(callers, "load-caller") as threads:
        try:
            yield Pool(answer, threads)
        finally:
            threads.shutdown(cancel_futures=True)
