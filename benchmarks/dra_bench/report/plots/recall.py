"""Bars of recall at each K: the composed query beside half a query."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dra_bench.figures import percent, recall_name
from dra_bench.report.plots.style import Look, legend, new_axes


def recall_plot(evaluation: Mapping[str, Any], look: Look) -> Figure:
    """Draw recall at each K of the composed query, the image alone and the text alone."""
    palette = look.palette
    ks = [k for k in evaluation["metrics"] if k.startswith("R@")]
    series = {"composed query": evaluation["metrics"]}
    series |= {name.replace("_", " "): metrics for name, metrics in evaluation["baselines"].items()}
    figure, axes = new_axes(palette, 2.9)
    title = f"{evaluation['dataset']} / {evaluation['split']}, {evaluation['queries']} queries"
    axes.set_title(title, color=palette.ink, fontsize=9.5, loc="left")
    for j, (metrics, colour) in enumerate(zip(series.values(), palette.bars, strict=False)):
        for i, k in enumerate(ks):
            x = i + (j - 1) * 0.28
            axes.bar(x, metrics[k], width=0.26, color=colour)
            axes.text(x, metrics[k] + 1.5, percent(metrics[k]), ha="center", color=palette.ink, fontsize=7)
    axes.set_xticks(range(len(ks)), ks)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel(f"{recall_name(evaluation['dataset'])} in %")
    legend(figure, palette, [Patch(color=colour) for colour in palette.bars[: len(series)]], list(series))
    return figure
