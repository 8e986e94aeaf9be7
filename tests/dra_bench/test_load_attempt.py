import math
from concurrent.futures import Future

import numpy as np
import pytest
from simulated_load import SERVICE, OneServer, Simulation, theoretical_p99, waited

from dra_bench.load.attempt import LEAD_SECONDS, attempt, nearest_rank, poisson_arrivals


def tried(rate, count, limit, seconds=lambda number: SERVICE, oversleep=0.0, seed=0):
    simulation = Simulation(oversleep)
    server = OneServer(simulation, seconds)
    return attempt(server, rate, count, limit, simulation.clock, simulation.sleep, seed), server


def test_arrivals_are_a_poisson_process_of_the_given_rate():
    arrivals = poisson_arrivals(50.0, 20_000, seed=3)
    gaps = np.diff(arrivals)
    assert gaps.min() > 0
    assert len(arrivals) / arrivals[-1] == pytest.approx(50.0, rel=1e-3)  # exactly that, but for the last gap
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of exponential gaps both are the same
    assert np.mean(gaps > 2 / 50) == pytest.approx(math.exp(-2), rel=0.05)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.03)


def test_the_same_seed_gives_the_same_pattern_at_every_rate():
    np.testing.assert_allclose(poisson_arrivals(10.0, 30, 1), 4 * poisson_arrivals(40.0, 30, 1), rtol=1e-12)
    assert not np.allclose(poisson_arrivals(10.0, 30, 1), poisson_arrivals(10.0, 30, 2))


@pytest.mark.parametrize(
    ("count", "rank"), [(1, 1), (50, 50), (99, 99), (100, 99), (101, 100), (200, 198), (1000, 990)]
)
def test_the_percentile_is_by_nearest_rank(count, rank):
    assert nearest_rank(0.99, count) == rank


def test_latencies_are_those_of_a_queue():
    found, _ = tried(rate=70.0, count=500, limit=10.0)
    expected = waited(poisson_arrivals(70.0, 500, 0), lambda number: SERVICE)
    np.testing.assert_allclose(found.latencies, expected, atol=1e-9)
    assert found.milliseconds(0.99) == pytest.approx(1e3 * sorted(expected)[494])
    assert (found.held, found.ended_early, found.planned) == (True, False, 500)


def test_p99_is_what_the_theory_of_m_d_1_says():
    found, _ = tried(rate=50.0, count=6000, limit=10.0)
    assert found.milliseconds(0.99) == pytest.approx(1e3 * theoretical_p99(50.0), rel=0.08)


def test_a_stall_is_charged_to_all_that_arrive_meanwhile():
    """Measured from when the server takes them, only one query in 200 would be slow, and p99 would hold."""
    found, _ = tried(rate=100.0, count=200, limit=5.0, seconds=lambda number: 1.0 if number == 20 else 0.0005)
    assert 40 <= int((found.latencies > 0.5).sum()) <= 60  # those that arrive in half a second
    assert found.milliseconds(0.99) > 900


def test_a_query_that_is_handed_over_late_is_late():
    found, _ = tried(rate=20.0, count=60, limit=1.0, seconds=lambda number: 0.0, oversleep=0.003)
    assert np.median(found.latencies) == pytest.approx(0.003)  # less only where one oversleep met two arrivals
    assert found.handed_late == pytest.approx(0.003)


def test_a_generator_that_was_stopped_before_its_first_query_is_late_too():
    found, server = tried(rate=100.0, count=100, limit=0.005, seconds=lambda number: 0.0, oversleep=1.0)
    assert (found.held, found.ended_early, server.futures) == (False, True, [])
    assert len(found.latencies) > 90  # of 100 that arrive in a second
    assert found.handed_late > 0.9


def test_ending_early_changes_no_verdict():
    verdicts = set()
    for rate in np.linspace(40, 130, 19):
        found, _ = tried(rate, 300, limit=0.08)
        exact = sorted(waited(poisson_arrivals(rate, 300, 0), lambda number: SERVICE))[296] <= 0.08
        assert found.held == exact
        verdicts.add((found.held, found.ended_early))
    assert verdicts == {(True, False), (False, True)}


def test_a_queue_that_grows_ends_the_attempt_and_leaves_nothing_behind():
    found, server = tried(rate=400.0, count=5000, limit=0.1)
    assert not found.held
    assert found.ended_early
    assert len(found.latencies) < 200  # of 5,000: 1 % may be late, and the queue is at 0.1 s after 13 answers
    assert all(future.done() for future in server.futures)


def test_an_error_of_a_query_is_raised():
    class Broken(OneServer):
        def submit(self, query):
            future = super().submit(query)
            if len(self.futures) == 5:
                future = Future()
                future.set_exception(ValueError("planted"))
            return future

    simulation = Simulation()
    server = Broken(simulation, lambda number: SERVICE)
    with pytest.raises(ValueError, match="planted"):
        attempt(server, 10.0, 100, 1.0, simulation.clock, simulation.sleep)
    assert len(server.futures) == 5


def test_an_interrupt_takes_back_what_waits():
    simulation = Simulation()
    server = OneServer(simulation, lambda number: 100.0)

    def sleep(seconds):
        if len(server.futures) == 7 and not server.futures[-1].cancelled():
            raise KeyboardInterrupt
        simulation.sleep(seconds)

    with pytest.raises(KeyboardInterrupt):
        attempt(server, 50.0, 100, 1000.0, simulation.clock, sleep)
    assert len(server.futures) == 7
    assert all(future.cancelled() for future in server.futures)


def test_the_schedule_begins_after_all_is_ready():
    found, _ = tried(rate=1000.0, count=50, limit=1.0, seconds=lambda number: 0.0)
    assert LEAD_SECONDS > 0
    assert found.handed_late == pytest.approx(0.0, abs=1e-9)
