"""What a model finds while it is trained: validation by the benchmark's protocol, from cached trunk features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dra_runtime.errors import UsageError
from dra_train.data import Dataset
from dra_train.evaluate import encode, rank_all
from dra_train.metrics import Columns, measure
from dra_train.model import DRA

TRAIN_SAMPLE = 500  #: training triplets that are measured as the validation is


@dataclass(frozen=True)
class Measured:
    """A data set to measure on, with what the frozen trunk gives for its images."""

    dataset: Dataset
    pooled: Tensor  #: (M, P), on the CPU


@torch.inference_mode()
def recalls(model: DRA, parts: Sequence[Measured]) -> dict[str, float]:
    """Measure composed queries in percent, by each part's protocol; several parts give their mean."""
    metrics = [_recalls(model, part) for part in parts]
    return {name: round(sum(m[name] for m in metrics) / len(metrics), 2) for name in metrics[0]}


def check_metric(metric: str, measured: Mapping[str, float]) -> None:
    """Refuse a metric that the data set doesn't have; UsageError lists those that it has."""
    if metric not in measured:
        raise UsageError(f"validation.metric {metric!r} isn't measured on this data; use {', '.join(measured)}")


def training_sample(dataset: Dataset, pooled: Tensor, gallery: int) -> Measured:
    """Choose training triplets to be ranked in a gallery of ``gallery`` training images, as in validation.

    The choice is the same in every run: every n-th triplet, and as many images more, evenly spread.
    """
    queries = dataset.queries[:: max(1, len(dataset.queries) // TRAIN_SAMPLE)][:TRAIN_SAMPLE]
    chosen = dict.fromkeys(name for q in queries for name in (q.reference, q.target, *q.group, *q.targets))
    others = [name for name in dataset.images if name not in chosen]
    more = max(0, gallery - len(chosen))
    names = list(chosen) + others[:: max(1, len(others) // more)][:more] if more else list(chosen)
    row = {name: i for i, name in enumerate(dataset.images)}
    return Measured(
        replace(dataset, queries=queries, images={name: dataset.images[name] for name in names}),
        pooled[[row[name] for name in names]],
    )


def _recalls(model: DRA, part: Measured) -> dict[str, float]:
    encoded = encode(model, part.dataset, part.pooled)
    ranks = rank_all(encoded.composed, encoded.gallery, part.dataset, Columns.of(list(part.dataset.images)))
    return dict(measure(ranks, part.dataset.format))
