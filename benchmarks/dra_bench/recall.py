"""The same queries through PyTorch and through a bundle: recalls, and whose first answer changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dra_bench.figures import percent, recall_name
from dra_export.parity.verify import compare_recall
from dra_runtime.console import table
from dra_runtime.encoder import Encoder
from dra_train.data import Dataset
from dra_train.evaluate import describe
from dra_train.model import DRA


def compare_split(model: DRA, encoder: Encoder, dataset: Dataset, tolerance: float) -> dict[str, Any]:
    """Answer a split's queries with both and compare.

    Passed when no recall differs by more than ``tolerance`` percentage points.
    """
    compared = compare_recall(model, encoder, dataset)
    return {
        **describe(dataset),
        "passed": within(compared["reference"], compared["candidate"], tolerance),
        **compared,
    }


def within(reference: Mapping[str, float], candidate: Mapping[str, float], tolerance: float) -> bool:
    """Tell whether no recall differs by more than ``tolerance`` percentage points."""
    # Recalls are rounded to hundredths: what is left of the difference below that is the float's own.
    return all(round(abs(reference[k] - candidate[k]), 6) <= tolerance for k in reference)


RECALL_HEADER = ("split", "model", "queries")


def recall_cells(splits: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Write both recalls of each split as text, one row a model."""
    return [
        (
            f"{split['dataset']} / {split['split']}",
            name,
            str(split["queries"]),
            *(percent(split[side][c]) if c in split[side] else "" for c in columns),
        )
        for split in splits
        for side, name in (("reference", "PyTorch"), ("candidate", "bundle"))
    ]


def recall_report(splits: Sequence[Mapping[str, Any]]) -> str:
    """Lay a comparison out for people: both recalls, overlap, and the queries whose first answer changed."""
    columns = list(splits[0]["reference"])
    lines = [table([*RECALL_HEADER, *columns], recall_cells(splits, columns))]
    for split in splits:
        lines.append(
            f"{split['split']} ({recall_name(split['dataset'])}s in %): "
            f"{split['top10_overlap']:.2f} % of the 10 best answers are the same; "
            f"the first answer changed for {split['changed_queries']} of {split['queries']} queries"
        )
        # repr: a text or a name from a data set may hold anything, terminal commands too
        lines += [
            f"  query {c['id']}: {c['reference']!r} + {c['text']!r}: {c['was']!r} -> {c['is']!r} "
            f"(right: {c['target']!r})"
            for c in split["changed"]
        ]
    return "\n".join(lines)
