"""Curves of how cost grows: what is measured at which x, and what a fitted law says beyond."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dra_bench.laws import Kind, Law, fitted
from dra_bench.timing import LEAST_SAMPLES, LEAST_WARMUP, Cell, Timings

Name = Literal["batch", "text", "search", "threads", "memory"]
CURVES: tuple[Name, ...] = ("batch", "text", "search", "threads", "memory")
SPREAD = (
    "y is the median of the samples, low and high are their quarter and three quarters; where extrapolated, the law's "
    "value, with its largest relative difference from the points that it was fitted to"
)
TOO_FEW = "a law needs three measured sizes of the last decade, for an index above 10,000 items; --items gives more"
LONGER = "would take longer than this curve's part of --seconds"


@dataclass(frozen=True)
class Step:
    """One call to time at one x; ``work`` says how much it does, which its cost grows with at most."""

    x: int
    work: float
    cell: Cell


@dataclass(frozen=True)
class Point:
    """One point of a curve; ``samples`` is 0 where it is extrapolated."""

    x: float
    y: float
    low: float
    high: float
    samples: int
    extrapolated: bool


@dataclass(frozen=True)
class Axes:
    """What curves are called, and their axes' titles with units."""

    title: str
    x: str
    y: str


@dataclass(frozen=True)
class Curve:
    """One contender's curve; ``x`` and ``y`` are the axes' titles with their units."""

    curve: Name
    title: str
    part: str
    x: str
    y: str
    backend: str
    points: tuple[Point, ...]
    law: Law | str | None = None  #: what its extrapolated points were made by; a text is a formula, fitted to nothing


@dataclass(frozen=True)
class Gap:
    """What was not measured, and why."""

    curve: Name
    part: str
    backend: str
    x: tuple[int, ...]
    reason: str

    def plain(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "x": list(self.x)}

    def words(self) -> str:
        """Say it in a line."""
        what = self.backend if self.curve in ("search", "memory") else f"{self.part}, {self.backend}"
        return f"{self.curve} curve: {what}, at {', '.join(f'{x:,}' for x in self.x)}: {self.reason}"


def affordable(
    steps: Sequence[Step], samples: int | None, seconds: float, clock: Callable[[], float] = time.monotonic
) -> tuple[list[Step], list[Step]]:
    """Part steps into those that fit into the time with enough samples, and those that don't; the cheapest come first.

    The first step of each contender's part is tried, and a later one where what the step before it took says that it
    may fit. Each is called twice and the second call counts: the first may open a graph.
    """
    most = seconds / (LEAST_WARMUP + (samples or LEAST_SAMPLES))  # of one round
    waiting: dict[tuple[str, str], list[Step]] = {}
    for step in sorted(steps, key=lambda s: s.x):
        waiting.setdefault((step.cell.backend, step.cell.part), []).append(step)
    expected = {who: _cost(series[0], clock) for who, series in waiting.items()}
    known = set(expected)
    kept: list[Step] = []
    total = 0.0
    while waiting:
        who = min(waiting, key=lambda w: expected[w])
        if total + expected[who] > most:
            break
        step = waiting[who][0]
        if who not in known:
            known.add(who)
            expected[who] = _cost(step, clock)
            continue
        kept.append(step)
        total += expected[who]
        known.discard(who)
        if len(waiting[who]) > 1:
            expected[who] *= waiting[who][1].work / step.work
            waiting[who] = waiting[who][1:]
        else:
            del waiting[who]
    return [s for s in steps if s in kept], [s for s in steps if s not in kept]


