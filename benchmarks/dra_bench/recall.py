"""The same queries through PyTorch and through a bundle: recalls, and whose first answer changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_bench.figures import percent, recall_name
from dra_runtime.console import table
from dra_runtime.encoder import Encoder
from dra_train.data import Dataset, Query
from dra_train.evaluate import PROTOCOL, score
from dra_train.metrics import recalls, subset_ranks, target_ranks
from dra_train.model import DRA

Scores = NDArray[np.float32]

OVERLAP = 10  #: best answers whose overlap is reported


def bundle_scores(encoder: Encoder, dataset: Dataset) -> Scores:
    """Score every query of a split with the bundle: cosines (Q, G), columns in the data set's order of images."""
    column = {name: i for i, name in enumerate(dataset.images)}
    raw = encoder.encode_images(list(dataset.images.values()))
    texts = encoder.encode_texts([q.text for q in dataset.queries])
    queries = encoder.compose(raw[[column[q.reference] for q in dataset.queries]], texts)
    gallery = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    scores: Scores = queries @ gallery.T
    return scores


def compare_split(model: DRA, encoder: Encoder, dataset: Dataset, tolerance: float) -> dict[str, Any]:
    """Answer a split's queries with both and compare.

    Passed when no recall differs by more than ``tolerance`` percentage points.
    """
    return compare_scores(score(model, dataset).composed, bundle_scores(encoder, dataset), dataset, tolerance)


def compare_scores(reference: Scores, candidate: Scores, dataset: Dataset, tolerance: float) -> dict[str, Any]:
    """Compare two scorings (Q, G) of a split; see `compare_split`."""
    names, queries = list(dataset.images), dataset.queries
    before, after = (_recalls(scores, queries, names) for scores in (reference, candidate))
    best = [top_answers(scores, queries, names, OVERLAP) for scores in (reference, candidate)]
    overlaps = [len(set(a) & set(b)) / max(len(a), 1) for a, b in zip(*best, strict=True)]
    changed = [
        {
            "id": query.id,
            "text": query.text,
            "reference": query.reference,
            "target": query.target,
            "pytorch": a[0],
            "bundle": b[0],
        }
        for query, a, b in zip(queries, *best, strict=True)
        if a[0] != b[0]
    ]
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "protocol": PROTOCOL,
        "queries": len(queries),
        "gallery": len(names),
        "reference": before,
        "candidate": after,
        "passed": all(abs(before[k] - after[k]) <= tolerance for k in before),
        f"top{OVERLAP}_overlap": round(100 * float(np.mean(overlaps)), 3),
        "changed_first": len(changed),
        "changed": changed,
    }


def top_answers(scores: Scores, queries: Sequence[Query], names: Sequence[str], count: int) -> list[list[str]]:
    """Return each query's ``count`` best names, its reference left out, ties broken by name."""
    by_name = np.argsort(np.array(names))
    answers = []
    for query, row in zip(queries, scores, strict=True):
        order = by_name[np.argsort(-row[by_name], kind="stable")]
        answers.append([names[i] for i in order[: count + 1] if names[i] != query.reference][:count])
    return answers


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
        overlap = split[f"top{OVERLAP}_overlap"]
        lines.append(
            f"{split['split']} ({recall_name(split['dataset'])}s in %): "
            f"{overlap:.2f} % of the {OVERLAP} best answers are the same; "
            f"the first answer changed for {split['changed_first']} of {split['queries']} queries"
        )
        lines += [
            f"  query {c['id']}: {c['reference']!r} + {c['text']!r}: {c['pytorch']!r} -> {c['bundle']!r} "
            f"(right: {c['target']!r})"
            for c in split["changed"]
        ]
    return "\n".join(lines)


def _recalls(scores: Scores, queries: Sequence[Query], names: Sequence[str]) -> dict[str, float]:
    return recalls(target_ranks(scores, queries, names), subset_ranks(scores, queries, names))
