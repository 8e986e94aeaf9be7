import math

import pytest
from simulated_load import OneServer, Simulation, opened, theoretical_p99

from dra_bench.load.attempt import attempt
from dra_bench.load.contender import Contender
from dra_bench.load.queries import LoadQuery
from dra_bench.load.rates import attempt_queries, bracket, next_rate, search_rates
from dra_bench.load.run import default_limits, first_rates, serve, server_rows
from dra_bench.load.tables import load_text, verdicts


def test_rates_double_then_bisect():
    tries = []
    for held, expected in [
        (True, 10.0),
        (True, 20.0),
        (False, 40.0),
        (True, math.sqrt(800)),
        (False, math.sqrt(40 * math.sqrt(800))),
    ]:
        rate = next_rate(tries, 10.0)
        assert rate == pytest.approx(expected)
        tries.append((rate, held))
    low, high = bracket(tries)
    assert (low, high) == pytest.approx((math.sqrt(800), math.sqrt(40 * math.sqrt(800))))
    assert next_rate([*tries, (31.0, False)], 10.0) is None  # 28.3 held and 31 failed: within 10 %


def test_rates_are_halved_where_none_holds_and_the_search_ends():
    tries = []
    while (rate := next_rate(tries, 32.0)) is not None:
        tries.append((rate, False))
    assert [rate for rate, _ in tries] == [32.0, 16.0, 8.0, 4.0, 2.0, 1.0]
    assert bracket(tries) == (0.0, 1.0)


def test_a_search_that_always_holds_ends():
    tries = []
    while (rate := next_rate(tries, 1.0)) is not None:
        tries.append((rate, True))
    assert len(tries) == 10
    assert bracket(tries) == (512.0, None)


def test_an_attempt_is_as_long_as_its_time_but_for_its_least_queries():
    assert [attempt_queries(rate, 2.0, limit=0.05) for rate in (3.0, 100.0)] == [100, 200]
    assert attempt_queries(100.0, 2.0, limit=0.5) == 500  # 10 limits are 5 s


def test_a_burst_that_is_over_before_the_limit_says_nothing():
    """Nothing but the length of an attempt keeps a rate of ten times the capacity from holding a lax limit."""
    simulation = Simulation()
    (contender,) = [simulated("one", simulation, 0.01)]
    asked = {"id": (LoadQuery("in red", id="a"),)}
    found = serve(
        [contender], asked, {("one", "id"): 50.0}, {"id": 2000.0}, 0.1, lambda *_: None,
        simulation.clock, simulation.sleep,
    )  # fmt: skip
    (row,) = server_rows(found, {"id": 2000.0})
    assert 85 < row["queries_per_second"] < 112


def test_the_highest_rate_is_that_of_the_theory():
    """Bisect the theory's p99 for the rate at which a server of 10 ms still answers 99 % within 50 ms."""
    low, high = 1.0, 99.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if theoretical_p99(middle) <= 0.05 else (low, middle)
    simulation = Simulation()
    server = OneServer(simulation, lambda number: 0.01)

    def try_rate(key, rate):
        return attempt(server, rate, 1500, 0.05, simulation.clock, simulation.sleep)

    found = search_rates({"one": 20.0}, try_rate)["one"]
    held, failed = bracket([(one.rate, one.held) for one in found])
    assert held <= low * 1.05
    assert failed >= low * 0.95
    assert failed / held <= 1.1


def test_contenders_take_turns_until_each_is_done():
    order, told = [], []
    capacity = {"a": 10.0, "b": 100.0, "c": 0.0}

    class One:
        def __init__(self, rate, held):
            self.rate, self.held = rate, held

    def try_rate(key, rate):
        order.append(key)
        return One(rate, rate <= capacity[key])

    found = search_rates(dict.fromkeys(capacity, 8.0), try_rate, lambda done, planned: told.append((done, planned)))
    assert order[:9] == ["a", "b", "c"] * 3
    assert {key: bracket([(o.rate, o.held) for o in tries])[0] for key, tries in found.items()} == {
        "a": pytest.approx(10.0, rel=0.1),
        "b": pytest.approx(100.0, rel=0.1),
        "c": 0.0,
    }
    assert [done for done, _ in told] == list(range(1, len(order) + 1))
    assert all(done <= planned for done, planned in told)


def test_a_search_without_time_ends_with_what_it_knows():
    class One:
        def __init__(self, rate, held):
            self.rate, self.held = rate, held

    capacity = {"between": 12.0, "low": 0.0, "high": 1e9}
    found = search_rates(
        dict.fromkeys(capacity, 8.0), lambda key, rate: One(rate, rate <= capacity[key]), time_is_over=lambda: True
    )
    assert {key: [one.rate for one in tries] for key, tries in found.items()} == {
        "between": [8.0, 16.0],
        "low": [8.0, 4.0, 2.0, 1.0, 0.5, 0.25],
        "high": [8.0, 16.0, 32.0],
    }


