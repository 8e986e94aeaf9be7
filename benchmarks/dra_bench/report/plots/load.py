"""p99 against the rate of queries, with the limit as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dra_bench.figures import milliseconds
from dra_bench.load.tables import rate
from dra_bench.report.plots.style import Look, legend, new_axes, set_log


def load_plot(server: Sequence[Mapping[str, Any]], title: str, look: Look) -> Figure:
    """Draw every rate that was tried: filled where p99 held the limit, hollow where it did not."""
    palette, limit_ms = look.palette, server[0]["limit_ms"]
    attempts = [attempt for row in server for attempt in row["attempts"]]
    figure, axes = new_axes(palette, 2.9 + 0.17 * (len(server) + 1))
    rates = [a["queries_per_second"] for a in attempts]
    logs = set_log(axes, "x", rates), set_log(axes, "y", [limit_ms, *(a["p99_ms"] for a in attempts)])
    if not logs[1]:
        axes.set_ylim(0, 1.15 * max(limit_ms, *(a["p99_ms"] for a in attempts)))
    for row in server:
        colour, marker = look.colour(row["backend"]), look.marker(row["backend"])
        tried = sorted(row["attempts"], key=lambda a: float(a["queries_per_second"]))
        axes.plot([a["queries_per_second"] for a in tried], [a["p99_ms"] for a in tried], color=colour, linewidth=1)
        for a in tried:
            face = colour if a["held"] else "none"
            style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": colour, "markersize": 5.5}
            axes.plot(a["queries_per_second"], a["p99_ms"], marker=marker, **style)
    axes.axhline(limit_ms, color=palette.warn, linewidth=1.2, linestyle=":")
    axes.set_title(f"server, {title}", color=palette.ink, fontsize=9.5, loc="left")
    queries = sorted({a["queries"] for a in attempts})
    asked = f"{queries[0]} to {queries[-1]}" if len(queries) > 1 else f"{queries[0]}"
    scale = ", log scale" if logs[0] else ""
    axes.set_xlabel(f"queries a second{scale}; {asked} queries a point\nhollow: not held, p99 is at least that")
    axes.set_ylabel(f"p99 in milliseconds{', log scale' if logs[1] else ''}")
    handles = [Line2D([], [], color=look.colour(r["backend"]), marker=look.marker(r["backend"])) for r in server]
    names = [f"{row['backend']}: holds {rate(row['queries_per_second'])}/s" for row in server]
    handles.append(Line2D([], [], color=palette.warn, linestyle=":"))
    names.append(f"the limit: {milliseconds(limit_ms)} ms")
    legend(figure, palette, handles, names)
    return figure
