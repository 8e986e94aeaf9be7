"""Search in large galleries: how long one query takes, what an index misses, and what memory each needs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dra_bench.contenders.backend import Floats
from dra_bench.figures import milliseconds, times
from dra_bench.fresh import Stage, summary
from dra_bench.timing import Cell, Timings, percentiles_ms, speedup
from dra_runtime.console import table
from dra_runtime.gallery import Gallery

K = 10  #: answers a query
RECALL_BATCH = 64
REFERENCE = "float32"

NAMES = {
    "float32": "exact, float32",
    "float16": "exact, half",
    "flat": "flat index, half",
    "hnsw": "HNSW index, half",
    "ivf": "IVF index, half",
}


def search_cells(galleries: Mapping[str, Gallery], queries: Floats) -> list[Cell]:
    """List what is timed: one query a call in each gallery, the next query in each round."""
    return [Cell(name, "search", 1, None, _next_query(gallery, queries)) for name, gallery in galleries.items()]


def recall_against(exact: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Return the mean share of each query's exact answers that were found."""
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(exact, found, strict=True)]
    return round(float(np.mean(shares)), 5)


def answers(gallery: Gallery, queries: Floats, advance: Callable[[int], None]) -> list[list[str]]:
    """Return the ids of the ten answers of every query."""
    ids: list[list[str]] = []
    for start in range(0, len(queries), RECALL_BATCH):
        part = queries[start : start + RECALL_BATCH]
        ids += [[hit.id for hit in hits] for hits in gallery.search_vectors(part, K)]
        advance(len(part))
    return ids


def search_rows(
    timings: Timings,
    recalls: Mapping[str, float],
    memories: Mapping[str, Sequence[Sequence[Stage]]],
    paths: Mapping[str, Path],
    built: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Put together what was measured of each gallery, in plain values."""
    columns = dict(zip((cell.backend for cell in timings.cells), timings.samples_ns.T, strict=True))
    rows = []
    for name, samples in columns.items():
        ratio = speedup(columns[REFERENCE], samples)
        stages = {stage["stage"]: stage for stage in summary(memories[name])}
        last = stages["more answers"]
        rows.append(
            {
                "search": name,
                **percentiles_ms(samples),
                "samples": len(samples),
                "times_as_fast": ratio.value,
                "interval": [ratio.low, ratio.high],
                "recall_at_10": recalls[name],
                "file_mb": round(paths[name].stat().st_size / 1e6, 1),
                "open_ms": stages["gallery open, sizes checked"]["own_ms"],
                "open_hash_ms": stages["gallery open, hash checked"]["own_ms"],
                "first_answer_ms": stages["first answer"]["own_ms"],
                "resident_mb": last["resident_mb"]["median"],
                "anonymous_mb": last["anonymous_mb"]["median"],
                "before_mb": stages["bundle open"]["resident_mb"]["median"],
                "runs": last["runs"],
                "built": dict(built[name]),
            }
        )
    return rows


def raw_samples(timings: Timings) -> dict[str, list[float]]:
    """Return every sample in milliseconds; the n-th samples of all galleries are of one round and one query."""
    return {
        cell.backend: [round(float(ns) / 1e6, 4) for ns in samples]
        for cell, samples in zip(timings.cells, timings.samples_ns.T, strict=True)
    }


SEARCH_HEADER = ("search", "items", "p50 ms", "p90 ms", "samples", "against exact float32", "recall@10 %")


def search_table(sizes: Iterable[Mapping[str, Any]]) -> str:
    """Lay out how long one query takes and what is found, for all sizes."""
    return table(SEARCH_HEADER, (cells for size in sizes for cells in _search_cells(size)))


COST_HEADER = (
    "gallery",
    "items",
    "file MB",
    "open ms",
    "open, hash compared ms",
    "first answer ms",
    "resident MB",
    "of it anonymous MB",
    "runs",
    "index built in",
)


def cost_table(sizes: Iterable[Mapping[str, Any]]) -> str:
    """Lay out what each gallery costs: disk, time to open, memory, time to build."""
    return table(COST_HEADER, (cells for size in sizes for cells in _cost_cells(size)))


def _search_cells(size: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for row in size["rows"]:
        low, high = row["interval"]
        yield (
            NAMES[row["search"]],
            f"{size['items']:,}",
            milliseconds(row["p50_ms"]),
            milliseconds(row["p90_ms"]),
            str(row["samples"]),
            "" if row["search"] == REFERENCE else f"{times(row['times_as_fast'])} ({times(low)} to {times(high)})",
            f"{100 * row['recall_at_10']:.2f}",
        )


def _cost_cells(size: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    for row in size["rows"]:
        built = row["built"]
        yield (
            NAMES[row["search"]],
            f"{size['items']:,}",
            f"{row['file_mb']:.0f}",
            *(milliseconds(row[key]["median"]) for key in ("open_ms", "open_hash_ms", "first_answer_ms")),
            f"{row['resident_mb']:.0f}",
            f"{row['anonymous_mb']:.0f}",
            str(row["runs"]),
            f"{built['report']['seconds']:.0f} s, {built['threads']} threads" if built else "",
        )


def _next_query(gallery: Gallery, queries: Floats) -> Callable[[], object]:
    rows = itertools.cycle(range(len(queries)))

    def search() -> object:
        row = next(rows)
        return gallery.search_vectors(queries[row : row + 1], K)

    return search
