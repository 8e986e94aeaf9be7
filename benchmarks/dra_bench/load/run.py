"""The four shapes, one after the other, each with its part of the time; contenders take turns in each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from dra_bench.load.attempt import Attempt, Seconds, attempt
from dra_bench.load.contender import Contender, QueryService
from dra_bench.load.queries import LoadQuery
from dra_bench.load.rates import USUAL_ATTEMPTS, attempt_queries, bracket, search_rates
from dra_bench.load.turns import Queries, Turn
from dra_bench.timing import Sleep, Timings, measure

Key = tuple[str, str]  #: contender and how references are given
Advance = Callable[[int, int], None]

SHARES = {"single_stream": 0.15, "offline": 0.2, "server": 0.5, "threads": 0.15}  #: of the time
MOST_SAMPLES = 1000
LEAST_SAMPLES = 5  #: of a row with several queries a call
LIMIT_TIMES = 3.0  #: the slowest contender's p50 alone, times this, is the latency limit where none is given
PATIENCE = 1.5  #: times its share that the server may take before its searches end early
FIRST_SHARE = 0.5  #: of the rate with all queries at hand: where the search begins


@dataclass(frozen=True)
class Numbered:
    """A service that is asked by number: the queries in turn."""

    service: QueryService
    queries: Sequence[LoadQuery]

    def submit(self, number: int) -> Future[Any]:
        """Take the query of this number."""
        return self.service.submit(self.queries[number % len(self.queries)])

    def settled(self) -> bool:
        """Whether nothing is being worked on."""
        return self.service.settled()


def timed(turns: Sequence[Turn], seconds: float, advance: Advance, alone_ns: Mapping[Key, float] | None) -> Timings:
    """Time rows in turns.

    Parameters
    ----------
    seconds
        Budget. One query a call gets from 11 to 1,000 samples; several get at least 5.
    alone_ns
        What one query takes by contender and reference, to plan with; None for one query a call.
    """
    samples = None
    if alone_ns is not None:
        a_round = sum(one.queries * alone_ns[one.key["backend"], one.key["reference"]] for one in turns) / 1e9
        samples = int(min(max(0.75 * seconds / a_round, LEAST_SAMPLES), MOST_SAMPLES))
    return measure([one.cell for one in turns], samples, seconds, most_samples=MOST_SAMPLES, advance=advance)


def default_limits(single_stream: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the latency limit in milliseconds for each reference: three times the slowest contender's p50 alone."""
    slowest: dict[str, float] = {}
    for row in single_stream:
        slowest[row["reference"]] = max(slowest.get(row["reference"], 0.0), row["p50_ms"])
    return {reference: round(LIMIT_TIMES * p50, 1) for reference, p50 in slowest.items()}


def first_rates(
    contenders: Sequence[Contender], references: Sequence[str], offline: Sequence[Mapping[str, Any]]
) -> dict[Key, float]:
    """Return where each search begins: half of the contender's best rate offline, or of the slowest best one's."""
    best: dict[Key, float] = {}
    for row in offline:
        key = (row["backend"], row["reference"])
        best[key] = max(best.get(key, 0.0), row["queries_per_second"])
    slowest = {reference: min(rate for key, rate in best.items() if key[1] == reference) for reference in references}
    keys = [(contender.backend, reference) for reference in references for contender in contenders]
    return {key: FIRST_SHARE * best.get(key, slowest[key[1]]) for key in keys}


def serve(
    contenders: Sequence[Contender],
    queries: Queries,
    first: Mapping[Key, float],
    limits: Mapping[str, float],
    seconds: float,
    advance: Advance,
    clock: Seconds = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> dict[Key, list[Attempt]]:
    """Search the highest rate of each contender that holds p99 within ``limits`` (milliseconds by reference)."""
    an_attempt = seconds / (len(first) * USUAL_ATTEMPTS)
    with ExitStack() as stack:
        services = {contender.backend: stack.enter_context(contender.serve()) for contender in contenders}

        def try_rate(key: Key, rate: float) -> Attempt:
            backend, reference = key
            asked = Numbered(services[backend], queries[reference])
            limit = limits[reference] / 1e3
            return attempt(asked, rate, attempt_queries(rate, an_attempt, limit), limit, clock, sleep)

        latest = clock() + seconds * PATIENCE
        return search_rates(first, try_rate, advance, lambda: clock() > latest)


def server_rows(found: Mapping[Key, Sequence[Attempt]], limits: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the highest rate that held of each contender, the lowest that failed, and every attempt."""
    rows = []
    for (backend, reference), attempts in found.items():
        held, failed = bracket([(one.rate, one.held) for one in attempts])
        best = next((one for one in attempts if one.held and one.rate == held), None)
        rows.append(
            {
                "backend": backend,
                "reference": reference,
                "limit_ms": limits[reference],
                "queries_per_second": round(held, 2),
                "failed_at": None if failed is None else round(failed, 2),
                "p99_ms": None if best is None else round(best.milliseconds(0.99), 4),
                "samples": 0 if best is None else best.planned,
                "attempts": [_attempt_row(one) for one in attempts],
            }
        )
    return rows


def _attempt_row(one: Attempt) -> dict[str, Any]:
    return {
        "queries_per_second": round(one.rate, 2),
        "p50_ms": round(one.milliseconds(0.5), 4) if len(one.latencies) else None,
        "p99_ms": round(one.milliseconds(0.99), 4) if len(one.latencies) else None,
        "queries": len(one.latencies),
        "planned": one.planned,
        "held": one.held,
        "ended_early": one.ended_early,
        "handed_late_p99_ms": round(1e3 * one.handed_late, 4),
    }
