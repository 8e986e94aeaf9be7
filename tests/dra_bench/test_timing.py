"""Interleaving, warm-up and statistics, with a clock of the test's own."""

import gc
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_bench.timing import (
    LEAST_SAMPLES,
    LEAST_WARMUP,
    MOST_WARMUP,
    WINDOW,
    Cell,
    come_to_rest,
    is_steady,
    measure,
    percentiles_ms,
    planned_rounds,
    speedup,
)


class Machine:
    """A clock that only moves when a cell works, and a diary of who worked when."""

    def __init__(self):
        self.now = 0
        self.diary = []

    def clock(self):
        return self.now

    def cell(self, name, *costs_ms):
        """Make a cell that takes the given milliseconds, call after call; the last one for good."""
        remaining = list(costs_ms)

        def run():
            self.diary.append(name)
            self.now += int(1e6 * (remaining.pop(0) if len(remaining) > 1 else remaining[0]))

        return Cell(name, "image", 1, None, run)

    def measure(self, cells, samples=None, seconds=60.0, **options):
        return measure(cells, samples, seconds, clock=self.clock, sleep=lambda _: None, work=lambda: 0, **options)


def test_every_round_runs_every_cell_once_and_the_order_changes():
    machine = Machine()
    timings = machine.measure([machine.cell(name, 1) for name in "abcd"], samples=20)
    rounds = [tuple(machine.diary[i : i + 4]) for i in range(0, len(machine.diary), 4)]
    assert all(sorted(r) == ["a", "b", "c", "d"] for r in rounds)
    assert len(set(rounds)) > 10  # 24 orders are possible
    assert len(rounds) == timings.warmup_rounds + 20


def test_a_primed_cell_is_called_once_untimed_before_each_timed_call():
    """The first of two calls is slow; only the second is timed."""
    machine = Machine()
    timings = machine.measure([machine.cell("a", *([900, 1] * 100))], samples=11, primed=True)
    assert set(timings.samples_ns.ravel().tolist()) == {1_000_000}
    assert len(machine.diary) == timings.calls * (timings.warmup_rounds + 11)
    assert timings.calls == 2


def test_times_land_in_their_own_column_whatever_the_order():
    machine = Machine()
    timings = machine.measure([machine.cell("a", 2), machine.cell("b", 7), machine.cell("c", 3)], samples=15)
    assert timings.samples_ns.shape == (15, 3)
    assert (timings.samples_ns == np.array([2e6, 7e6, 3e6])).all()


def test_slow_first_calls_are_warm_up_and_not_measured():
    machine = Machine()
    cells = [machine.cell("a", 900, 500, 200, 100, 50, 20, 10), machine.cell("b", 5)]
    timings = machine.measure(cells, samples=11)
    assert timings.steady
    assert timings.warmup_rounds > 2 * WINDOW
    assert timings.samples_ns[:, 0].max() == 10e6


def test_a_cell_that_never_settles_is_reported():
    machine = Machine()
    timings = machine.measure([machine.cell("a", *(1000 * 0.9**i for i in range(200)))], samples=11, seconds=1e9)
    assert not timings.steady
    assert timings.warmup_rounds == 1 + MOST_WARMUP


def test_warm_up_stops_at_a_quarter_of_the_budget():
    machine = Machine()
    timings = machine.measure([machine.cell("a", *(1000 * 0.9**i for i in range(200)))], seconds=24.0)
    assert 2 * WINDOW <= timings.warmup_rounds <= MOST_WARMUP
    assert not timings.steady


def test_a_first_call_that_compiles_takes_nothing_from_the_budget():
    machine = Machine()
    timings = machine.measure([machine.cell("compiles", 600_000, 1000)], seconds=56)
    assert timings.steady
    assert timings.warmup_rounds == 1 + 2 * WINDOW
    assert len(timings.samples_ns) == 50


def test_a_budget_that_is_gone_leaves_three_rounds_of_warm_up():
    machine = Machine()
    timings = machine.measure([machine.cell("a", 1000)], seconds=1.0)
    assert timings.warmup_rounds == 1 + LEAST_WARMUP == 4
    assert len(timings.samples_ns) == LEAST_SAMPLES
    assert not timings.steady  # three rounds are too few to tell


def test_a_fixed_number_of_samples_ignores_the_budget():
    machine = Machine()
    assert len(machine.measure([machine.cell("a", 1000)], samples=40, seconds=1).samples_ns) == 40


