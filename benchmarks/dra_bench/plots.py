"""The report's plots, as SVG text in a light and a dark palette."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dra_bench.backends import PYTORCH
from dra_bench.figures import milliseconds, percent, recall_name
from dra_bench.latency import LABELS


@dataclass(frozen=True)
class Palette:
    """Colours of a plot: text and axes, then the bars from the one that matters to the ones beside it."""

    ink: str
    muted: str
    bars: tuple[str, str, str]


LIGHT = Palette("#17212b", "#5f6c78", ("#12854a", "#8a97a4", "#c3ccd4"))
DARK = Palette("#e6ebf0", "#9aa7b3", ("#3fbf7f", "#7f8d9a", "#4d5965"))

PARTS = ("image", "text", "compose", "query", "query_by_id")


def latency_plot(rows: Sequence[Mapping[str, Any]], palette: Palette) -> str:
    """Draw p50 bars with a line up to p90, the bundle beside PyTorch eager, batch 1; returns SVG."""
    pairs = [(part, *_pair(rows, part)) for part in PARTS]
    longest = max(row["p90_ms"] for _, *both in pairs for row in both if row)
    with _axes(palette, 5.6, 0.56 * len(pairs) + 0.9) as (figure, axes):
        for i, (_, pytorch, bundle) in enumerate(pairs):
            for row, offset, colour in ((bundle, -0.19, palette.bars[0]), (pytorch, 0.19, palette.bars[1])):
                if row is None:
                    continue
                y, p50, p90 = i + offset, row["p50_ms"], row["p90_ms"]
                axes.barh(y, p50, height=0.34, color=colour)
                axes.plot([p50, p90], [y, y], color=palette.ink, linewidth=1.4)
                axes.plot([p90, p90], [y - 0.09, y + 0.09], color=palette.ink, linewidth=1.4)
                axes.text(p90 + longest * 0.012, y, milliseconds(p50), va="center", color=palette.ink, fontsize=9)
        axes.set_yticks(range(len(pairs)), [LABELS[part] for part, *_ in pairs])
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.12)
        axes.set_xlabel("milliseconds (bar: p50, line: up to p90)")
        counts = sorted({row["samples"] for _, *both in pairs for row in both if row})
        samples = " to ".join(str(c) for c in dict.fromkeys((counts[0], counts[-1])))
        names = (next((b["backend"] for _, _, b in pairs if b), "bundle"), PYTORCH)
        _legend(figure, palette, [f"{name}, {samples} samples a bar" for name in names], palette.bars)
        return _svg(figure)


def recall_plot(evaluation: Mapping[str, Any], palette: Palette) -> str:
    """Draw recall at each K of the composed query, the image alone and the text alone; returns SVG."""
    ks = [k for k in evaluation["metrics"] if k.startswith("R@")]
    series = {"composed query": evaluation["metrics"]}
    series |= {name.replace("_", " "): metrics for name, metrics in evaluation["baselines"].items()}
    with _axes(palette, 5.2, 3.1) as (figure, axes):
        axes.set_title(f"{evaluation['dataset']} / {evaluation['split']}", color=palette.ink, fontsize=10, loc="left")
        for j, (metrics, colour) in enumerate(zip(series.values(), palette.bars, strict=False)):
            for i, k in enumerate(ks):
                x = i + (j - 1) * 0.28
                axes.bar(x, metrics[k], width=0.26, color=colour)
                axes.text(x, metrics[k] + 1.5, percent(metrics[k]), ha="center", color=palette.ink, fontsize=8)
        axes.set_xticks(range(len(ks)), ks)
        axes.set_ylim(0, 112)
        axes.set_yticks(range(0, 101, 25))
        axes.set_ylabel(f"{recall_name(evaluation['dataset'])} in %")
        _legend(figure, palette, list(series), palette.bars)
        return _svg(figure)


def _pair(rows: Sequence[Mapping[str, Any]], part: str) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """Return PyTorch's and the bundle's row of a part at batch 1; PyTorch's with its longest text."""
    mine = [r for r in rows if r["part"] == part and r["batch"] == 1]
    pytorch = sorted((r for r in mine if r["backend"] == PYTORCH), key=lambda r: -(r["text_tokens"] or 0))
    bundle = [r for r in mine if r["backend"] != PYTORCH]
    return (pytorch[0] if pytorch else None), (bundle[0] if bundle else None)


@contextmanager
def _axes(palette: Palette, width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    # Glyphs as outlines: the page looks the same without fonts. A fixed salt: the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "dra", "font.size": 10}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(palette.muted)
        axes.tick_params(colors=palette.muted, labelcolor=palette.ink)
        axes.xaxis.label.set_color(palette.muted)
        axes.yaxis.label.set_color(palette.muted)
        yield figure, axes


def _legend(figure: Figure, palette: Palette, names: Sequence[str], colours: Sequence[str]) -> None:
    handles = [Patch(color=colour) for colour in colours[: len(names)]]
    options = {"ncols": len(names), "frameon": False, "labelcolor": palette.ink, "fontsize": 9}
    figure.legend(handles, names, loc="outside upper left", **options)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()
