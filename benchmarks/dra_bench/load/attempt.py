"""One attempt of the server shape: queries arrive at random at a given rate, whoever is still busy.

Arrivals are a Poisson process (MLPerf Inference, Reddi et al. 2020, arXiv 1911.02549). A latency counts from the moment
at which the query was scheduled to arrive, not from the one at which somebody took it: a server that stalls is charged
for all that queue up meanwhile. (Counting from the taking leaves them out, "coordinated omission".)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dra_bench.timing import Sleep

PERCENTILE = 0.99  #: the share of queries that must be answered within the limit
LEAD_SECONDS = 0.01  #: from the start of an attempt to the beginning of its schedule
POLL_SECONDS = 0.0005  #: between looks at the queries that are left; their times don't depend on it

Seconds = Callable[[], float]  #: since some start


class Service(Protocol):
    """Who answers queries that come at any time."""

    def submit(self, number: int) -> Future[Any]:
        """Take the query of this number and return at once; its answer, or its error, comes in the future."""

    def settled(self) -> bool:
        """Whether nothing of the queries taken so far is being worked on, cancelled ones included."""


@dataclass(frozen=True)
class Attempt:
    """What came of one rate."""

    rate: float  #: queries a second that arrived, in the mean
    planned: int  #: queries
    latencies: NDArray[np.float64]  #: seconds from arrival to answer; of an unanswered query, its age at the end
    handed_late: float  #: seconds, the 99th percentile: how long after its arrival a query reached the contender
    held: bool  #: whether p99 of all planned queries is within the limit
    ended_early: bool  #: whether it was lost before all queries had arrived and been answered

    def milliseconds(self, share: float) -> float:
        """Return a percentile of the latencies in milliseconds, by nearest rank."""
        return float(np.sort(self.latencies)[nearest_rank(share, len(self.latencies)) - 1]) * 1e3


def poisson_arrivals(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Return the seconds (count,) at which queries arrive: exponential gaps, scaled to ``rate`` in the mean.

    Scaled gaps are a Poisson process of which is known how many queries it had (order statistics, Ross, Stochastic
    Processes, theorem 2.3.1). Without that an attempt of 100 queries would miss its rate by 10 % every third time. The
    same seed gives the same pattern at every rate, so all contenders meet the same bursts.
    """
    gaps = np.random.default_rng(seed).exponential(size=count + 1)
    arrivals: NDArray[np.float64] = np.cumsum(gaps)[:-1] / gaps.sum() * count / rate
    return arrivals


def nearest_rank(share: float, count: int) -> int:
    """Return which of ``count`` sorted values, counted from 1, is the percentile: ``share`` are at most as large."""
    return max(1, math.ceil(round(share * count, 9)))


def attempt(
    service: Service, rate: float, count: int, limit: float, clock: Seconds, sleep: Sleep, seed: int = 0
) -> Attempt:
    """Let ``count`` queries arrive at ``rate`` a second, and see whether 99 % of them are answered within ``limit``.

    It ends early as soon as it is lost for certain: when more queries than the percentile allows were late, or have
    waited for longer than the limit. So a queue that only grows costs little time, and ending changes no verdict.

    Parameters
    ----------
    service
        Who answers. It is idle again when this returns, also where it raises.
    limit
        Seconds.
    clock, sleep
        Seconds since some start, and a pause; tests bring their own.

    Returns
    -------
    Attempt
        An error of a query is raised again.
    """
    ledger = _Ledger(clock() + LEAD_SECONDS + poisson_arrivals(rate, count, seed), limit)
    futures: list[Future[Any]] = []
    handed = np.full(count, np.nan)
    try:
        for number, moment in enumerate(ledger.due):
            while (left := moment - clock()) > 0:
                sleep(left)
            if ledger.errors or ledger.lost(clock()):
                break
            handed[number] = clock()
            future = service.submit(number)
            futures.append(future)
            future.add_done_callback(ledger.answered(number, clock))
        while not (ledger.errors or ledger.lost(clock()) or ledger.all_answered(len(futures))):
            sleep(POLL_SECONDS)
        now, finished = clock(), ledger.finished.copy()
    finally:
        for future in futures:
            future.cancel()
        while not (all(future.done() for future in futures) and service.settled()):
            sleep(POLL_SECONDS)
    if ledger.errors:
        raise ledger.errors[0]
    arrived = max(len(futures), int(np.searchsorted(ledger.due, now)))  # some may not even have been handed over
    latencies = _ages(ledger.due, finished, now, arrived)
    late = int((latencies > limit).sum()) > ledger.allowed
    complete = len(futures) == count and not any(future.cancelled() for future in futures)
    handed_late = float(np.percentile(_ages(ledger.due, handed, now, arrived), 100 * PERCENTILE))
    return Attempt(rate, count, latencies, handed_late, held=complete and not late, ended_early=not complete)


class _Ledger:
    """Who came when, and who was answered when."""

    def __init__(self, due: NDArray[np.float64], limit: float) -> None:
        self.due = due
        self.limit = limit
        self.allowed = len(due) - nearest_rank(PERCENTILE, len(due))  #: queries that may be late
        self.finished = np.full(len(due), np.nan)
        self.errors: list[BaseException] = []
        self._late: list[int] = []  # answered too late
        self._oldest = 0  # all before it are answered

    def answered(self, number: int, clock: Seconds) -> Callable[[Future[Any]], None]:
        """Return what a future calls when it is done, in whatever thread."""

        def note(future: Future[Any]) -> None:
            if future.cancelled():
                return
            now = clock()
            if (error := future.exception()) is not None:
                self.errors.append(error)  # first: an attempt is over once all are answered
            self.finished[number] = now  # before what follows, or `lost` would count it twice
            if now - self.due[number] > self.limit:
                self._late.append(number)

        return note

    def lost(self, now: float) -> bool:
        """Whether more queries than allowed were late, or have waited for longer than the limit."""
        overdue = int(np.searchsorted(self.due, now - self.limit))
        while self._oldest < overdue and not np.isnan(self.finished[self._oldest]):
            self._oldest += 1
        waiting = np.isnan(self.finished[self._oldest : overdue]).sum() if overdue > self._oldest else 0
        return len(self._late) + int(waiting) > self.allowed

    def all_answered(self, count: int) -> bool:
        """Whether the first ``count`` queries are answered."""
        return not np.isnan(self.finished[:count]).any()


def _ages(due: NDArray[np.float64], done: NDArray[np.float64], now: float, count: int) -> NDArray[np.float64]:
    """Return the seconds from arrival until something was done, or until now, of the first ``count`` queries."""
    ages: NDArray[np.float64] = np.where(np.isnan(done[:count]), now, done[:count]) - due[:count]
    return ages
