"""How far each part is from what this machine can do: its arithmetic and bytes against measured peaks (a roofline).

Williams, Waterman and Patterson (2009): a part takes at least as long as its operations at the peak rate, and at least
as long as its bytes at the peak bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_bench.contenders.bundles import BundleEncoder
from dra_bench.figures import milliseconds
from dra_bench.graph_cost import Cost, graph_cost
from dra_bench.peaks import Peak, best_of
from dra_bench.timing import Cell, Timings, percentiles_ms, speedup
from dra_runtime.console import table

GRAPHS = {
    "image": ("image_encoder",),
    "text": ("text_encoder",),
    "compose": ("compositor",),
    "query": ("image_encoder", "text_encoder", "compositor"),
    "query_by_id": ("text_encoder", "compositor"),
}
UNITS = {"float32": "GFLOP/s", "int8": "GOP/s", "memory": "GB/s"}
RULES = (
    "A multiply-add is two operations; convolutions and matrix products are counted, what is elementwise is left out. "
    "Bytes: weights as the bundle's file holds them, each once a call, inputs and outputs; of the token embeddings the "
    "rows that are read. The limit is the longer of operations at the peak rate and bytes at the peak bandwidth; "
    "share_of_limit is that limit over the measured p50, as a ratio of medians of the same rounds."
)


def part_cost(counted: BundleEncoder, part: str, batch: int, tokens: int | None) -> Cost:
    """Count a part on a bundle's graphs, with token rows of length ``tokens``.

    An INT8 bundle runs texts and queries one by one, so that each reads the weights anew.
    """
    manifest = counted.encoder.bundle.manifest
    total = Cost()
    for graph in GRAPHS[part]:
        path = Path(counted.encoder.bundle.file(manifest.graphs[graph].file))
        alone = manifest.precision == "int8" and graph != "image_encoder"
        length = tokens if graph == "text_encoder" else None
        total += graph_cost(path, 1, length) * batch if alone else graph_cost(path, batch, length)
    return total


def search_cost(items: int, dim: int) -> Cost:
    """Count an exact search of one query: a product with every row, and each row read once, in float32."""
    return Cost(2.0 * items * dim, 0, 4.0 * items * dim)


def roofline(
    timings: Timings, costs: Mapping[Cell, Cost], found: Sequence[Peak]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare every part with the machine, both measured in the same rounds.

    Parameters
    ----------
    timings
        Of the parts' cells and the peaks' cells.
    costs
        What each part's cell has to do.
    found
        The peaks.

    Returns
    -------
    dict, list
        What the machine can do, and one row a part, in plain values.
    """
    columns = dict(zip(timings.cells, timings.samples_ns.T, strict=True))
    samples = [columns[peak.cell] for peak in found]
    medians = [float(np.median(ns)) for ns in samples]
    best = {kind: best_of(kind, found, medians) for kind in ("float32", "int8", "memory")}
    # Nanoseconds an operation or a byte takes at best, one value a round
    unit = {kind: samples[i] / found[i].amount for kind, i in best.items() if i is not None}
    machine = {
        "gflops": _rate(unit["float32"]),
        "int8_gops": _rate(unit["int8"]) if "int8" in unit else None,
        "gbytes_per_second": _rate(unit["memory"]),
        "samples": len(timings.samples_ns),
        "measured_by": [
            _peak_row(peak, ns, i in best.values()) for i, (peak, ns) in enumerate(zip(found, samples, strict=True))
        ],
    }
    rows = [_row(cell, cost, columns[cell], unit) for cell, cost in costs.items()]
    return machine, rows


