"""Curves of how cost grows, on made-up times."""

import json
from pathlib import Path

import numpy as np
import pytest

from dra_bench.cli import main
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.fresh import Stage
from dra_bench.gallery_cache import Collection
from dra_bench.gallery_search import NAMES
from dra_bench.growth import Axes, Gap, Step, affordable, curve_json, gaps, timed_curves, unextended
from dra_bench.growth_galleries import available_memory, chosen_sizes, memory_curves, search_curves
from dra_bench.growth_steps import batch_curves, text_steps, thread_counts
from dra_bench.growth_table import growth_tables
from dra_bench.mixed_vectors import RealVectors
from dra_bench.timing import Cell, Timings
from dra_runtime.encoder import Encoder


class Machine:
    """A clock that runs with the calls: each takes what it costs."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def step(self, backend, x, seconds, work=None, part="image"):
        def run():
            self.now += seconds
            self.calls.append((backend, x))

        return Step(x, work or x, Cell(backend, part, 1, None, run))

    def clock(self):
        return self.now


def timed(steps, milliseconds):
    """Timings of 11 rounds in which the n-th step takes its milliseconds, and in five of the rounds 10 % more."""
    rounds = np.tile(np.array(milliseconds) * 1e6, (11, 1))
    rounds[:5] *= 1.1
    return Timings(tuple(step.cell for step in steps), rounds.astype(np.int64), 3, True)


def steps_of(backend, xs, part="search"):
    return [Step(x, x, Cell(backend, part, x if part != "search" else 1, None, lambda: None)) for x in xs]


def test_all_steps_are_kept_where_there_is_time():
    machine = Machine()
    steps = [machine.step(backend, x, x) for backend in ("slow", "fast") for x in (1, 2, 4)]
    kept, dropped = affordable(steps, 11, 1000, machine.clock)
    assert (kept, dropped) == (steps, [])


def test_what_would_take_too_long_is_not_even_tried():
    """Each of 14 rounds may take 12 seconds here: 1 + 2 + 4 fit, 8 more don't."""
    machine = Machine()
    steps = [machine.step("a", x, x) for x in (1, 2, 4, 8, 16)]
    kept, dropped = affordable(steps, 11, 168, machine.clock)
    assert [s.x for s in kept] == [1, 2, 4]
    assert [s.x for s in dropped] == [8, 16]
    assert max(x for _, x in machine.calls) == 4


def test_a_slow_contender_does_not_crowd_out_a_quick_one():
    machine = Machine()
    steps = [machine.step("slow", 1, 9), *(machine.step("quick", x, x / 10) for x in (1, 2, 4, 8))]
    kept, dropped = affordable(steps, 11, 140, machine.clock)
    assert [(s.cell.backend, s.x) for s in kept] == [("quick", x) for x in (1, 2, 4, 8)]
    assert [s.cell.backend for s in dropped] == ["slow"]


def test_more_samples_leave_time_for_fewer_steps():
    machine = Machine()
    steps = [machine.step("a", x, x) for x in (1, 2, 4)]
    assert [s.x for s in affordable(steps, 100, 140, machine.clock)[0]] == [1]


def test_points_are_medians_and_quartiles():
    steps = steps_of("b", [1, 2])
    axes = Axes("title", "x", "y")
    (curve,) = timed_curves("search", steps, timed(steps, [10, 20]), axes, lambda step, ns: ns / 1e6, {})
    first = curve_json(curve)["points"][0]
    assert first == {"x": 1, "y": 10, "low": 10, "high": 11, "samples": 11, "extrapolated": False}
    assert curve_json(curve)["law"] is None


def test_exact_search_is_extrapolated_by_a_line_and_marked():
    exact, hnsw = NAMES["float32"], NAMES["hnsw"]
    sizes = (1_000, 10_000, 20_000, 50_000, 100_000)
    steps = [*steps_of(exact, sizes), *steps_of(hnsw, sizes)]
    costs = [9, *(1 + x / 1000 for x in sizes[1:]), 9, 9, *(x**0.5 / 100 for x in sizes[2:])]
    curves = {c.backend: curve_json(c) for c in search_curves(steps, timed(steps, costs))}
    points = {p["x"]: p for p in curves[exact]["points"]}
    assert [x for x, p in points.items() if p["extrapolated"]] == [1_000_000, 10_000_000, 100_000_000]
    assert points[10_000_000]["y"] == pytest.approx(10_001, rel=1e-4)
    assert points[10_000_000]["samples"] == 0
    assert curves[exact]["law"]["kind"] == "linear"
    assert curves[exact]["law"]["fitted_over"] == [10_000, 20_000, 50_000, 100_000]
    # Up to 10,000 items the index isn't asked, so its law is of the three sizes beyond
    points = {p["x"]: p for p in curves[hnsw]["points"]}
    assert points[1_000_000]["y"] == pytest.approx(10, rel=1e-4)
    assert curves[hnsw]["law"]["fitted_over"] == [20_000, 50_000, 100_000]


