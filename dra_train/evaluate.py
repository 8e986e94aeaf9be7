"""What a model finds on a split by its benchmark's protocol, and what the image and the text alone find beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dra_runtime.errors import CheckpointError, ImageError
from dra_train.data import Dataset, require_targets, unreadable_error
from dra_train.features import device_of, image_features, text_features
from dra_train.metrics import (
    Columns,
    Ranks,
    drops_reference,
    join_ranks,
    measure,
    measure_by_attributes,
    measure_by_edit,
    rank_answers,
)
from dra_train.model import DRA

PROTOCOLS = {
    "cirr": "cirr: whole split as gallery, cosine, reference dropped, ties by name",
    "fashioniq": "fashioniq: gallery {gallery}, cosine, reference kept, ties by name",
    "circo": "circo: all of COCO's unlabeled images as gallery, cosine, reference kept, ties by name",
    "jsonl": "own data: all images as gallery, cosine, reference dropped, ties by name",
}

BLOCK_SCORES = 2**24  #: scores held at once: 64 MB, and 136 queries over CIRCO's 123,403 images
COMPOSED_AT_ONCE = 1024
FIRST_MISSING = 10  #: names of missing images that a result lists

#: Changes a block of scores (B, G), given the block's place among the queries: for dra_train/rerank.py
Rescore = Callable[[NDArray[np.float32], slice], NDArray[np.float32]]


@dataclass(frozen=True)
class Scores:
    """Cosines of a split's queries with its gallery, (Q, G) each, columns in the data set's order of images."""

    composed: NDArray[np.float32]
    image_only: NDArray[np.float32]
    text_only: NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """A split as unit vectors on the CPU: the gallery (G, D), and three ways to ask for its queries (Q, D)."""

    gallery: Tensor
    composed: Tensor
    image_only: Tensor
    text_only: Tensor


def evaluate(model: DRA, dataset: Dataset) -> dict[str, Any]:
    """Measure a model in percent: composed queries, by kind of edit, and the two baselines of the same model.

    DatasetError when the split hides its targets or images can't be opened; CheckpointError when the model's features
    aren't finite.
    """
    require_targets(dataset, "evaluation")
    encoded = encode(model, dataset)
    columns = Columns.of(list(dataset.images))
    ranks = rank_all(encoded.composed, encoded.gallery, dataset, columns)
    baselines = {
        name: measure(rank_all(vectors, encoded.gallery, dataset, columns), dataset.format)
        for name, vectors in (("image_only", encoded.image_only), ("text_only", encoded.text_only))
    }
    return {
        **describe(dataset),
        "metrics": measure(ranks, dataset.format),
        "baselines": baselines,
        "by_attributes": measure_by_attributes(ranks, dataset.queries, dataset.format),
        "by_edit": measure_by_edit(ranks, dataset.queries, dataset.format),
    }


def evaluate_all(model: DRA, datasets: Sequence[Dataset]) -> list[dict[str, Any]]:
    """Evaluate every part that `open_dataset` gave; FashionIQ's three are followed by their mean."""
    results = [evaluate(model, dataset) for dataset in datasets]
    return [*results, mean_over_categories(results)] if len(results) > 1 else results


