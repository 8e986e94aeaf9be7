"""What is timed in turns under load: one stream, batches with all queries at hand, and threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_bench.load.contender import AnswerAll, Contender
from dra_bench.load.queries import LoadQuery
from dra_bench.timing import Cell, Timings

PARTS = {"id": "query_by_id", "new": "query"}  #: what `dra-bench latency` calls the same queries
Queries = Mapping[str, Sequence[LoadQuery]]  #: by how their references are given


@dataclass(frozen=True)
class Turn:
    """One row to time: ``queries`` are answered in each call, and what else tells the row from others."""

    cell: Cell
    queries: int
    key: Mapping[str, Any]


def single_stream_turns(contenders: Sequence[Contender], queries: Queries, stack: ExitStack) -> list[Turn]:
    """List each contender with one query a call, the next one as soon as the last is answered."""
    return [
        turn(contender.backend, reference, asked, 1, 1, stack.enter_context(contender.batches(1)))
        for contender in contenders
        if contender.batches is not None
        for reference, asked in queries.items()
    ]


def offline_turns(
    contenders: Sequence[Contender], queries: Queries, batches: Sequence[int], stack: ExitStack
) -> list[Turn]:
    """List each contender with each batch size; every call answers as many queries as the largest batch has."""
    return [
        turn(contender.backend, reference, asked, max(batches), batch, stack.enter_context(contender.batches(batch)))
        for contender in contenders
        if contender.batches is not None
        for reference, asked in queries.items()
        for batch in batches
    ]


def turn(backend: str, reference: str, queries: Sequence[LoadQuery], count: int, batch: int, run: AnswerAll) -> Turn:
    """Make a row whose calls answer the next ``count`` of ``queries`` in turn."""
    turning = itertools.cycle(queries)

    def call() -> object:
        return run([next(turning) for _ in range(count)])

    cell = Cell(backend, PARTS[reference], batch, None, call)
    return Turn(cell, count, {"backend": backend, "reference": reference, "batch": batch})


def callers(answer: Callable[[LoadQuery], object], count: int, stack: ExitStack) -> AnswerAll:
    """Return a function that answers queries from ``count`` threads at a time."""
    threads = stack.enter_context(ThreadPoolExecutor(count, "load-caller"))
    return lambda queries: list(threads.map(answer, queries))


def thread_counts(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4 and so on below ``most``, and ``most``."""
    return (*itertools.takewhile(lambda count: count < most, (2**power for power in range(11))), most)


def rate_rows(turns: Sequence[Turn], timings: Timings) -> list[dict[str, Any]]:
    """Return queries a second of each row: of its median call, and of the quartiles as ``low`` and ``high``."""
    return [
        {**one.key, **_rates(one.queries, samples), "samples": len(samples), "queries_a_sample": one.queries}
        for one, samples in zip(turns, timings.samples_ns.T, strict=True)
    ]


def latency_rows(turns: Sequence[Turn], timings: Timings) -> list[dict[str, Any]]:
    """Return the percentiles of one query a call, interpolated linearly, and the distance of the quartiles."""
    rows = []
    for one, samples in zip(turns, timings.samples_ns.T, strict=True):
        p25, p50, p75, p90, p95, p99 = np.percentile(samples / 1e6, [25, 50, 75, 90, 95, 99])
        found = {"p50_ms": p50, "p90_ms": p90, "p95_ms": p95, "p99_ms": p99, "iqr_ms": p75 - p25}
        key = {name: one.key[name] for name in ("backend", "reference")}
        rows.append({**key, **{k: round(float(v), 4) for k, v in found.items()}, "samples": len(samples)})
    return rows


def raw_rows(turns: Sequence[Turn], timings: Timings) -> list[dict[str, Any]]:
    """Return every call in milliseconds; the n-th samples of all rows are of one round."""
    return [
        {**one.key, "ms": (samples / 1e6).round(4).tolist()}
        for one, samples in zip(turns, timings.samples_ns.T, strict=True)
    ]


def _rates(queries: int, samples: NDArray[np.int64]) -> dict[str, float]:
    low, median, high = (round(1e9 * queries / float(np.percentile(samples, share)), 2) for share in (75, 50, 25))
    return {"queries_per_second": median, "low": low, "high": high}