def test_a_size_that_was_measured_is_not_extrapolated():
    steps = steps_of(NAMES["float32"], (100_000, 300_000, 1_000_000))
    (curve,) = search_curves(steps, timed(steps, [1, 3, 10]))
    assert [p.x for p in curve.points if p.extrapolated] == [10_000_000, 100_000_000]


def test_what_can_not_be_extrapolated_is_named():
    steps = steps_of(NAMES["float32"], (10_000, 100_000))
    curves = search_curves(steps, timed(steps, [1, 10]))
    assert [p.x for p in curves[0].points] == [10_000, 100_000]
    (gap,) = unextended(curves, [100_000, 1_000_000])
    assert (gap.curve, gap.backend, gap.x) == ("search", NAMES["float32"], (1_000_000,))
    more = steps_of(NAMES["float32"], (10_000, 50_000, 100_000))
    assert unextended(search_curves(more, timed(more, [1, 5, 10])), [1_000_000]) == []


def test_extrapolated_points_are_as_uncertain_as_the_fit():
    steps = steps_of(NAMES["float32"], (10, 20, 40))
    (curve,) = search_curves(steps, timed(steps, [1, 10, 30]), beyond=[100])
    point = curve.points[-1]
    assert point.low == pytest.approx(point.y * (1 - curve.law.residual), rel=1e-5)
    assert point.high == pytest.approx(point.y * (1 + curve.law.residual), rel=1e-5)


def test_batches_are_given_by_call_and_by_item_and_what_was_too_long_is_extrapolated():
    steps = steps_of("b", (1, 2, 4, 8), "image")
    call, item = batch_curves(steps, timed(steps, [7, 9, 13, 21]))  # 5 + 2 * batch
    assert [p.y for p in item.points] == [7, 4.5, 3.25, 2.625]
    assert {p.x: p.y for p in call.points if p.extrapolated} == pytest.approx({16: 37, 32: 69, 64: 133})
    too_long = steps_of("b", (16, 32, 64), "image")
    assert gaps("batch", too_long, [call]) == []
    assert gaps("batch", too_long, [item])[0].x == (16, 32, 64)


def test_a_gap_says_what_is_missing_and_why():
    gap = Gap("batch", "image", "pytorch-eager", (32, 64), "too long")
    assert gap.words() == "batch curve: image, pytorch-eager, at 32, 64: too long"
    assert json.loads(json.dumps(gap.plain()))["x"] == [32, 64]


def test_tables_mark_what_was_extrapolated():
    steps = steps_of(NAMES["float32"], (10_000, 50_000, 100_000))
    curves = [curve_json(c) for c in search_curves(steps, timed(steps, [1, 5, 10]))]
    lines = growth_tables(curves).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")][1:-1] == [
        "ms a query, by items in the gallery",
        *("10k", "50k", "100k", "1M", "10M", "100M", "spread", "n"),
    ]
    assert [cell.strip() for cell in lines[2].split("|")][1:-1] == [
        "exact, float32",
        *("1.00", "5.00", "10.0", "~100", "~1000", "~10,000", "5 %", "11"),
    ]
    assert lines[3].startswith("~ exact, float32: extrapolated by ")
    assert lines[3].endswith("fitted over 10k to 100k, off there by at most 0 %.")
    assert max(map(len, lines)) <= 120


def stages(resident):
    memory = {"peak_mb": 0.0, "anonymous_mb": 0.0}
    return (
        Stage("bundle open", 1.0, {**memory, "resident_mb": 30.0}),
        Stage("more answers", 2.0, {**memory, "resident_mb": resident}),
    )


@pytest.fixture
def collections(tiny_bundle, tmp_path):
    """Two sizes, none of them made."""
    encoder = Encoder.open(tiny_bundle)
    real = RealVectors(np.ones((1, encoder.dim), np.float32), np.ones((1, encoder.dim), np.float32))
    return {n: Collection(encoder, real, encoder.dim, "made", n, 0, tmp_path) for n in (1_000, 1_000_000)}


def test_memory_stands_beside_its_formula(collections):
    dim = collections[1_000].encoder.dim
    sizes = (10_000, 50_000, 100_000)
    runs = {(n, "float32"): [stages(40 + n / 1000)] * 3 for n in sizes}
    runs |= {(n, "hnsw"): [stages(40 + n / 2000)] for n in (10_000, 20_000, 50_000, 100_000)}
    measured, formula, hnsw = (curve_json(c) for c in memory_curves(runs, collections))
    assert [(p["x"], p["y"], p["samples"]) for p in measured["points"]] == [(n, 40 + n / 1000, 3) for n in sizes]
    assert hnsw["law"]["fitted_over"] == [20_000, 50_000, 100_000]
    assert {p["x"]: p["y"] for p in hnsw["points"]}[1_000_000] == pytest.approx(540)
    # 4 bytes a column; the norm's 4, the 8 of where its id begins, and the id "item-0000000"
    expected = 30 + 1_000_000 * (4 * dim + 4 + 8 + 12) / 1e6
    assert next(p["y"] for p in formula["points"] if p["x"] == 1_000_000) == pytest.approx(expected, rel=1e-4)
    assert all(p["extrapolated"] for p in formula["points"])
    assert "formula" in growth_tables([measured, formula])


