"""Recall against latency: what each artifact gives and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from dra_bench.report.plots.style import Look, new_axes, place_labels, set_log


@dataclass(frozen=True)
class Tradeoff:
    """One contender's recall and latency."""

    name: str
    p50_ms: float
    recall: float  #: R@1 in percent
    samples: int
    queries: int


def pareto_plot(points: Sequence[Tradeoff], x: str, y: str, look: Look) -> Figure:
    """Draw the contenders and the line along those that none beats in both; ``x`` and ``y`` are axis titles."""
    palette = look.palette
    figure, axes = new_axes(palette, 3.3)
    front = pareto_front(points)
    is_log = set_log(axes, "x", [p.p50_ms for p in points])
    axes.step([p.p50_ms for p in front], [p.recall for p in front], where="post", color=palette.muted, ls="--", lw=1)
    for point in points:
        axes.plot(point.p50_ms, point.recall, look.marker(point.name), color=look.colour(point.name), markersize=7)
    low, high = min(p.recall for p in points), max(p.recall for p in points)
    room = max(0.35 * (high - low), 0.25)
    axes.set_ylim(low - room, high + room)
    least, most = min(p.p50_ms for p in points), max(p.p50_ms for p in points)
    axes.set_xlim(*((least / 1.6, most * 2.2) if is_log else (0, most * 1.3)))
    axes.set_xlabel(f"{x}{', log scale' if is_log else ''}")
    axes.set_ylabel(y)
    place_labels(axes, palette, [(p.p50_ms, p.recall, p.name) for p in points])
    return figure


def pareto_front(points: Sequence[Tradeoff]) -> list[Tradeoff]:
    """Return the points that no other beats in both latency and recall, the fastest first."""
    front: list[Tradeoff] = []
    for point in sorted(points, key=lambda p: (p.p50_ms, -p.recall)):
        if not front or point.recall > front[-1].recall:
            front.append(point)
    return front
