"""Time calls so that they can be compared: interleaved in one run, warmed up, the garbage collector off.

All cells take turns: every round runs each of them once, in an order that is drawn anew, so that a machine that
grows slower, or a neighbour that leaves its weights in the cache, meets all of them alike.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WINDOW = 3  #: rounds on each side of the comparison that decides whether a cell is warm
STILL_FASTER = 0.95  #: a cell whose newer window is below this share of its older one is still warming up
LEAST_WARMUP = WINDOW  #: rounds even where the budget is gone; to be called steady takes twice as many
MOST_WARMUP = 30
WARMUP_SHARE = 0.25  #: of the time budget
LEAST_SAMPLES = 11  #: below that a p90 says nothing
SETTLE_SECONDS = 0.002  #: between calls: the worker threads of the last backend stop spinning
RESAMPLES = 2000  #: bootstrap resamples behind the interval of a ratio

Clock = Callable[[], int]
Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Cell:
    """One thing to time: what one backend does for one part of a query."""

    backend: str
    part: str
    batch: int
    text_tokens: int | None  #: length of the token rows that the backend works on; None where there is no text
    run: Callable[[], object] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Timings:
    """What was measured: ``samples_ns`` (rounds, cells), one row a round, so that cells compare round by round."""

    cells: tuple[Cell, ...]
    samples_ns: NDArray[np.int64]
    warmup_rounds: int
    steady: bool  #: whether every cell had stopped getting faster when the measured rounds began


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one cell is as another, with the interval that 95 % of the resamples fall into."""

    value: float
    low: float
    high: float


def measure(
    cells: Sequence[Cell],
    samples: int | None,
    seconds: float,
    *,
    most_samples: int = 100,
    advance: Callable[[int, int], None] = lambda done, planned: None,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
) -> Timings:
    """Warm all cells up, then time them in rounds.

    Parameters
    ----------
    cells
        What to time.
    samples
        Rounds to measure; None takes as many as fit into ``seconds``, from 11 to ``most_samples``.
    seconds
        Budget of the whole run; warming up takes at most a quarter of it, but at least three rounds.
    advance
        Called after each measured round with the rounds done and planned, for a progress bar.
    clock, sleep
        Nanoseconds since some start, and a pause in seconds; tests bring their own.

    Returns
    -------
    Timings
        Nanoseconds of every call.
    """
    order = random.Random(0)  # noqa: S311 - the same order in every run, nothing secret
    with _collector_off():
        start = clock()
        warmup: list[list[int]] = []
        while not is_steady(warmup):
            spent = (clock() - start) / 1e9
            if len(warmup) >= MOST_WARMUP or (len(warmup) >= LEAST_WARMUP and spent > seconds * WARMUP_SHARE):
                break
            warmup.append(_round(cells, order, clock, sleep))
        spent = (clock() - start) / 1e9
        planned = samples or planned_rounds(seconds - spent, spent / len(warmup), most_samples)
        rounds: list[list[int]] = []
        for _ in range(planned):
            rounds.append(_round(cells, order, clock, sleep))
            advance(len(rounds), planned)
    return Timings(tuple(cells), np.array(rounds, dtype=np.int64), len(warmup), is_steady(warmup))


def is_steady(rounds: Sequence[Sequence[int]]) -> bool:
    """Tell whether every cell has stopped getting faster at some point of ``rounds`` (one list of times a round)."""
    history = np.asarray(rounds, dtype=np.float64)
    if len(history) < 2 * WINDOW:
        return False
    windows = np.stack([np.median(history[i : i + WINDOW], axis=0) for i in range(len(history) - WINDOW + 1)])
    return bool((windows[WINDOW:] >= STILL_FASTER * windows[:-WINDOW]).any(axis=0).all())


def planned_rounds(seconds: float, round_seconds: float, most: int) -> int:
    """Return how many rounds fit into ``seconds``: at least 11, at most ``most``."""
    fitting = most if round_seconds <= 0 else int(min(max(seconds, 0) / round_seconds, most))
    return max(fitting, LEAST_SAMPLES)


def percentiles_ms(samples_ns: NDArray[np.int64]) -> dict[str, float]:
    """Return p50_ms, p90_ms and p99_ms of one cell's samples, interpolated linearly between them."""
    p50, p90, p99 = np.percentile(samples_ns / 1e6, [50, 90, 99])
    return {"p50_ms": round(float(p50), 4), "p90_ms": round(float(p90), 4), "p99_ms": round(float(p99), 4)}


def speedup(reference_ns: NDArray[np.int64], candidate_ns: NDArray[np.int64]) -> Ratio:
    """Return how many times as fast the candidate is: the ratio of the medians, reference over candidate.

    The interval is a percentile bootstrap over rounds (Efron 1979): both cells are resampled by the same rounds,
    because they were measured side by side.
    """
    draws = np.random.default_rng(0).integers(0, len(reference_ns), size=(RESAMPLES, len(reference_ns)))
    resampled = np.median(reference_ns[draws], axis=1) / np.median(candidate_ns[draws], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = np.median(reference_ns) / np.median(candidate_ns)
    return Ratio(round(float(value), 3), round(float(low), 3), round(float(high), 3))


def _round(cells: Sequence[Cell], order: random.Random, clock: Clock, sleep: Sleep) -> list[int]:
    """Run every cell once, in a fresh order; returns nanoseconds in the cells' own order."""
    elapsed = [0] * len(cells)
    for i in order.sample(range(len(cells)), len(cells)):
        sleep(SETTLE_SECONDS)
        run = cells[i].run
        start = clock()
        run()
        elapsed[i] = clock() - start
    return elapsed


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep the garbage collector from running inside a sample."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
