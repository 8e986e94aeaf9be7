"""Percentiles of latency, a line a contender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dra_bench.figures import milliseconds
from dra_bench.report.plots.style import SMALL, Look, new_axes, samples_text, set_log

TAIL = ("p90_ms", "p95_ms")  #: drawn as ticks where the row has them


def latency_plot(mine: Sequence[Mapping[str, Any]], title: str, look: Look) -> Figure:
    """Draw p50, p90, p95 and p99 of a part's rows, one below the other."""
    palette = look.palette
    figure, axes = new_axes(palette, 0.4 * len(mine) + 1.0)
    values = [row[key] for row in mine for key in ("p50_ms", "p99_ms")]
    is_log = set_log(axes, "x", values)
    axes.set_xlim(*((min(values) / 1.15, max(values) * 1.15) if is_log else (0, max(values) * 1.04)))
    for i, row in enumerate(mine):
        y, colour = i + 0.2, look.colour(row["backend"])
        axes.plot([row["p50_ms"], row["p99_ms"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        for key in TAIL:
            if key in row:
                axes.plot([row[key]] * 2, [y - 0.12, y + 0.12], color=colour, linewidth=1.4)
        axes.plot(row["p50_ms"], y, marker="o", markersize=6.5, color=colour)
        ring: dict[str, Any] = {
            "markersize": 5,
            "markerfacecolor": "none",
            "markeredgecolor": colour,
            "markeredgewidth": 1.4,
        }
        axes.plot(row["p99_ms"], y, marker="o", **ring)
        at: dict[str, Any] = {
            "transform": axes.get_yaxis_transform(),
            "color": palette.ink,
            "fontsize": SMALL,
            "va": "center",
        }
        axes.text(0, i - 0.22, f" {contender(row, mine)}", ha="left", **at)
        axes.text(1, i - 0.22, f"{milliseconds(row['p50_ms'])} ms", ha="right", **at)
    axes.set_ylim(len(mine) - 0.45, -0.55)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{title}, batch 1", color=palette.ink, fontsize=9.5, loc="left")
    ticks = ", ".join(key.removesuffix("_ms") for key in TAIL if any(key in row for row in mine))
    scale = ", log scale" if is_log else ""
    counts = samples_text((row["samples"] for row in mine), "row")
    axes.set_xlabel(f"milliseconds{scale}; {counts}\ndot and figure p50, ticks {ticks}, ring p99")
    return figure


def contender(row: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """Name a row's contender, with its text's length where the contenders' differ."""
    lengths = {r["text_tokens"] for r in among}
    tokens = f", {row['text_tokens']} text tokens" if len(lengths) > 1 and row["text_tokens"] is not None else ""
    return f"{row['backend']}{tokens}"