def simulated(name, simulation, seconds):
    return Contender(name, "", "fp32", lambda: opened(OneServer(simulation, lambda number: seconds)), None)


@pytest.fixture(scope="module")
def served():
    """Two contenders of 4 ms; one of them sleeps for 16 ms more."""
    simulation = Simulation()
    contenders = [simulated("as it is", simulation, 0.004), simulated("sleeps", simulation, 0.02)]
    queries = {kind: (LoadQuery("in red", id="a"),) for kind in ("id", "new")}
    limits = {"id": 60.0, "new": 1.0}
    offline = [
        {"backend": name, "reference": kind, "queries_per_second": rate}
        for name, rate in (("as it is", 250.0), ("sleeps", 50.0))
        for kind in queries
    ]
    first = first_rates(contenders, tuple(queries), offline)
    assert first["sleeps", "id"] == 25.0
    found = serve(contenders, queries, first, limits, 40.0, lambda *_: None, simulation.clock, simulation.sleep)
    return server_rows(found, limits)


def test_a_planted_sleep_is_a_lower_rate_and_is_named(served):
    rows = {(row["backend"], row["reference"]): row for row in served}
    fast, slow = rows["as it is", "id"], rows["sleeps", "id"]
    assert fast["queries_per_second"] > 4 * slow["queries_per_second"] > 0
    line = "\n".join(verdicts(served))
    assert "most: as it is with" in line
    assert "least: sleeps with" in line


def test_one_that_holds_no_rate_is_named(served):
    fast = next(row for row in served if row["backend"] == "as it is" and row["reference"] == "id")
    stuck = {**fast, "backend": "stuck", "queries_per_second": 0.0, "p99_ms": None}
    assert [line.strip() for line in verdicts([fast, stuck])[1:]] == [
        f"most: as it is with {fast['queries_per_second']:.0f} a second",
        "at no rate: stuck",
    ]


def test_a_row_tells_every_attempt(served):
    for row in served:
        rates = [one["queries_per_second"] for one in row["attempts"] if one["held"]]
        assert row["queries_per_second"] == max(rates, default=0.0)
        assert all(one["p99_ms"] <= row["limit_ms"] for one in row["attempts"] if one["held"])
        assert all(one["queries"] == one["planned"] for one in row["attempts"] if one["held"])
        assert all(one["p99_ms"] > row["limit_ms"] for one in row["attempts"] if not one["held"])


def test_a_limit_that_nobody_can_hold_is_said(served):
    rows = [row for row in served if row["reference"] == "new"]
    assert [(row["queries_per_second"], row["p99_ms"], row["samples"]) for row in rows] == [(0.0, None, 0)] * 2
    assert "new reference, p99 within 1.00 ms: nobody holds that at any rate" in verdicts(served)


def test_the_limit_follows_the_slowest_alone():
    rows = [("a", "id", 4.0), ("b", "id", 11.0), ("a", "new", 20.0), ("b", "new", 15.0)]
    rows = [dict(zip(("backend", "reference", "p50_ms"), row, strict=True)) for row in rows]
    assert default_limits(rows) == {"id": 33.0, "new": 60.0}


def test_one_without_batches_begins_where_the_slowest_does():
    contenders = [simulated(name, None, 0) for name in ("a", "b", "b, pool")]
    keys = ("backend", "reference", "queries_per_second")
    rows = [dict(zip(keys, row, strict=True)) for row in (("a", "id", 30.0), ("a", "id", 90.0), ("b", "id", 20.0))]
    assert first_rates(contenders, ("id",), rows) == {("a", "id"): 45.0, ("b", "id"): 10.0, ("b, pool", "id"): 10.0}


def test_tables_fit_into_120_columns_and_hold_the_figures(served):
    name = "onnxruntime-cpu fp16, uint8 image, batcher"
    row = {"backend": name, "reference": "new", "queries_per_second": 1234.56, "low": 1200.0, "high": 1300.0}
    offline = [{**row, "batch": batch, "queries_per_second": 100.0 * batch, "samples": 123} for batch in (1, 8, 4)]
    single = {"p50_ms": 123.4, "p90_ms": 150.0, "p95_ms": 160.0, "p99_ms": 170.0, "iqr_ms": 12.3}
    result = {
        "single_stream": [{"backend": name, "reference": "id", **single, "samples": 1000}],
        "offline": offline,
        "server": [{**one, "backend": name} for one in served],
        "threads": [{**row, "threads": 128, "samples": 100}],
    }
    lines = load_text(result).splitlines()
    assert max(map(len, lines)) <= 120
    (cells,) = [[c.strip() for c in line.split("|")[1:-1]] for line in lines if "| 800" in line or " 800 |" in line]
    assert cells == ["new", name, "100", "400", "800", "8", "1200 to 1300", "123"]
    assert "1235" in lines[-1]