def point(x: float, values: NDArray[np.float64]) -> Point:
    """Make a measured point of its samples."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return Point(x, _rounded(middle), _rounded(low), _rounded(high), len(values), False)


def extended(points: Sequence[Point], law: Law | None, xs: Iterable[float]) -> tuple[Point, ...]:
    """Add what a law says at ``xs``, each marked as extrapolated; nothing where there is no law."""
    beyond = [] if law is None else [by_law(law, x) for x in xs if x > max(p.x for p in points)]
    return (*points, *beyond)


def by_law(law: Law, x: float) -> Point:
    """Return what a law says at x."""
    y = law.at(x)
    return Point(x, _rounded(y), _rounded(y * (1 - law.residual)), _rounded(y * (1 + law.residual)), 0, True)


def timed_curves(
    name: Name,
    steps: Sequence[Step],
    timings: Timings,
    axes: Axes,
    values: Callable[[Step, NDArray[np.int64]], NDArray[np.float64]],
    kinds: Mapping[str, Kind],
    beyond: Sequence[int] = (),
    least: Mapping[str, float] | None = None,
) -> list[Curve]:
    """Make one curve a contender and part.

    Parameters
    ----------
    name
        What the curves are of.
    steps, timings
        What was timed; the cells of ``timings`` are those of ``steps``.
    axes
        The titles.
    values
        Makes y of a step's nanoseconds.
    kinds
        The law that a backend's curve follows; of the others nothing is extrapolated.
    beyond
        x at which curves are extrapolated, as far as they were not measured there.
    least
        A backend's law is fitted to points beyond this x only.
    """
    grouped: dict[tuple[str, str], list[Point]] = {}
    for step, ns in zip(steps, timings.samples_ns.T, strict=True):
        grouped.setdefault((step.cell.part, step.cell.backend), []).append(point(step.x, values(step, ns)))
    curves = []
    for (part, backend), found in grouped.items():
        points = sorted(found, key=lambda p: p.x)
        kind, law = kinds.get(backend), None
        if kind is not None and any(x > points[-1].x for x in beyond):
            law = fitted(kind, [p.x for p in points], [p.y for p in points], (least or {}).get(backend, 0))
        curves.append(Curve(name, axes.title, part, axes.x, axes.y, backend, extended(points, law, beyond), law))
    return curves


def curve_json(curve: Curve) -> dict[str, Any]:
    """Return a curve in plain values."""
    law = curve.law
    said: dict[str, Any] | None = None
    if isinstance(law, str):
        said = {"kind": "formula", "formula": law, "largest_residual_percent": None, "fitted_over": []}
    elif law is not None:
        residual = round(100 * law.residual, 1)
        said = {"kind": law.kind, "formula": law.formula("x"), "largest_residual_percent": residual}
        said["fitted_over"] = list(law.over)
    return {**asdict(curve), "points": [asdict(p) for p in curve.points], "law": said}


def gaps(name: Name, dropped: Sequence[Step], curves: Sequence[Curve]) -> list[Gap]:
    """Name the steps that took too long and that no law stands in for."""
    there = {(c.part, c.backend, p.x) for c in curves for p in c.points}
    missing: dict[tuple[str, str], list[int]] = {}
    for step in dropped:
        key = (step.cell.part, step.cell.backend)
        if (*key, step.x) not in there:
            missing.setdefault(key, []).append(step.x)
    return [Gap(name, part, backend, tuple(xs), LONGER) for (part, backend), xs in missing.items()]


def unextended(curves: Sequence[Curve], beyond: Sequence[int]) -> list[Gap]:
    """Name the curves that nothing could be extrapolated of, because they have too few points."""
    found = []
    for curve in curves:
        missing = tuple(x for x in beyond if x > max(p.x for p in curve.points))
        if missing:
            found.append(Gap(curve.curve, curve.part, curve.backend, missing, TOO_FEW))
    return found


def raw_samples(name: Name, steps: Sequence[Step], timings: Timings) -> list[dict[str, Any]]:
    """Return every sample in milliseconds; the n-th samples of a curve's steps are of one round."""
    return [
        {
            "curve": name,
            "part": step.cell.part,
            "backend": step.cell.backend,
            "x": step.x,
            "ms": [round(float(t) / 1e6, 4) for t in ns],
        }
        for step, ns in zip(steps, timings.samples_ns.T, strict=True)
    ]


def _cost(step: Step, clock: Callable[[], float]) -> float:
    step.cell.run()
    start = clock()
    step.cell.run()
    return clock() - start


def _rounded(value: float) -> float:
    return float(f"{float(value):.6g}")
