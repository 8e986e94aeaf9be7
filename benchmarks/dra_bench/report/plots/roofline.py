"""How far each part is from what the machine can do: Williams, Waterman and Patterson's roofline (2009)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dra_bench.latency import LABELS
from dra_bench.report.plots.style import Look, legend, new_axes, place_labels, samples_text, set_log

MOST_POINTS = 12  #: above that only the smallest batch is drawn; the table has all


def roofline_plot(machine: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], look: Look) -> Figure:
    """Draw the machine's lines and the parts as points: operations a second reached against operations a byte."""
    palette = look.palette
    if len(parts) > MOST_POINTS:
        parts = [p for p in parts if p["batch"] == min(q["batch"] for q in parts)]
    names = list(dict.fromkeys(p["backend"] for p in parts))
    bandwidth = machine["gbytes_per_second"]
    peaks = [("GFLOP/s", machine["gflops"])]
    if machine.get("int8_gops") and any(part.get("int8_gop") for part in parts):
        peaks.append(("GOP/s in INT8", machine["int8_gops"]))
    knees = [peak / bandwidth for _, peak in peaks]
    low, high = (min(*map(intensity, parts), *knees) / 3, max(*map(intensity, parts), *knees) * 3)
    bottom, top = (min(map(reached, parts)) / 2.5, max(*map(reached, parts), *(peak for _, peak in peaks)))
    figure, axes = new_axes(palette, 3.3 + 0.17 * (len(names) + 1))
    set_log(axes, "x", [low, 200 * low, high])
    set_log(axes, "y", [bottom, 200 * bottom, top])
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top * 2.6)
    handles: list[Artist] = [Line2D([], [], color=palette.muted, linewidth=1.4)]
    machine_lines = [([low, max(knees)], [low * bandwidth, max(knees) * bandwidth])]
    for (_, peak), knee in zip(peaks, knees, strict=True):
        machine_lines.append(([knee, high], [peak, peak]))
    for x, y in machine_lines:
        axes.plot(x, y, color=palette.muted, linewidth=1.4)
    for part in parts:
        style: dict[str, Any] = {"color": look.colour(part["backend"]), "marker": look.marker(part["backend"])}
        axes.plot(intensity(part), reached(part), markersize=6.5, **style)
    axes.set_xlabel(f"arithmetic intensity: operations a byte, log scale\n{_counts(parts)}")
    axes.set_ylabel("billion operations a second, log scale")
    handles += [Line2D([], [], color=look.colour(n), marker=look.marker(n), linestyle="none") for n in names]
    limits = ", ".join(f"{peak:.0f} {unit}" for unit, peak in peaks)
    legend(figure, palette, handles, [f"limits: {bandwidth:.1f} GB/s, {limits}", *names], columns=1)
    labels = [(intensity(p), reached(p), _label(p, parts)) for p in parts]
    place_labels(axes, palette, labels, _along(machine_lines))
    return figure


def intensity(part: Mapping[str, Any]) -> float:
    """Return how many operations a part does a byte that it reads or writes."""
    return float(1000 * part["gflop"] / part["mbytes"])


def reached(part: Mapping[str, Any]) -> float:
    """Return the GFLOP/s that a part reached at its p50."""
    return float(1000 * part["gflop"] / part["p50_ms"])


def _along(lines: Iterable[tuple[Sequence[float], Sequence[float]]]) -> list[tuple[float, float]]:
    """Return points along lines between two points each, evenly on logarithmic axes."""
    dense = [(np.geomspace(x[0], x[1], 60), np.geomspace(y[0], y[1], 60)) for x, y in lines]
    return [(float(a), float(b)) for xs, ys in dense for a, b in zip(xs, ys, strict=True)]


def _counts(parts: Sequence[Mapping[str, Any]]) -> str:
    return samples_text((p["samples"] for p in parts), "point")


def _label(part: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    batch = f" ({part['batch']})" if len({p["batch"] for p in among}) > 1 else ""
    return f"{LABELS.get(part['part'], part['part'])}{batch}"
