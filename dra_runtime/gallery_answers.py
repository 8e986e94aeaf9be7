"""Queries to answers: what `Gallery.search` does with the gallery's content at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy.typing as npt

from dra_runtime.encoder import Encoder, checked_features
from dra_runtime.errors import UsageError
from dra_runtime.metadata import Value, Where, checked_where
from dra_runtime.preprocess import ImageSource
from dra_runtime.rerank import KnownImages, checked_reranking, reranked, tokens_at
from dra_runtime.snapshot import Answer, Snapshot


@dataclass(frozen=True)
class Hit:
    """One answer: the image's id, its cosine with the query, its place, counted from 1, and its metadata."""

    id: str
    score: float
    rank: int
    metadata: Mapping[str, Value] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Query:
    """What `Gallery.search` was asked, in its words."""

    text: str
    image: ImageSource | None
    id: str | None
    k: int
    keep_reference: bool
    where: Where | None
    rerank: int | None
    mu: float | None


def answer(query: Query, encoder: Encoder, snapshot: Snapshot, images: KnownImages, stores_tokens: bool) -> list[Hit]:
    """Answer a query; see `Gallery.search` for its errors."""
    check_k(query.k)
    check_reference(query.image, query.id)
    wanted = None if query.where is None else checked_where(query.where)
    place = None if query.id is None else snapshot.known_place(query.id)
    reranking = checked_reranking(encoder, query.rerank, query.mu, stores_tokens or bool(images))
    text_tokens = encoder.tokenize([query.text])
    if query.id is not None and place is not None:
        image_features = snapshot.features([place], encoder.dim)
        tokens = tokens_at(encoder, snapshot, [(query.id, place)], images) if reranking else None
    else:
        outputs = encoder.encode_pixels(encoder.pixels(query.image)[None])  # type: ignore[arg-type]  # not None here
        image_features, tokens = outputs["image_features"], outputs.get("image_tokens")
    text_features = encoder.encode_tokens(text_tokens)
    composed = encoder.compose(image_features, text_features)
    most = query.k if reranking is None else max(query.k, reranking.first)
    (answers,) = snapshot.search(composed, most, [None if query.keep_reference else place], wanted, encoder.threads)
    if reranking is not None and tokens is not None:
        answers = reranked(encoder, snapshot, answers, reranking, tokens[0], text_features[0], images)
    return _hits(snapshot, answers[: query.k])


def answer_vectors(
    queries: npt.ArrayLike,
    k: int,
    exclude: Sequence[str | None] | None,
    where: Where | None,
    dim: int,
    snapshot: Snapshot,
    threads: int,
) -> list[list[Hit]]:
    """Answer query vectors (Q, dim); see `Gallery.search_vectors` for its errors."""
    check_k(k)
    wanted = None if where is None else checked_where(where)
    checked = checked_features(queries, "queries", dim)
    if not checked.any(axis=1).all():
        raise UsageError("a query is all zeros, so it has no direction; compose it again")
    if exclude is None:
        exclude = [None] * len(checked)
    if isinstance(exclude, str) or len(exclude) != len(checked):
        raise UsageError(f"{len(exclude)} ids to exclude for {len(checked)} queries; give one for each, or None")
    places = [None if name is None else snapshot.known_place(name) for name in exclude]
    return [_hits(snapshot, answers) for answers in snapshot.search(checked, k, places, wanted, threads)]


def check_k(k: int) -> None:
    """Refuse a number of answers that is none."""
    if type(k) is not int or k < 1:
        raise UsageError(f"k is {k!r}; give a whole number of at least 1")


def check_reference(image: ImageSource | None, id: str | None) -> None:
    """Refuse a query with two references, or none."""
    if (image is None) == (id is None):
        raise UsageError("give either image= or id= as the reference, exactly one of them")


def _hits(snapshot: Snapshot, answers: Sequence[Answer]) -> list[Hit]:
    return [Hit(name, score, rank, snapshot.item(place)) for rank, (score, name, place) in enumerate(answers, 1)]
