"""How a cost grows: measured points with their spread, extrapolated ones hollow and dashed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dra_bench.report.plots.style import Look, legend, new_axes, samples_text, set_log, short_number


def growth_plot(curves: Sequence[Mapping[str, Any]], title: str, look: Look) -> Figure:
    """Draw the curves that share their title, part and axes, a line a contender."""
    palette = look.palette
    labels = [curve["backend"] for curve in curves]
    points = [point for curve in curves for point in curve["points"]]
    figure, axes = new_axes(palette, 2.9 + 0.17 * len(labels))
    is_log = (
        set_log(axes, "x", [p["x"] for p in points]),
        set_log(axes, "y", [v for p in points for v in (p["low"], p["y"], p["high"])]),
    )
    xs = sorted({p["x"] for p in points})
    if len(xs) <= (8 if is_log[0] else 4) and _are_apart(xs, is_log[0]):
        axes.set_xticks(xs, [short_number(x) for x in xs])
    if not is_log[1]:
        axes.set_ylim(0, max(p["high"] for p in points) * 1.08)
    handles: list[Artist] = [_draw(axes, curve, look) for curve in curves]
    if any(point["extrapolated"] for point in points):
        labels = [*labels, "hollow, dashed: extrapolated"]
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": palette.muted}
        handles.append(Line2D([], [], color=palette.muted, linestyle="--", marker="o", **hollow))
    axes.set_title(title, color=palette.ink, fontsize=9.5, loc="left")
    counts = samples_text((p["samples"] for p in points if not p["extrapolated"]), "point")
    axes.set_xlabel(f"{curves[0]['x']}{', log scale' if is_log[0] else ''}\n{counts}; bars: spread")
    axes.set_ylabel(f"{curves[0]['y']}{', log scale' if is_log[1] else ''}")
    legend(figure, palette, handles, labels)
    return figure


def _are_apart(xs: Sequence[float], is_log: bool) -> bool:
    """Tell whether a tick at each x leaves room for their labels."""
    at = [math.log(x) if is_log else x for x in xs]
    return len(xs) > 1 and min(b - a for a, b in pairwise(at)) >= 0.09 * (at[-1] - at[0])


def _draw(axes: Axes, curve: Mapping[str, Any], look: Look) -> Line2D:
    """Draw one curve; the extrapolated points hang on its last measured one."""
    colour, marker = look.colour(curve["backend"]), look.marker(curve["backend"])
    points = sorted(curve["points"], key=lambda p: float(p["x"]))
    measured = [p for p in points if not p["extrapolated"]]
    beyond = [p for p in points if p["extrapolated"]]
    x, y = [p["x"] for p in measured], [p["y"] for p in measured]
    spread = [[p["y"] - p["low"] for p in measured], [p["high"] - p["y"] for p in measured]]
    axes.errorbar(x, y, [[max(v, 0) for v in side] for side in spread], fmt="none", ecolor=colour, elinewidth=1)
    (line,) = axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.5)
    if beyond:
        tail = [*measured[-1:], *beyond]
        axes.plot([p["x"] for p in tail], [p["y"] for p in tail], color=colour, linestyle="--", linewidth=1.2)
        hollow: dict[str, Any] = {
            "markerfacecolor": "none",
            "markeredgecolor": colour,
            "linestyle": "none",
            "markersize": 5.5,
        }
        axes.plot([p["x"] for p in beyond], [p["y"] for p in beyond], marker=marker, **hollow)
    return line
