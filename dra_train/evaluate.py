"""Recall of a model on a split, with what the image alone and the text alone reach beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dra_runtime.errors import CheckpointError
from dra_train.data import Dataset
from dra_train.features import image_features, text_features
from dra_train.metrics import recalls, recalls_by_edit, subset_ranks, target_ranks
from dra_train.model import DRA

PROTOCOL = "cirr: whole split as gallery, cosine, reference dropped, ties by name"


@dataclass(frozen=True)
class Scores:
    """Cosines of a split's queries with its gallery, (Q, G) each, columns in the data set's order of images."""

    composed: NDArray[np.float32]
    image_only: NDArray[np.float32]
    text_only: NDArray[np.float32]


@torch.inference_mode()
def score(model: DRA, dataset: Dataset) -> Scores:
    """Score every query of a split against its gallery with PyTorch in float32."""
    names = list(dataset.images)
    raw = image_features(model, list(dataset.images.values()), f"images of {dataset.split}")
    texts = text_features(model, [q.text for q in dataset.queries])
    column = {name: i for i, name in enumerate(names)}
    references = raw[[column[q.reference] for q in dataset.queries]]
    gallery = F.normalize(raw, dim=-1)

    def cosines(queries: Tensor) -> NDArray[np.float32]:
        values = F.normalize(queries, dim=-1) @ gallery.T
        if not values.isfinite().all():
            raise CheckpointError("the model's features aren't finite: its training diverged; lower the learning rate")
        return values.numpy()

    composed = model.compose(references, texts)
    return Scores(cosines(composed), cosines(references), cosines(texts))


def evaluate(model: DRA, dataset: Dataset) -> dict[str, Any]:
    """Measure recalls in percent: composed, by kind of edit, and the two baselines of the same model."""
    names, queries = list(dataset.images), dataset.queries
    scores = score(model, dataset)

    def measure(cosines: NDArray[np.float32]) -> dict[str, float]:
        return recalls(target_ranks(cosines, queries, names), subset_ranks(cosines, queries, names))

    ranks = target_ranks(scores.composed, queries, names)
    subset = subset_ranks(scores.composed, queries, names)
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "protocol": PROTOCOL,
        "queries": len(queries),
        "gallery": len(names),
        "metrics": recalls(ranks, subset),
        "baselines": {"image_only": measure(scores.image_only), "text_only": measure(scores.text_only)},
        "by_edit": recalls_by_edit(ranks, subset, queries),
    }
