"""Throughput of batches: items a second of each bundle, against the fastest of PyTorch's ways."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_bench.contenders.backend import PYTORCH
from dra_bench.figures import times
from dra_bench.latency import LABELS
from dra_bench.timing import Timings, speedup
from dra_runtime.console import table


def throughput_rows(timings: Timings, bundles: Collection[str]) -> list[dict[str, Any]]:
    """Compare the batches of every bundle with PyTorch's best, in plain values; none where PyTorch takes no part.

    The best is the way with the least median: contiguous or channels last, texts padded or cut.
    """
    columns = dict(zip(timings.cells, timings.samples_ns.T, strict=True))
    rows = []
    for cell, samples in columns.items():
        if cell.batch == 1 or cell.backend not in bundles:
            continue
        ways = {
            other: other_samples
            for other, other_samples in columns.items()
            if other.backend.startswith(PYTORCH) and (other.part, other.batch) == (cell.part, cell.batch)
        }
        if not ways:
            continue
        best = min(ways, key=lambda way: float(np.median(ways[way])))
        ratio = speedup(ways[best], samples)
        rows.append(
            {
                "part": cell.part,
                "backend": cell.backend,
                "batch": cell.batch,
                "items_per_second": _items_per_second(cell.batch, samples),
                "pytorch_best": {
                    "backend": best.backend,
                    "text_tokens": best.text_tokens,
                    "items_per_second": _items_per_second(best.batch, ways[best]),
                },
                "times_as_fast": ratio.value,
                "interval": [ratio.low, ratio.high],
                "samples": len(samples),
            }
        )
    return rows


THROUGHPUT_HEADER = (
    "part",
    "bundle",
    "batch",
    "items a second",
    "PyTorch's best",
    "its items a second",
    "throughput against it",
    "95 % interval",
    "samples",
)


def throughput_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay the comparison out for people."""
    return table(THROUGHPUT_HEADER, (_cells(row) for row in rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    best = row["pytorch_best"]
    tokens = "" if best["text_tokens"] is None else f", {best['text_tokens']} tokens"
    low, high = row["interval"]
    return (
        LABELS[row["part"]],
        row["backend"],
        str(row["batch"]),
        f"{row['items_per_second']:.1f}",
        f"{best['backend']}{tokens}",
        f"{best['items_per_second']:.1f}",
        times(row["times_as_fast"]),
        f"{times(low)} to {times(high)}",
        str(row["samples"]),
    )


def _items_per_second(batch: int, samples_ns: npt.NDArray[np.int64]) -> float:
    return round(float(1e9 * batch / np.median(samples_ns)), 2)
