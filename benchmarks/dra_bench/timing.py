"""Time calls so that they can be compared: interleaved in one run, warmed up, the garbage collector off.

All cells take turns: every round runs each of them once, in an order that is drawn anew, so that a machine that
grows slower, or a neighbour that leaves its weights in the cache, meets all of them alike. Before each call the process
has come to rest: the worker threads of many libraries go on spinning after a call, and would take the CPUs from the
next contender's. Then a primed cell is called once untimed, so that its threads are awake and its weights in the
caches, as they are where queries come one after the other.
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
REST_SECONDS = 0.001  #: a look at what the process computes while it should be at rest
AT_REST = 0.2  #: cores in use during a look, below which the process is at rest
QUIET_LOOKS = 2  #: such looks in a row: the clock of a spinning thread may stand still for one
MOST_LOOKS = 250  #: then the call comes anyway
RESAMPLES = 2000  #: bootstrap resamples behind the interval of a ratio

Clock = Callable[[], int]
Sleep = Callable[[float], None]
Work = Callable[[], int]


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
    warmup_rounds: int  #: the first one included, in which some contenders compile
    steady: bool  #: whether every cell had stopped getting faster when the measured rounds began
    restless: int = 0  #: calls before which the process did not come to rest
    calls: int = 1  #: of a cell in each round, the last of them timed


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
    least_samples: int = LEAST_SAMPLES,
    most_samples: int = 100,
    primed: bool = False,
    advance: Callable[[int, int], None] = lambda done, planned: None,
    clock: Clock = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
    work: Work = time.process_time_ns,
) -> Timings:
    """Warm all cells up, then time them in rounds.

    Parameters
    ----------
    cells
        What to time.
    samples
        Rounds to measure; None takes as many as fit into ``seconds``, from ``least_samples`` to ``most_samples``.
    seconds
        Budget of the run after its first round, which may take long because some contenders compile in it. Warming up
        takes at most a quarter, but at least three rounds.
    primed
        Whether each timed call comes right after an untimed one.
    advance
        Called after each measured round with the rounds done and planned, for a progress bar.
    clock, sleep, work
        Nanoseconds since some start, a pause in seconds, and nanoseconds that all threads of the process have computed;
        tests bring their own.

    Returns
    -------
    Timings
        Nanoseconds of every call.
    """
    order = random.Random(0)  # noqa: S311 - the same order in every run, nothing secret
    turns = _Turns(cells, order, clock, sleep, work, primed)
    with _collector_off():
        turns.round()
        start = clock()
        warmup: list[list[int]] = []
        while not is_steady(warmup):
            spent = (clock() - start) / 1e9
            if len(warmup) >= MOST_WARMUP or (len(warmup) >= LEAST_WARMUP and spent > seconds * WARMUP_SHARE):
                break
            warmup.append(turns.round())
        spent = (clock() - start) / 1e9
        planned = samples or planned_rounds(seconds - spent, spent / len(warmup), least_samples, most_samples)
        turns.restless = 0
        rounds: list[list[int]] = []
        for _ in range(planned):
            rounds.append(turns.round())
            advance(len(rounds), planned)
    return Timings(
        tuple(cells),
        np.array(rounds, dtype=np.int64),
        1 + len(warmup),
        is_steady(warmup),
        restless=turns.restless,
        calls=1 + primed,
    )


def is_steady(rounds: Sequence[Sequence[int]]) -> bool:
    """Tell whether every cell has stopped getting faster at some point of ``rounds`` (one list of times a round)."""
    history = np.asarray(rounds, dtype=np.float64)
    if len(history) < 2 * WINDOW:
        return False
    windows = np.stack([np.median(history[i : i + WINDOW], axis=0) for i in range(len(history) - WINDOW + 1)])
    return bool((windows[WINDOW:] >= STILL_FASTER * windows[:-WINDOW]).any(axis=0).all())


def planned_rounds(seconds: float, round_seconds: float, least: int, most: int) -> int:
    """Return how many rounds fit into ``seconds``: at least ``least``, at most ``most``."""
    fitting = most if round_seconds <= 0 else int(min(max(seconds, 0) / round_seconds, most))
    return max(fitting, least)


def percentiles_ms(samples_ns: NDArray[np.int64]) -> dict[str, float]:
    """Return p50_ms, p90_ms, p95_ms, p99_ms and iqr_ms of one cell's samples, interpolated linearly between them.

    iqr_ms is the interquartile range, p75 - p25: how far the middle half of the samples spreads.
    """
    p25, p50, p75, p90, p95, p99 = np.percentile(samples_ns / 1e6, [25, 50, 75, 90, 95, 99])
    found = {"p50_ms": p50, "p90_ms": p90, "p95_ms": p95, "p99_ms": p99, "iqr_ms": p75 - p25}
    return {name: round(float(value), 4) for name, value in found.items()}


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


def come_to_rest(clock: Clock, sleep: Sleep, work: Work) -> bool:
    """Wait until no thread of the process computes any more, a quarter of a second at most; tell whether that came.

    A fixed pause would be too short for some libraries' threads, which spin for 100 ms after a call, and would waste
    time after all others.
    """
    quiet = 0
    for _ in range(MOST_LOOKS):
        worked, wall = work(), clock()
        sleep(REST_SECONDS)
        quiet = quiet + 1 if work() - worked <= AT_REST * (clock() - wall) else 0
        if quiet == QUIET_LOOKS:
            return True
    return False


@dataclass
class _Turns:
    """The cells, and what their turns need."""

    cells: Sequence[Cell]
    order: random.Random
    clock: Clock
    sleep: Sleep
    work: Work
    primed: bool
    restless: int = 0  #: calls before which the process did not come to rest

    def round(self) -> list[int]:
        """Run every cell once, in a fresh order; returns nanoseconds in the cells' own order."""
        elapsed = [0] * len(self.cells)
        for i in self.order.sample(range(len(self.cells)), len(self.cells)):
            self.restless += not come_to_rest(self.clock, self.sleep, self.work)
            run = self.cells[i].run
            if self.primed:
                run()
            start = self.clock()
            run()
            elapsed[i] = self.clock() - start
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
