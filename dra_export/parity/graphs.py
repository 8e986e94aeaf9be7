"""Run every graph of an artifact beside PyTorch's vectors, at mixed batch sizes and text lengths."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dra_export.parity.reference import Array, Reference
from dra_runtime.encoder import Encoder, Pixels
from dra_runtime.errors import BackendError
from dra_runtime.preprocess import Preprocess, open_image

Item = TypeVar("Item")
Advance = Callable[[int], None]
OpenEncoder = Callable[..., Encoder]  #: takes names of graphs, and gives an encoder that holds these

# Sizes are mixed on purpose: a graph that is right for one batch size or text length only must not pass.
BATCH_SIZES = (1, 2, 7, 16)
EXTRA_LENGTHS = (0, 3, 20, None)  #: padding after the longest text of a batch; None pads to the full context
PIXELS_KEPT = 32  #: images that are opened once for several queries in a row


@dataclass
class Difference:
    """How far a graph's vectors are from PyTorch's, over all pairs seen so far."""

    cosines: list[NDArray[np.float64]] = field(default_factory=list)  #: NaN where a vector isn't finite
    max_abs: float = 0.0  #: over the finite vectors
    failed: str = ""  #: why the graph stopped, if it did

    def add(self, ours: Array, reference: Array) -> None:
        """Compare two batches (N, …) of vectors; anything but the first axis is flattened."""
        a = ours.reshape(len(ours), -1).astype(np.float64)
        b = reference.reshape(len(reference), -1).astype(np.float64)
        finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
        cosines = np.full(len(a), np.nan)
        a, b = a[finite], b[finite]
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines[finite] = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
        self.cosines.append(cosines)
        self.max_abs = max(self.max_abs, float(np.abs(a - b).max(initial=0.0)))

    @property
    def pairs(self) -> int:
        """Return how many vectors were compared."""
        return sum(map(len, self.cosines))

    @property
    def not_finite(self) -> int:
        """Return how many of them hold NaN or infinity."""
        return sum(int(np.isnan(c).sum()) for c in self.cosines)

    @property
    def min_cosine(self) -> float:
        """Return the smallest cosine; a vector that isn't finite counts as -1, and a graph that stopped too."""
        return float(self._all().min())

    @property
    def p01_cosine(self) -> float:
        """Return the cosine that one pair in a hundred falls below."""
        return float(np.percentile(self._all(), 1))

    def to_dict(self) -> dict[str, float | str]:
        """Return plain, finite values for the JSON."""
        return {
            "min_cosine": self.min_cosine,
            "p01_cosine": self.p01_cosine,
            "max_abs": self.max_abs,
            "pairs": self.pairs,
            **({"not_finite": self.not_finite} if self.not_finite else {}),
            **({"failed": self.failed} if self.failed else {}),
        }

    def _all(self) -> NDArray[np.float64]:
        stopped = np.full(1 if self.failed else 0, np.nan)
        return np.where(np.isnan(every := np.concatenate([*self.cosines, stopped])), -1.0, every)


def compare_graphs(
    reference: Reference, open_encoder: OpenEncoder, graphs: Collection[str], preprocess: Preprocess, advance: Advance
) -> dict[str, Difference]:
    """Run ``graphs`` on the reference's inputs, one after another, and compare what they give.

    ``preprocess`` is the model's, so that a wrong one in the artifact doesn't hide in both sides. ``advance`` is called
    with numbers of vectors, `steps` in all.
    """
    differences = {name: Difference() for name in graphs}
    for name, compare in (
        ("image_encoder", _compare_image_encoder),
        ("text_encoder", _compare_text_encoder),
        ("compositor", _compare_compositor),
        ("reranker", _compare_reranker),
        ("query", _compare_query),
    ):
        if name in differences:
            try:
                compare(reference, open_encoder(name), preprocess, differences[name], advance)
            except BackendError as error:  # a graph that is right for some sizes only is found wanting, not unusable
                differences[name].failed = str(error)
    return differences


def steps(reference: Reference, graphs: Collection[str]) -> int:
    """Return how many vectors `compare_graphs` computes."""
    queries = len(reference.queries)
    each = {"image_encoder": len(reference.names), "reranker": len(reference.related)}
    return sum(each.get(graph, queries) for graph in graphs)