def _row(cell: Cell, cost: Cost, ns: NDArray[np.int64], unit: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    compute = cost.float_ops * unit["float32"] + (cost.int8_ops * unit["int8"] if cost.int8_ops else 0)
    memory = cost.bytes * unit["memory"]
    bound, limit = ("compute", compute) if np.median(compute) >= np.median(memory) else ("memory", memory)
    share = speedup(np.rint(limit).astype(np.int64), ns)
    return {
        "backend": cell.backend,
        "part": cell.part,
        "batch": cell.batch,
        "text_tokens": cell.text_tokens,
        "gflop": _rounded((cost.float_ops + cost.int8_ops) / 1e9),
        "int8_gop": _rounded(cost.int8_ops / 1e9),
        "mbytes": _rounded(cost.bytes / 1e6),
        **percentiles_ms(ns),
        "compute_ms": _rounded(float(np.median(compute)) / 1e6),
        "memory_ms": _rounded(float(np.median(memory)) / 1e6),
        "limit_ms": _rounded(float(np.median(limit)) / 1e6),
        "bound": bound,
        "share_of_limit": share.value,
        "interval": [share.low, share.high],
        "samples": len(ns),
    }


def _rate(unit_ns: NDArray[np.float64]) -> float:
    return round(1 / float(np.median(unit_ns)), 2)  # one a nanosecond is 1e9 a second


def _peak_row(peak: Peak, ns: NDArray[np.int64], counts: bool) -> dict[str, Any]:
    low, middle, high = (round(float(peak.amount / value), 2) for value in np.percentile(ns, [75, 50, 25]))
    return {
        "what": peak.name,
        "kind": peak.kind,
        "rate": middle,
        "low": low,
        "high": high,
        "unit": UNITS[peak.kind],
        **percentiles_ms(ns),
        "samples": len(ns),
        "counts": counts,
    }


MACHINE_HEADER = ("this machine", "median", "unit", "quarter to three quarters", "samples", "is the limit")


def machine_table(machine: Mapping[str, Any]) -> str:
    """Lay out what the machine can do."""
    return table(
        MACHINE_HEADER,
        (
            (
                row["what"],
                f"{row['rate']:.1f}",
                row["unit"],
                f"{row['low']:.1f} to {row['high']:.1f}",
                str(row["samples"]),
                "yes" if row["counts"] else "",
            )
            for row in machine["measured_by"]
        ),
    )


PARTS_HEADER = ("part", "backend", "tokens", "GFLOP", "MB", "limit ms, by", "p50 ms", "share of limit", "n")


def parts_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay out every part beside its limit; ``n`` is the number of samples."""
    return table(
        PARTS_HEADER,
        (
            (
                _part_name(row),
                row["backend"],
                "" if row["text_tokens"] is None else str(row["text_tokens"]),
                f"{row['gflop']:.3g}",
                f"{row['mbytes']:.3g}",
                f"{milliseconds(row['limit_ms'])} {row['bound']}",
                milliseconds(row["p50_ms"]),
                f"{row['share_of_limit']:.0%} ({row['interval'][0]:.0%} to {row['interval'][1]:.0%})",
                str(row["samples"]),
            )
            for row in rows
        ),
    )


def in_words(row: Mapping[str, Any]) -> str:
    """Say in one sentence how far a part is from its limit, and where more than all of it may come from."""
    if row["bound"] == "compute":
        product = "an INT8 matrix product" if 2 * row["int8_gop"] > row["gflop"] else "a matrix product"
        said = f"of what {product} reaches"
        beyond = "its products suit the processor or its caches better than the plain one"
    else:
        said = f"of the speed at which its {row['mbytes']:.3g} MB can be read from memory"
        beyond = "what it reads stays in the caches, in whole or in part, from call to call"
    if row["interval"][0] <= 1:
        beyond = "no more than the measurement's own spread"
    more = f"; above 100 %: {beyond}" if row["share_of_limit"] > 1 else ""
    return f"{_part_name(row)}, {row['backend']}: {100 * row['share_of_limit']:.0f} % {said}{more}."


def _part_name(row: Mapping[str, Any]) -> str:
    name = row["part"].replace("_", " ")
    return f"{name} \u00d7{row['batch']}" if row["batch"] > 1 else name


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
