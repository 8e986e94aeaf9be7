"""What the plots share: palettes, axes, legends, log scales, and labels that stay clear of each other."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

WIDTH = 4.2  #: inches; a phone shows it hardly smaller than it is, so that its letters stay readable
SMALL = 8.5  #: points: labels inside a plot
LOG_FROM = 8.0  #: times that the largest value is the smallest, above which an axis is logarithmic
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "<", ">")
# Where a label may stand around its point, in points: nearest first.
PLACES = tuple(
    (dx, dy, ha, va)
    for far in (0, 9, 18, 30, 44, 60)
    for dx, dy, ha, va in (
        (7 + far, 0, "left", "center"),
        (-7 - far, 0, "right", "center"),
        (0, 7 + far, "center", "bottom"),
        (0, -7 - far, "center", "top"),
        (6 + far, 6 + far, "left", "bottom"),
        (6 + far, -6 - far, "left", "top"),
        (-6 - far, 6 + far, "right", "bottom"),
        (-6 - far, -6 - far, "right", "top"),
    )
)


@dataclass(frozen=True)
class Palette:
    """Colours of a plot: text, axes, the bars from the one that matters to the ones beside it, and series."""

    ink: str
    muted: str
    warn: str
    bars: tuple[str, str, str]
    series: tuple[str, ...]


LIGHT = Palette(
    "#17212b",
    "#5f6c78",
    "#b3261e",
    ("#12854a", "#8a97a4", "#c3ccd4"),
    ("#12854a", "#1f6fb4", "#b35c00", "#8e3fa8", "#5f6c78", "#b3261e", "#0f7f86", "#7a6a00", "#a8326e", "#3d4852"),
)
DARK = Palette(
    "#e6ebf0",
    "#9aa7b3",
    "#ff8a80",
    ("#3fbf7f", "#7f8d9a", "#4d5965"),
    ("#3fbf7f", "#6db3f2", "#f0a04b", "#cf8ee6", "#9aa7b3", "#ff8a80", "#4fc4cc", "#d3c04a", "#ee8ab8", "#c9d2da"),
)


@dataclass(frozen=True)
class Look:
    """A palette, and all contenders of the report, so that each has one colour and one marker in every plot."""

    palette: Palette
    names: tuple[str, ...] = ()

    def colour(self, name: str) -> str:
        """Return a contender's colour."""
        return self.palette.series[self._place(name) % len(self.palette.series)]

    def marker(self, name: str) -> str:
        """Return a contender's marker."""
        return MARKERS[self._place(name) % len(MARKERS)]

    def _place(self, name: str) -> int:
        return self.names.index(name) if name in self.names else len(self.names)


def new_axes(palette: Palette, height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return an empty figure of ``width`` by ``height`` inches and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.muted)
    axes.tick_params(which="both", colors=palette.muted, labelcolor=palette.ink, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(palette.muted)
        axis.label.set_fontsize(9)
    return figure, axes


def set_log(axes: Axes, which: Literal["x", "y"], values: Iterable[float]) -> bool:
    """Make an axis logarithmic where its values span much, with plain numbers at its ticks; returns whether it is."""
    positive = [v for v in values if v > 0]
    if not positive or max(positive) < LOG_FROM * min(positive):
        return False
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    steps = (1.0, 2.0, 5.0) if max(positive) < 200 * min(positive) else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    return True


def short_number(value: float) -> str:
    """Write a tick's value briefly, such as ``0.5``, ``200`` or ``2M``."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def legend(
    figure: Figure, palette: Palette, handles: Sequence[Artist], names: Sequence[str], columns: int | None = None
) -> None:
    """Put a legend above the plot, in as many columns as its longest name lets stand side by side."""
    longest = max((len(name) for name in names), default=0)
    figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=columns or max(1, min(len(names), 52 // (longest + 6))),
        frameon=False,
        labelcolor=palette.ink,
        fontsize=SMALL,
        handlelength=1.6,
        columnspacing=1.2,
        borderpad=0.1,
    )


def samples_text(counts: Iterable[int], unit: str) -> str:
    """Say how many samples there are, such as ``11 to 100 samples a point``."""
    ordered = sorted(set(counts))
    if not ordered:
        return ""
    found = f"{ordered[0]}" if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"
    return f"{found} {'sample' if ordered == [1] else 'samples'} a {unit}"


def place_labels(
    axes: Axes,
    palette: Palette,
    labels: Sequence[tuple[float, float, str]],
    keep_clear: Sequence[tuple[float, float]] = (),
) -> None:
    """Write a label beside each point (x, y in data), where it meets no other label, no point and no border.

    ``keep_clear``: points, in data, that labels would rather not cover. A label that has to go far gets a line
    to its point.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    inside = axes.get_window_extent()
    dots = [axes.transData.transform((x, y)) for x, y, _ in labels]
    taken = [Bbox.from_extents(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    lines = [Bbox.from_bounds(x - 1, y - 1, 2, 2) for x, y in map(axes.transData.transform, keep_clear)]
    for (x, y, text), _dot in zip(labels, dots, strict=True):
        at: dict[str, Any] = {"xytext": (0, 0), "textcoords": "offset points"}
        note = axes.annotate(text, (x, y), color=palette.ink, fontsize=SMALL, **at)
        note.set_in_layout(False)  # a label stays inside the axes: it must not move them
        best: tuple[float, Mapping[str, Any]] | None = None
        for dx, dy, ha, va in PLACES:
            place = {"position": (dx, dy), "ha": ha, "va": va}
            note.set(**place)
            box = note.get_window_extent().padded(1.5)
            cost = sum(_shared(box, other) for other in (*taken, *lines)) + 3 * (
                box.width * box.height - _shared(box, inside)
            )
            if best is None or cost < best[0] - 1e-6:
                best = (cost, place)
            if cost < 1e-6:
                break
        assert best is not None
        note.set(**best[1])
        taken.append(note.get_window_extent().padded(1.5))
        dx, dy = best[1]["position"]
        if max(abs(dx), abs(dy)) > 14:
            _leader(axes, palette, (x, y), (dx, dy))


def _leader(axes: Axes, palette: Palette, point: tuple[float, float], offset: tuple[float, float]) -> None:
    arrow: dict[str, Any] = {"arrowstyle": "-", "color": palette.muted, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
    line = axes.annotate("", point, xytext=offset, textcoords="offset points", arrowprops=arrow)
    line.set_in_layout(False)


def _shared(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share."""
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)


def svg(figure: Figure) -> str:
    """Write a figure as SVG text: glyphs as outlines, so that it looks the same whatever fonts there are."""
    text = io.StringIO()
    # A fixed salt: the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "dra"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    # Hundredths of a point are enough; six digits make the page half as large again.
    return re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), text.getvalue())
