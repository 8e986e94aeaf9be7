"""How search and memory grow with the gallery, measured where a gallery of that size is there, extrapolated beyond."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dra_bench.contenders.backend import Floats
from dra_bench.fresh import Stage
from dra_bench.gallery_cache import EXACT, KINDS, Collection
from dra_bench.gallery_search import NAMES, search_cells
from dra_bench.growth import Axes, Curve, Point, Step, by_law, extended, point, timed_curves
from dra_bench.laws import Kind, Law, fitted
from dra_bench.timing import Timings
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_index import EXACT_BELOW

SIZES = (1_000, 10_000, 25_000, 50_000, 100_000)  #: made where they aren't in the cache
CACHED = (300_000, 1_000_000, 3_000_000, 10_000_000)  #: measured only where they are in the cache
BEYOND = (1_000_000, 10_000_000, 100_000_000)  #: extrapolated where they weren't measured
MEMORY_SHARE = 0.5  #: of the free memory that all galleries may fill: beyond, the disk would be measured
X = "items in the gallery"
MEMORY = "memory of a process that answers"
# An exact search reads every row. What an index reads grows less than that: a power of the size, by what is measured.
LAWS: Mapping[str, Kind] = {"float32": "linear", "float16": "linear", "flat": "linear", "hnsw": "power", "ivf": "power"}
LAST = "more answers"  #: the stage of the probe whose memory counts
BEFORE = "bundle open"
NORM_BYTES = 4
ID_BYTES = 8  #: where an id begins

Key = tuple[int, str]  #: items and variant


def chosen_sizes(
    asked: Sequence[int], variants: Sequence[str], collections: Mapping[int, Collection], available: float | None
) -> tuple[list[Key], list[Key]]:
    """Return which galleries to measure, and which of them are left out because memory doesn't hold them beside others.

    ``asked`` are made where they aren't there; others are taken where the cache has them. ``available`` is in bytes.
    """
    wanted = [(items, variant) for items in sorted(collections) for variant in variants]
    there = [k for k in wanted if k[0] in asked or collections[k[0]].path(k[1]).is_file()]
    fits: list[Key] = []
    total = 0
    for key in there:
        total += resident_bytes(*key, collections[key[0]])
        if available is None or total < MEMORY_SHARE * available:
            fits.append(key)
    return fits, [k for k in there if k not in fits]


def resident_bytes(items: int, variant: str, collection: Collection) -> int:
    """Return about how much memory searching fills: the vectors, twice for ivf, which keeps a copy of its own."""
    return items * collection.encoder.dim * (2 if variant in ("float16", "flat", "hnsw") else 4)


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Return the bytes of memory that are free or can be freed; None outside Linux."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        (line,) = [line for line in lines if line.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024.0
    except (OSError, ValueError):
        return None


def gallery_steps(galleries: Mapping[Key, Gallery], queries: Floats) -> list[Step]:
    """List one query a call in each gallery, the next query in each round."""
    steps = []
    for (items, variant), gallery in galleries.items():
        (cell,) = search_cells({NAMES[variant]: gallery}, queries)
        steps.append(Step(items, items, cell))
    return steps


def search_curves(steps: Sequence[Step], timings: Timings, beyond: Sequence[int] = BEYOND) -> list[Curve]:
    """Make the curves of searching, one a variant.

    Up to 10,000 items an index isn't asked, so that what it costs is fitted to larger galleries.
    """
    axes = Axes("one query by the gallery's size", X, "ms a query")
    kinds = {NAMES[variant]: law for variant, law in LAWS.items()}
    least = {NAMES[kind]: float(EXACT_BELOW) for kind in KINDS}
    return timed_curves("search", steps, timings, axes, lambda _, ns: ns / 1e6, kinds, beyond, least)


def memory_curves(
    runs: Mapping[Key, Sequence[Sequence[Stage]]], collections: Mapping[int, Collection], beyond: Sequence[int] = BEYOND
) -> list[Curve]:
    """Make the curves of a process's resident memory after its answers, and beside exact ones what a formula says.

    Of galleries with an index a line is fitted, to sizes at which it is asked. What an exact gallery takes is known:
    the formula is extended in its place, because small galleries also fill buffers that large ones share.
    """
    axes = Axes(MEMORY, X, "MB resident")
    points: dict[str, list[Point]] = {}
    for (items, variant), found in sorted(runs.items()):
        resident = np.array([_stage(stages, LAST).memory["resident_mb"] for stages in found])
        points.setdefault(variant, []).append(point(items, resident))
    before = float(np.median([_stage(run, BEFORE).memory["resident_mb"] for found in runs.values() for run in found]))
    curves = []
    for variant in (name for name in NAMES if name in points):
        measured, law = points[variant], None
        if variant in KINDS and any(x > measured[-1].x for x in beyond):
            law = fitted("linear", [p.x for p in measured], [p.y for p in measured], EXACT_BELOW)
        name = NAMES[variant]
        extrapolated = extended(measured, law, beyond)
        curves.append(Curve("memory", axes.title, "search", X, axes.y, name, extrapolated, law))
        if variant in EXACT:
            curves.append(_formula(variant, before, [*(p.x for p in measured), *beyond], collections))
    return curves


def _formula(variant: str, before: float, xs: Iterable[float], collections: Mapping[int, Collection]) -> Curve:
    """Say what a gallery's file holds for each item, on top of a process that has opened the bundle alone."""
    items = max(collections)
    dim, width = collections[items].encoder.dim, 4 if variant == "float32" else 2
    item = width * dim + NORM_BYTES + ID_BYTES + len(f"item-{'0' * len(str(items))}")
    formula = f"{before:.0f} MB + x * ({width} * {dim} + {item - width * dim}) bytes"
    law = Law("linear", before, item / 1e6, 0.0, ())
    points = tuple(by_law(law, x) for x in sorted(set(xs)))
    name = f"formula, {NAMES[variant]}"
    return Curve("memory", MEMORY, "search", X, "MB resident", name, points, formula)


def _stage(stages: Sequence[Stage], name: str) -> Stage:
    return next(stage for stage in stages if stage.name == name)