def test_galleries_that_are_not_asked_for_are_taken_from_the_cache_alone(collections):
    variants = ("float32", "float16")
    keys, _ = chosen_sizes([1_000], variants, collections, None)
    assert keys == [(1_000, "float32"), (1_000, "float16")]
    collections[1_000_000].path("float32").touch()
    keys, too_large = chosen_sizes([1_000], variants, collections, None)
    assert keys[-1] == (1_000_000, "float32")
    assert too_large == []
    dim = collections[1_000].encoder.dim
    together = (1_000 * (4 + 2) + 1_000_000 * 4) * dim  # of which half may be filled
    assert chosen_sizes([1_000], variants, collections, 2 * together + 1)[1] == []
    keys, too_large = chosen_sizes([1_000], variants, collections, 2 * together)
    assert (keys, too_large) == ([(1_000, "float32"), (1_000, "float16")], [(1_000_000, "float32")])


def test_free_memory_is_read(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n", encoding="ascii")
    assert available_memory(tmp_path / "meminfo") == 2048 * 1024
    assert available_memory(tmp_path / "none") is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\n", encoding="ascii")
    assert available_memory(tmp_path / "meminfo") is None


def test_a_bundle_gets_texts_of_every_length(tiny_bundle):
    encoder = Encoder.open(tiny_bundle)
    steps = text_steps([(c.name, c) for c in bundle_encoders([encoder])], encoder, (4, 12, 33, 77))
    assert [(step.x, step.cell.text_tokens) for step in steps] == [(n, n) for n in (4, 12, 33, 77)]


def test_threads_double_up_to_all():
    assert thread_counts(1) == (1,)
    assert thread_counts(2) == (1, 2)
    assert thread_counts(6) == (1, 2, 4, 6)
    assert thread_counts(8) == (1, 2, 4, 8)


def run(capsys, *words):
    """Run a command; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return (exit_info.value.code, *capsys.readouterr())


def test_curves_of_a_bundle_beside_pytorch(capsys, tmp_path, tiny_bundle, tiny_checkpoint):
    output = tmp_path / "growth.json"
    words = ("growth", "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint, "--curve", "text", "--threads", 1)
    code, out, _ = run(capsys, *words, "--samples", 11, "--seconds", 30, "-o", output)
    assert code == 0
    text = output.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    result = json.loads(text)
    curves = {curve["backend"]: curve for curve in result["curves"]}
    assert list(curves) == ["pytorch-eager", "onnxruntime-cpu", "pytorch-eager, text cut"]
    for curve in curves.values():
        assert [p["x"] for p in curve["points"]] == [4, 8, 12, 16, 24, 32, 48, 64, 77]
        assert {p["samples"] for p in curve["points"]} == {11}
    assert len(result["raw"]["samples"]) == 27
    median = np.median(result["raw"]["samples"][0]["ms"])
    assert curves[result["raw"]["samples"][0]["backend"]]["points"][0]["y"] == pytest.approx(median, rel=1e-3)
    assert "ms a text, by tokens of the text" in out


@pytest.mark.slow  # encodes the built-in pictures, makes galleries and runs fresh processes
def test_all_curves(capsys, tmp_path, tiny_bundle, tiny_checkpoint):
    output = tmp_path / "growth.json"
    words = ("growth", "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint, "--cache", tmp_path / "cache")
    sizes = [word for items in (1_000, 12_000, 15_000, 20_000) for word in ("--items", items)]
    code, _, _ = run(capsys, *words, *sizes, "--runs", 1, "--samples", 11, "--seconds", 60, "-o", output)
    assert code == 0
    result = json.loads(output.read_text(encoding="utf-8"))
    assert {curve["curve"] for curve in result["curves"]} == {"batch", "text", "search", "threads", "memory"}
    search = {c["backend"]: c for c in result["curves"] if c["curve"] == "search"}
    assert list(search) == list(NAMES.values())
    for curve in search.values():
        assert [p["x"] for p in curve["points"] if not p["extrapolated"]] == [1_000, 12_000, 15_000, 20_000]
        assert [p["x"] for p in curve["points"] if p["extrapolated"]] == [1_000_000, 10_000_000, 100_000_000]
    memory = {c["backend"]: c for c in result["curves"] if c["curve"] == "memory"}
    measured, formula = memory["exact, float32"], memory["formula, exact, float32"]
    for point, stated in zip(measured["points"], formula["points"][:4], strict=True):
        assert point["y"] == pytest.approx(stated["y"], rel=0.15)
    assert "2155 built-in pictures" in result["raw"]["vectors"]


def test_an_output_that_can_not_be_written_is_found_before_the_work(capsys):
    code, out, err = run(capsys, "growth", "--bundle", "none", "-o", Path("/no/such/folder/x.json"))
    assert (code, out, len(err.splitlines())) == (2, "", 1)
