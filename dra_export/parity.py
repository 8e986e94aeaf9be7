"""Compare a bundle on disk with PyTorch float32: every graph, the whole query, and recall."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.preprocess import open_image
from dra_train.data import Dataset, Query
from dra_train.evaluate import measure_scores, score
from dra_train.metrics import Columns, drops_reference, ranked_names
from dra_train.model import DRA

MIN_COSINE = {"fp32": 0.99999}  #: smallest cosine that passes, by the bundle's precision
# Sizes are mixed on purpose: a graph that is right for one batch size or text length only must not pass.
BATCH_SIZES = (1, 2, 7, 16)
EXTRA_LENGTHS = (0, 3, 20, None)  #: padding after the longest text of a batch; None pads to the full context

Array = NDArray[np.float32]
Item = TypeVar("Item")


@dataclass
class Difference:
    """How far a graph's vectors are from PyTorch's: the worst over all pairs seen so far."""

    min_cosine: float = 1.0
    max_abs: float = 0.0
    pairs: int = 0

    def add(self, ours: Array, reference: Tensor) -> None:
        """Compare two batches (N, …) of vectors; anything but the first axis is flattened."""
        a = ours.reshape(len(ours), -1).astype(np.float64)
        b = reference.numpy().reshape(len(ours), -1).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            cosines = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
            worst = np.abs(a - b).max()
        cosines = np.where(np.isfinite(cosines) & np.isfinite(lengths), cosines, -1.0)  # NaN and infinity never pass
        self.min_cosine = min(self.min_cosine, float(cosines.min()))
        self.max_abs = max(self.max_abs, float(worst) if np.isfinite(worst) else float("inf"))
        self.pairs += len(ours)

    def to_dict(self) -> dict[str, float]:
        """Return plain values for the JSON."""
        return {"min_cosine": self.min_cosine, "max_abs": self.max_abs, "pairs": self.pairs}


def verify(model: DRA, encoder: Encoder, dataset: Dataset, pairs: int | None = None) -> dict[str, Any]:
    """Compare a bundle with its model on real image-text pairs.

    With ``pairs``, that many queries spread over the split are compared graph by graph; without, all of them, and the
    recall of the whole split as well. Returns ``passed``, ``graphs``, ``recall`` (None with ``pairs``) and what it was
    measured on.
    """
    queries = dataset.queries
    if pairs is not None and pairs < len(queries):
        queries = tuple(queries[i] for i in np.linspace(0, len(queries) - 1, pairs).astype(int))
    graphs = compare_graphs(model, encoder, dataset, queries)
    recall = compare_recall(model, encoder, dataset) if len(queries) == len(dataset.queries) else None
    least = MIN_COSINE[encoder.bundle.manifest.precision]
    return {
        "passed": all(g.min_cosine >= least for g in graphs.values())
        and (recall is None or recall["reference"] == recall["candidate"]),
        "threshold": {"min_cosine": least, "recall": "equal"},
        "dataset": dataset.name,
        "split": dataset.split,
        "queries": len(queries),
        "backend": encoder.backend,
        "bundle_id": encoder.bundle_id,
        "batch_sizes": list(BATCH_SIZES),
        "graphs": {name: graph.to_dict() for name, graph in graphs.items()},
        "recall": recall,
    }


def compare_graphs(model: DRA, encoder: Encoder, dataset: Dataset, queries: Sequence[Query]) -> dict[str, Difference]:
    """Run every graph of the bundle, and the runtime's whole query, on the queries' pairs beside PyTorch.

    The text reference is open_clip's own tower on texts padded to the full context; the bundle sees them cut to many
    lengths.
    """
    context = encoder.tokenizer.context_length
    differences = {name: Difference() for name in encoder.bundle.manifest.graphs}
    differences["encode_queries"] = Difference()
    extras = itertools.cycle(EXTRA_LENGTHS)
    features_of, tokens_of = encode_once(model, dataset, queries)
    with progress(len(queries), "comparing graphs") as advance, torch.inference_mode():
        for batch in _batches(queries, BATCH_SIZES):
            texts = [q.text for q in batch]
            tokens, extra = encoder.tokenizer(texts), next(extras)
            length = context if extra is None else min(context, tokens.shape[1] + extra)
            cut = encoder.tokenizer(texts, length)
            full = torch.from_numpy(encoder.tokenizer(texts, context))
            references = _pixels(model, dataset, [q.reference for q in batch])
            image_features = torch.stack([features_of[q.reference] for q in batch])
            text_features = model.text(full)
            query = model.compose(image_features, text_features)

            run = _runner(encoder)
            encoded = run("image_encoder", {"image": references})
            differences["image_encoder"].add(encoded["image_features"], image_features)
            text = run("text_encoder", {"tokens": cut})["text_features"]
            differences["text_encoder"].add(text, text_features)
            inputs = {"image_features": image_features.numpy(), "text_features": text_features.numpy()}
            differences["compositor"].add(run("compositor", inputs)["query"], query)
            if "query" in differences:
                differences["query"].add(run("query", {"image": references, "tokens": cut})["query"], query)
            if tokens_of:
                reference_tokens = torch.stack([tokens_of[q.reference] for q in batch])
                candidate_tokens = torch.stack([tokens_of[q.target] for q in batch])
                differences["image_encoder"].add(encoded["image_tokens"], reference_tokens)
                pair = {"reference_tokens": reference_tokens.numpy(), "candidate_tokens": candidate_tokens.numpy()}
                relation = model.relate(reference_tokens, candidate_tokens)
                differences["reranker"].add(run("reranker", pair)["relation_features"], relation)
            paths = [dataset.images[q.reference] for q in batch]
            differences["encode_queries"].add(encoder.encode_queries(paths, texts), query)
            advance(len(batch))
    return differences


@torch.inference_mode()
def encode_once(model: DRA, dataset: Dataset, queries: Sequence[Query]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Encode every image that the queries name with PyTorch, once: features (D,) and tokens (T, D) by name.

    Many queries share an image, and PyTorch's image tower is the slowest part of a comparison. Without a vision
    compositor there are no tokens.
    """
    names = list(dict.fromkeys(name for q in queries for name in (q.reference, q.target)))
    features: dict[str, Tensor] = {}
    tokens: dict[str, Tensor] = {}
    with progress(len(names), "PyTorch: images") as advance:
        for batch in _batches(names, BATCH_SIZES):
            image_features, image_tokens = model.encode_image(torch.from_numpy(_pixels(model, dataset, batch)))
            features |= zip(batch, image_features, strict=True)
            if image_tokens is not None:
                tokens |= zip(batch, image_tokens, strict=True)
            advance(len(batch))
    return features, tokens