def mean_over_categories(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Average the results of FashionIQ's categories, each with the same weight; counts are added up."""
    first = results[0]
    missing = [result["missing"] for result in results]
    return {
        **{key: first[key] for key in ("dataset", "split", "protocol", "format")},
        **({"gallery_name": first["gallery_name"]} if "gallery_name" in first else {}),
        "category": "mean",
        "queries": sum(result["queries"] for result in results),
        "gallery": sum(result["gallery"] for result in results),
        "missing": {
            "count": sum(m["count"] for m in missing),
            "first": [name for m in missing for name in m["first"]][:FIRST_MISSING],
            "dropped_queries": sum(m["dropped_queries"] for m in missing),
        },
        "metrics": _mean([result["metrics"] for result in results]),
        "baselines": {name: _mean([result["baselines"][name] for result in results]) for name in first["baselines"]},
        "by_attributes": {},
        "by_edit": {},
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """Say what a result is about: data set, protocol and gallery, and what was left out of it."""
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        **({"category": dataset.category} if dataset.category else {}),
        "format": dataset.format,
        "protocol": PROTOCOLS[dataset.format].format(gallery=dataset.gallery),
        **({"gallery_name": dataset.gallery} if dataset.gallery else {}),
        "queries": len(dataset.queries),
        "gallery": len(dataset.images),
        "missing": {
            "count": len(dataset.missing),
            "first": list(dataset.missing[:FIRST_MISSING]),
            "dropped_queries": dataset.dropped,
        },
    }


@torch.inference_mode()
def encode(model: DRA, dataset: Dataset, pooled: Tensor | None = None) -> Encoded:
    """Encode a split's gallery and queries in float32; they end up on the CPU, batch by batch.

    ``pooled`` (G, P), what the frozen trunk gave for the images, saves running it.
    """
    names = list(dataset.images)
    column = {name: i for i, name in enumerate(names)}
    device = device_of(model)
    with evaluation_mode(model):
        try:
            raw = (
                project_all(model, pooled)
                if pooled is not None
                else image_features(model, list(dataset.images.values()), f"images of {dataset.split}")
            )
        except ImageError as error:  # the first; tell about all of them at once
            raise unreadable_error(dataset) or error from error
        texts = text_features(model, [q.text for q in dataset.queries]).cpu()
        references = raw[[column[q.reference] for q in dataset.queries]]
        pairs = zip(references.split(COMPOSED_AT_ONCE), texts.split(COMPOSED_AT_ONCE), strict=True)
        composed = torch.cat([model.compose(image.to(device), text.to(device)).cpu() for image, text in pairs])
    return Encoded(*(F.normalize(vectors.float(), dim=-1) for vectors in (raw, composed, references, texts)))


@torch.inference_mode()
def project_all(model: DRA, pooled: Tensor) -> Tensor:
    """Turn a trunk's ``pooled`` (G, P) into raw image_features (G, D), both on the CPU."""
    return torch.cat([model.project_image(rows.to(device_of(model))).cpu() for rows in pooled.split(COMPOSED_AT_ONCE)])


def score_blocks(queries: Tensor, gallery: Tensor) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Score unit vectors (Q, D) against a gallery (G, D): blocks of rows (B, G) with their place among the queries.

    CheckpointError when a score isn't finite.
    """
    rows = max(1, BLOCK_SCORES // len(gallery))
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        values = queries[block] @ gallery.T
        if not values.isfinite().all():
            raise CheckpointError("the model's features aren't finite: its training diverged; lower the learning rate")
        yield block, values.numpy()


def rank_all(
    vectors: Tensor, gallery: Tensor, dataset: Dataset, columns: Columns, rescore: Rescore | None = None
) -> Ranks:
    """Rank the right answers of all queries, block by block."""
    ranks = []
    for block, scores in score_blocks(vectors, gallery):
        scores = rescore(scores, block) if rescore else scores
        ranks.append(rank_answers(scores, dataset.queries[block], columns, drops_reference(dataset.format)))
    return join_ranks(ranks)


def score(model: DRA, dataset: Dataset) -> Scores:
    """Score every query of a split against its gallery with PyTorch in float32, all at once."""
    encoded = encode(model, dataset)
    views = (encoded.composed, encoded.image_only, encoded.text_only)
    return Scores(*(np.concatenate([s for _, s in score_blocks(view, encoded.gallery)]) for view in views))


def measure_scores(scores: NDArray[np.float32], dataset: Dataset) -> dict[str, float]:
    """Measure whole scores (Q, G) of a split by its protocol."""
    columns = Columns.of(list(dataset.images))
    return measure(rank_answers(scores, dataset.queries, columns, drops_reference(dataset.format)), dataset.format)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for a while; afterwards every part is back in its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(sum(m[name] for m in metrics) / len(metrics), 2) for name in metrics[0]}
