"""The report's plots: no two texts of a plot meet, none leaves it, and what is drawn is what was measured."""

import itertools
from functools import partial

import pytest
import report_runs
from matplotlib.text import Text

from dra_bench.report.plots.growth import growth_plot
from dra_bench.report.plots.latency import latency_plot
from dra_bench.report.plots.load import load_plot
from dra_bench.report.plots.pareto import Tradeoff, pareto_front, pareto_plot
from dra_bench.report.plots.recall import recall_plot
from dra_bench.report.plots.roofline import intensity, reached, roofline_plot
from dra_bench.report.plots.style import DARK, LIGHT, Look, svg

NAMES = (
    *("onnxruntime-cpu", "onnxruntime-cpu int8", "onnxruntime-cpu fp16, half emulated", "pytorch-eager", "pytorch-cut"),
    *("pytorch-eager channels-last", "pytorch-compile", "onnx-77-tokens default threads", "openvino", "openvino int8"),
)
LOOK = Look(LIGHT, NAMES)


def latency_rows(spread):
    """Ten contenders, the slowest ``spread`` times as slow as the fastest."""
    return [
        {"backend": name, "text_tokens": 77 if "pytorch" in name else 12, "samples": 37 + i, **percentiles}
        for i, name in enumerate(NAMES)
        for p50 in (5.0 * spread ** (i / 9),)
        for percentiles in ({"p50_ms": p50, "p90_ms": 1.1 * p50, "p95_ms": 1.15 * p50, "p99_ms": 1.4 * p50},)
    ]


def tradeoffs(step):
    points = (Tradeoff(name, 5.0 + step * i, 88.0 + 0.06 * (i % 3), 100, 1660) for i, name in enumerate(NAMES[:6]))
    return list(points)


def evaluation():
    metrics = {"R@1": 88.01, "R@5": 99.58, "R@10": 100.0, "R@50": 100.0, "Rsubset@1": 90.3}
    halves = {"image_only": dict.fromkeys(metrics, 99.9), "text_only": dict.fromkeys(metrics, 100.0)}
    return {"dataset": "emoji_cir", "split": "val_unseen", "queries": 1660, "metrics": metrics, "baselines": halves}


def growth_curves():
    (curve,) = [c for c in report_runs.growth()["curves"] if c["curve"] == "search"]
    return [{**curve, "backend": name} for name in NAMES[:6]]


def gallery_curves():
    """Sizes that lie close together and far beyond."""
    points = growth_curves()[0]["points"]
    sizes = ((1000, False), (10_000, False), (20_000, False), (40_000, False), (10**6, True), (10**8, True))
    moved = [{**points[0], "x": x, "y": 0.001 * x, "low": 0.001 * x, "high": 0.002 * x} for x, _ in sizes]
    moved = [{**p, "extrapolated": beyond} for p, (_, beyond) in zip(moved, sizes, strict=True)]
    return [{**curve, "points": moved} for curve in growth_curves()]


def roofline():
    found = report_runs.roofline()
    machine = {**found["machine"], "int8_gops": 905.0}
    return machine, [{**p, "int8_gop": p["gflop"]} for p in found["parts"]]


PLOTS = {
    "latency, linear": partial(latency_plot, latency_rows(3), "query, new image"),
    "latency, log": partial(latency_plot, latency_rows(40), "query, new image"),
    "recall": partial(recall_plot, evaluation()),
    "pareto, apart": partial(pareto_plot, tradeoffs(7.0), "query: p50 in milliseconds", "recall R@1 in %"),
    "pareto, together": partial(pareto_plot, tradeoffs(0.2), "query: p50 in milliseconds", "recall R@1 in %"),
    "load": partial(load_plot, report_runs.load()["server"], "by id"),
    "growth": partial(growth_plot, growth_curves(), "Search by gallery size"),
    "growth, close ticks": partial(growth_plot, gallery_curves(), "Search by gallery size"),
    "roofline": partial(roofline_plot, *roofline()),
}


@pytest.fixture(params=PLOTS, scope="module")
def figure(request):
    return PLOTS[request.param](LOOK)


def drawn_texts(figure):
    """Return every text that is drawn, with its box in pixels; of the ticks only those in view."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    ticks = [tick for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks() + axis.get_minor_ticks()]
    labels = {label for tick in ticks for label in (tick.label1, tick.label2)}
    shown = {tick.label1 for axis in (axes.xaxis, axes.yaxis) for tick in axis._update_ticks()}
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in labels - shown]
    return [(t.get_text(), t.get_window_extent()) for t in texts]


def test_no_two_texts_of_a_plot_meet(figure):
    meeting = [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(drawn_texts(figure), 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 0.5 and min(one.y1, other.y1) - max(one.y0, other.y0) > 0.5
    ]
    assert not meeting


def test_no_text_leaves_its_plot(figure):
    for text, box in drawn_texts(figure):
        assert figure.bbox.x0 - 1 <= box.x0, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0, text
        assert box.y1 <= figure.bbox.y1 + 1, text


def test_every_plot_says_its_units_and_its_samples(figure):
    said = " ".join(text for text, _ in drawn_texts(figure))
    assert any(unit in said for unit in ("millisecond", "recall in %", "R@1 in %", "queries a second", "a byte"))
    assert any(count in said for count in ("samples", "queries", "recall R@1"))


def test_the_overlap_test_sees_an_overlap():
    figure = PLOTS["pareto, apart"](LOOK)
    figure.axes[0].text(5.0, 88.0, "here", transform=figure.axes[0].transData)
    figure.axes[0].text(5.0, 88.0, "there", transform=figure.axes[0].transData)
    with pytest.raises(AssertionError):
        test_no_two_texts_of_a_plot_meet(figure)


def test_the_front_holds_those_that_none_beats_in_both():
    points = [Tradeoff(name, ms, r, 1, 1) for name, ms, r in (("a", 5, 80), ("b", 4, 70), ("c", 6, 75), ("d", 7, 90))]
    assert [p.name for p in pareto_front(points)] == ["b", "a", "d"]


def test_the_roofline_s_points_are_operations_over_bytes_and_over_time():
    part = {"gflop": 2.0, "mbytes": 8.0, "p50_ms": 10.0}
    assert intensity(part) == 250.0  # 2e9 operations over 8e6 bytes
    assert reached(part) == 200.0  # 2e9 operations in 10 ms


def test_rates_that_did_not_hold_are_hollow():
    figure = PLOTS["load"](LOOK)
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert faces.count("none") == 3
    assert len(faces) == 9


def test_extrapolated_points_are_hollow_and_dashed():
    figure = PLOTS["growth"](LOOK)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [list(line.get_xdata()) for line in hollow] == [[512]] * 6
    assert sum(line.get_linestyle() == "--" for line in figure.axes[0].lines) == 6


def test_a_contender_looks_the_same_in_every_plot():
    assert LOOK.colour("openvino") == Look(LIGHT, NAMES).colour("openvino") != LOOK.colour("pytorch-eager")
    assert LOOK.marker("openvino") == Look(DARK, NAMES).marker("openvino")


def test_svg_has_glyphs_as_outlines_and_is_the_same_every_time():
    text = svg(PLOTS["recall"](LOOK))
    assert "<text" not in text
    assert "<svg" in text
    assert text == svg(PLOTS["recall"](LOOK))