def _pixels(model: DRA, dataset: Dataset, names: Sequence[str]) -> Array:
    return np.stack([model.preprocess(open_image(dataset.images[name])) for name in names])


def compare_recall(model: DRA, encoder: Encoder, dataset: Dataset) -> dict[str, Any]:
    """Answer every query of a split with PyTorch and with the runtime, from image files and texts to ranks.

    Returns recalls of both, how many first answers changed and which, and the mean overlap of the first ten.
    """
    queries = dataset.queries
    reference = score(model, dataset).composed
    candidate = runtime_scores(encoder, dataset)
    sides = {"reference": reference, "candidate": candidate}
    columns, drop = Columns.of(list(dataset.images)), drops_reference(dataset.format)
    ours, theirs = (ranked_names(scores, queries, columns, 10, drop) for scores in (candidate, reference))
    changed = [
        {
            "id": query.id,
            "text": query.text,
            "reference": query.reference,
            "target": query.target,
            "was": was[0],
            "is": now[0],
        }
        for query, now, was in zip(queries, ours, theirs, strict=True)
        if now[0] != was[0]
    ]
    overlap = float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ours, theirs, strict=True)]))
    return {
        **{side: measure_scores(scores, dataset) for side, scores in sides.items()},
        "changed_queries": len(changed),
        "top10_overlap": round(100 * overlap, 3),
        "queries": len(queries),
        "changed": changed,
    }


def runtime_scores(encoder: Encoder, dataset: Dataset) -> Array:
    """Score every query against the gallery with the runtime alone: (Q, G) cosines."""
    paths, column = list(dataset.images.values()), {name: i for i, name in enumerate(dataset.images)}
    encoded = []
    with progress(len(paths), "runtime: images") as advance:
        for start in range(0, len(paths), 32):
            encoded.append(encoder.encode_images(paths[start : start + 32]))
            advance(len(encoded[-1]))
    features = np.concatenate(encoded)
    texts = encoder.encode_texts([q.text for q in dataset.queries])
    composed = encoder.compose(features[[column[q.reference] for q in dataset.queries]], texts)
    gallery = features / np.linalg.norm(features, axis=1, keepdims=True)
    scores: Array = composed @ gallery.T
    return scores


def _runner(encoder: Encoder) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    return lambda graph, inputs: encoder.session(graph).run(inputs)


def _batches(items: Sequence[Item], sizes: Sequence[int]) -> Iterator[Sequence[Item]]:
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(items):
            return
        yield items[start : start + size]
        start += size