def test_the_budget_decides_between_the_least_and_the_most_samples():
    machine = Machine()
    slow = machine.measure([machine.cell("a", 1000)], seconds=5)
    middle = machine.measure([machine.cell("b", 1000)], seconds=56)
    fast = machine.measure([machine.cell("c", 1)], seconds=60)
    assert len(slow.samples_ns) == LEAST_SAMPLES
    assert len(middle.samples_ns) == 50  # 56 s without six rounds of warm-up
    assert len(fast.samples_ns) == 100
    assert len(machine.measure([machine.cell("d", 1000)], seconds=5, least_samples=20).samples_ns) == 20


def test_the_collector_is_off_while_measuring_and_back_on_after_an_error():
    seen = []

    def run():
        seen.append(gc.isenabled())

    measure([Cell("a", "image", 1, None, run)], 11, 1.0, sleep=lambda _: None)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure([Cell("a", "image", 1, None, lambda: 1 // 0)], 11, 1.0, sleep=lambda _: None)
    assert gc.isenabled()


def test_progress_counts_measured_rounds():
    machine, seen = Machine(), []
    machine.measure([machine.cell("a", 1)], samples=12, advance=lambda done, planned: seen.append((done, planned)))
    assert seen == [(i, 12) for i in range(1, 13)]


def test_steady_needs_every_cell():
    falling, flat = [100, 80, 60, 40, 30, 20], [5, 5, 5, 5, 5, 5]
    assert is_steady(list(zip(flat, flat, strict=True)))
    assert not is_steady(list(zip(flat, falling, strict=True)))
    assert not is_steady([[5]] * 5)  # too few to tell


@given(st.floats(-10, 1e4), st.floats(0, 100), st.integers(1, 20), st.integers(20, 500))
def test_planned_rounds_stay_within_bounds(seconds, round_seconds, least, most):
    assert least <= planned_rounds(seconds, round_seconds, least, most) <= most


class Spinner:
    """A process whose threads compute for some milliseconds after each call; its clock moves while it sleeps."""

    def __init__(self, spins_ms):
        self.now = self.worked = 0
        self.spins_ms, self.left = spins_ms, 0

    def cell(self):
        def run():
            self.now += 1_000_000
            self.left = self.spins_ms * 1_000_000

        return Cell("a", "image", 1, None, run)

    def sleep(self, seconds):
        passed = int(seconds * 1e9)
        self.now += passed
        self.worked += min(passed, self.left)
        self.left -= min(passed, self.left)

    def rests(self):
        return come_to_rest(lambda: self.now, self.sleep, lambda: self.worked)


def test_a_call_waits_until_the_threads_of_the_last_one_stand_still():
    process = Spinner(100)
    process.cell().run()
    assert process.rests()
    assert process.left == 0
    assert 101 <= process.now / 1e6 <= 105  # and not much longer
    assert process.rests()
    assert process.now / 1e6 <= 108


def test_a_thread_whose_clock_stands_still_for_a_moment_is_no_rest():
    now, steps = [0], iter([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    worked = [0.0]

    def sleep(seconds):
        now[0] += int(seconds * 1e9)
        worked[0] += next(steps) * seconds * 1e9

    assert come_to_rest(lambda: now[0], sleep, lambda: int(worked[0]))
    assert len(list(steps)) == 1


def test_threads_that_never_rest_are_counted_and_not_waited_for():
    process = Spinner(10**9)
    timings = measure(
        [process.cell()], 12, 60.0, clock=lambda: process.now, sleep=process.sleep, work=lambda: process.worked
    )
    assert timings.restless == 12
    assert process.now < 30e9


@given(st.lists(st.integers(1, 10**10), min_size=11, max_size=200))
def test_percentiles_agree_with_the_standard_library(samples):
    ours = percentiles_ms(np.array(samples))
    cuts = statistics.quantiles([s / 1e6 for s in samples], n=100, method="inclusive")
    expected = {"p50_ms": cuts[49], "p90_ms": cuts[89], "p95_ms": cuts[94], "p99_ms": cuts[98]}
    expected["iqr_ms"] = cuts[74] - cuts[24]
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_speedup_is_the_ratio_of_medians_with_an_interval_around_it():
    rng = np.random.default_rng(1)
    reference = rng.normal(30e6, 1e6, 50).astype(np.int64)
    candidate = rng.normal(10e6, 1e6, 50).astype(np.int64)
    ratio = speedup(reference, candidate)
    assert ratio.value == pytest.approx(statistics.median(reference) / statistics.median(candidate), abs=1e-3)
    assert ratio.low < ratio.value < ratio.high
    assert 2.7 < ratio.low < ratio.high < 3.3


def test_a_machine_that_slows_down_for_both_leaves_the_interval_narrow():
    drift = np.linspace(1.0, 3.0, 40)
    ratio = speedup((40e6 * drift).astype(np.int64), (10e6 * drift).astype(np.int64))
    assert ratio.value == pytest.approx(4.0, abs=0.01)
    assert ratio.high - ratio.low < 0.01