def _compare_image_encoder(
    reference: Reference, encoder: Encoder, preprocess: Preprocess, difference: Difference, advance: Advance
) -> None:
    def pixels_of(path: Path) -> Pixels:
        return preprocess.network_input(open_image(path), encoder.image_input)

    rows = reference.rows
    for names in mixed_batches(reference.names):
        pixels = np.stack([pixels_of(reference.dataset.images[name]) for name in names])
        encoded = encoder.session("image_encoder").run({"image": pixels})
        difference.add(encoded["image_features"], reference.image_features[[rows[name] for name in names]])
        kept = [i for i, name in enumerate(names) if name in reference.tokens]
        if kept and "image_tokens" in encoded:
            tokens = np.stack([reference.tokens[names[i]] for i in kept])
            difference.add(encoded["image_tokens"][kept], tokens)
        advance(len(names))


def _compare_text_encoder(
    reference: Reference, encoder: Encoder, preprocess: Preprocess, difference: Difference, advance: Advance
) -> None:
    queries = range(len(reference.queries))
    for batch, tokens in _token_batches(reference, encoder, queries):
        found = encoder.session("text_encoder").run({"tokens": tokens})["text_features"]
        difference.add(found, reference.text_features[batch])
        advance(len(batch))


def _compare_compositor(
    reference: Reference, encoder: Encoder, preprocess: Preprocess, difference: Difference, advance: Advance
) -> None:
    rows = reference.rows
    references = np.array([rows[q.reference] for q in reference.queries])
    for batch in mixed_batches(range(len(reference.queries))):
        inputs = {
            "image_features": reference.image_features[references[batch]],
            "text_features": reference.text_features[batch],
        }
        difference.add(encoder.session("compositor").run(inputs)["query"], reference.composed[batch])
        advance(len(batch))


def _compare_reranker(
    reference: Reference, encoder: Encoder, preprocess: Preprocess, difference: Difference, advance: Advance
) -> None:
    for batch in mixed_batches(range(len(reference.related))):
        queries = [reference.queries[reference.related[i]] for i in batch]
        inputs = {
            "reference_tokens": np.stack([reference.tokens[q.reference] for q in queries]),
            "candidate_tokens": np.stack([reference.tokens[q.target] for q in queries]),
        }
        found = encoder.session("reranker").run(inputs)["relation_features"]
        difference.add(found, reference.relation_features[batch])
        advance(len(batch))


def _compare_query(
    reference: Reference, encoder: Encoder, preprocess: Preprocess, difference: Difference, advance: Advance
) -> None:
    @lru_cache(PIXELS_KEPT)
    def pixels_of(name: str) -> Pixels:
        return preprocess.network_input(open_image(reference.dataset.images[name]), encoder.image_input)

    queries = reference.queries
    by_reference = sorted(range(len(queries)), key=lambda i: queries[i].reference)
    for batch, tokens in _token_batches(reference, encoder, by_reference):
        pixels = np.stack([pixels_of(queries[i].reference) for i in batch])
        found = encoder.session("query").run({"image": pixels, "tokens": tokens})["query"]
        difference.add(found, reference.composed[batch])
        advance(len(batch))


def _token_batches(
    reference: Reference, encoder: Encoder, queries: Sequence[int]
) -> Iterator[tuple[list[int], NDArray[np.int32]]]:
    """Yield queries with their texts' tokens, cut to many lengths."""
    context = encoder.tokenizer.context_length
    for batch, extra in zip(mixed_batches(queries), itertools.cycle(EXTRA_LENGTHS), strict=False):
        texts = [reference.queries[i].text for i in batch]
        tokens = encoder.tokenizer(texts)
        length = context if extra is None else min(context, tokens.shape[1] + extra)
        yield batch, encoder.tokenizer(texts, length)


def mixed_batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Cut a sequence into batches of `BATCH_SIZES` in turn."""
    start = 0
    for size in itertools.cycle(BATCH_SIZES):
        if start >= len(items):
            return
        yield list(items[start : start + size])
        start += size
