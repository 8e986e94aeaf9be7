"""Answer a split's queries with an artifact alone, from image files and texts, and compare the ranks with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dra_export.parity.graphs import Advance, OpenEncoder
from dra_export.parity.reference import Array, Reference
from dra_train.evaluate import BLOCK_SCORES
from dra_train.metrics import Columns, Ranks, join_ranks, measure, rank_answers, ranked_names

FIRST = 10  #: answers whose overlap is measured
IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Answers:
    """What an artifact computes for a reference's queries; rows may hold NaN or infinity."""

    image_features: Array  #: (M, D), raw
    composed: Array  #: (Q, D)

    @property
    def is_finite(self) -> bool:
        """Tell whether scores can be computed from all of it."""
        lengths = np.linalg.norm(self.image_features.astype(np.float64), axis=1)
        return bool(np.isfinite(lengths).all() and (lengths > 0).all() and np.isfinite(self.composed).all())


def answer(reference: Reference, open_encoder: OpenEncoder, advance: Advance) -> Answers:
    """Encode the reference's images and compose its queries with the runtime alone: its own pixels, tokens and graphs.

    ``advance`` is called with numbers of images, then of queries.
    """
    paths = [reference.dataset.images[name] for name in reference.names]
    encoded, encoder = [], open_encoder("image_encoder")
    for start in range(0, len(paths), IMAGES_AT_ONCE):
        encoded.append(encoder.encode_images(paths[start : start + IMAGES_AT_ONCE]))
        advance(len(encoded[-1]))
    features, rows = np.concatenate(encoded), reference.rows
    images = features[[rows[q.reference] for q in reference.queries]]
    del encoder  # and its graph, before the next is opened
    texts = open_encoder("text_encoder").encode_texts([q.text for q in reference.queries])
    usable = np.isfinite(images).all(axis=1) & np.isfinite(texts).all(axis=1)  # the runtime refuses the others
    composed = np.full_like(reference.composed, np.nan)
    composed[usable] = open_encoder("compositor").compose(images[usable], texts[usable])
    advance(len(composed))
    return Answers(features, composed)


def compare_ranks(reference: Reference, answers: Answers) -> dict[str, Any]:
    """Rank the whole split by both and compare.

    Returns the recalls of both (``reference``, ``candidate``), how far targets' ranks moved, the mean overlap of the
    first ten in percent, and the queries whose first answer changed. The artifact's vectors must be finite.
    """
    queries, columns = reference.queries, Columns.of(reference.names)
    ranks: dict[str, list[Ranks]] = {"reference": [], "candidate": []}
    overlaps: list[float] = []
    changed: list[dict[str, Any]] = []
    sides = (
        (reference.composed, reference.image_features),
        (answers.composed, answers.image_features),
    )
    for block, (theirs, ours) in _score_blocks(sides):
        some = queries[block]
        for side, scores in (("reference", theirs), ("candidate", ours)):
            ranks[side].append(rank_answers(scores, some, columns, reference.drops_reference))
        before, after = (ranked_names(s, some, columns, FIRST, reference.drops_reference) for s in (theirs, ours))
        overlaps += [len(set(a) & set(b)) / len(a) for a, b in zip(before, after, strict=True)]
        changed += [
            {
                "id": query.id,
                "text": query.text,
                "reference": query.reference,
                "target": query.target,
                "was": was[0],
                "is": now[0],
            }
            for query, was, now in zip(some, before, after, strict=True)
            if was[0] != now[0]
        ]
    whole = {side: join_ranks(blocks) for side, blocks in ranks.items()}
    return {
        **{side: measure(r, reference.dataset.format) for side, r in whole.items()},
        "ranks": _moves(whole["candidate"].target - whole["reference"].target),
        "changed_queries": len(changed),
        "top10_overlap": round(100 * float(np.mean(overlaps)), 3),
        "queries": len(queries),
        "changed": changed,
    }


def _moves(moves: np.typing.NDArray[np.int64]) -> dict[str, float]:
    """Say how targets' ranks moved: how many for the better and the worse, and how far those that did."""
    moved = np.abs(moves[moves != 0])
    return {
        "changed": len(moved),
        "better": int((moves < 0).sum()),
        "worse": int((moves > 0).sum()),
        "median": float(np.median(moved)) if len(moved) else 0.0,
        "largest": int(moved.max(initial=0)),
    }


def _score_blocks(sides: tuple[tuple[Array, Array], ...]) -> Iterator[tuple[slice, list[Array]]]:
    """Yield cosines (B, G) of every side's queries with its gallery, for blocks of queries."""
    galleries = [images / np.linalg.norm(images, axis=1, keepdims=True) for _, images in sides]
    count, rows = len(sides[0][0]), max(1, BLOCK_SCORES // len(galleries[0]))
    for start in range(0, count, rows):
        block = slice(start, start + rows)
        yield block, [composed[block] @ gallery.T for (composed, _), gallery in zip(sides, galleries, strict=True)]
