"""Re-rank the first answers with TAC: the implicit relation, used at test time.

Each of the first K answers is a possible target, so TAC can relate it with the reference and compare that relation with
the text: ``score = q . t_j + mu * cos(F_c, F_v(r, t_j))``. The method itself stops at ``q . t_j``; this is the
project's addition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dra_runtime.console import progress
from dra_runtime.errors import UsageError
from dra_train.data import Dataset, require_targets
from dra_train.evaluate import Encoded, Rescore, describe, encode, evaluation_mode, rank_all, score_blocks
from dra_train.feature_cache import Maps, Request, cached_outputs
from dra_train.features import device_of, text_features, to_device
from dra_train.metrics import Columns, drops_reference, measure, ranked_names
from dra_train.model import DRA

PAIRS = 256  #: related at once
TRAIN_SAMPLE = 2000  #: training triplets on which mu is chosen
MUS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)  #: what is tried


@dataclass(frozen=True)
class Agreements:
    """How well the first K answers of every query agree with its text."""

    first: NDArray[np.int64]  #: (Q, K) columns of the gallery, best first
    cosine: NDArray[np.float32]  #: (Q, K) cos(F_c, F_v(r, t_j))

    def rescore(self, mu: float) -> Rescore:
        """Return what puts the first K into the order of their sums; all other answers stay where they are."""

        def rescored(scores: NDArray[np.float32], block: slice) -> NDArray[np.float32]:
            first, cosine = self.first[block], self.cosine[block]
            sums = np.take_along_axis(scores, first, axis=1) + np.float32(mu) * cosine
            order = np.argsort(sums, axis=1)
            rises = np.diff(np.take_along_axis(sums, order, axis=1), axis=1, prepend=-np.inf) > 0
            result = scores.copy()
            # Whole numbers above every cosine, equal where the sums are: none can fall behind those not looked at
            np.put_along_axis(result, np.take_along_axis(first, order, axis=1), 1 + rises.cumsum(axis=1), axis=1)
            return result

        return rescored


@torch.inference_mode()
def relate_first(model: DRA, dataset: Dataset, encoded: Encoded, maps: Maps, k: int) -> Agreements:
    """Relate every query's reference with its first ``k`` answers, and compare the relation with its text.

    UsageError when the model has no TAC, or K isn't at least 2.
    """
    check_reranks(model, k)
    queries, names = dataset.queries, list(dataset.images)
    columns, drops = Columns.of(names), drops_reference(dataset.format)
    best = (
        [columns.index[name] for name in row]
        for block, scores in score_blocks(encoded.composed, encoded.gallery)
        for row in ranked_names(scores, queries[block], columns, k, drops)
    )
    first = torch.tensor(list(best))  # fewer than k where the gallery is smaller
    reference = torch.tensor([columns.index[q.reference] for q in queries])
    cosine = torch.empty(first.shape)
    with evaluation_mode(model), progress(len(queries), f"relations of {dataset.split}") as advance:
        texts = text_features(model, [q.text for q in queries])
        for rows in torch.arange(len(queries)).split(max(1, PAIRS // k)):
            cosine[rows] = agreement(model, reference[rows], first[rows], texts[rows], maps).cpu()
            advance(len(rows))
    return Agreements(first.numpy(), cosine.numpy())


def agreement(model: DRA, reference: Tensor, candidates: Tensor, text: Tensor, maps: Maps) -> Tensor:
    """Return cos(F_c, F_v(r, t_j)), (B, K), of images by their rows in ``maps``.

    ``reference`` (B,), ``candidates`` (B, K), ``text`` raw text_features (B, D).
    """
    distinct, place = torch.unique(torch.cat([reference, candidates.flatten()]), return_inverse=True)
    tokens = model.project_tokens(to_device(maps(distinct), device_of(model)).float())  # each image once
    pairs = tokens[place[: len(reference)].repeat_interleave(candidates.shape[1])], tokens[place[len(reference) :]]
    relation = model.relate(*pairs).unflatten(0, candidates.shape)
    return F.cosine_similarity(relation, text[:, None], dim=-1)


def check_reranks(model: DRA, k: int) -> None:
    """Refuse a model without TAC, and a K below 2."""
    if not model.has_tac:
        raise UsageError(
            "this model has no vision compositor (tac_layers = 0), so it can't re-rank; train one with TAC"
        )
    if k < 2:
        raise UsageError(f"found {k} answers to re-rank, expected at least 2")


def measure_reranking(
    model: DRA, dataset: Dataset, k: int, mus: Sequence[float], cache: Path
) -> dict[float, dict[str, float]]:
    """Measure a split in percent with its first ``k`` answers re-ranked, for each mu; 0 leaves them as they are."""
    check_reranks(model, k)
    require_targets(dataset, "re-ranking")
    outputs = cached_outputs(model, Request(dataset.images, f"images of {dataset.split}"), cache)
    assert outputs.maps is not None
    encoded = encode(model, dataset, outputs.pooled)
    agreements = relate_first(model, dataset, encoded, outputs.maps, k)
    columns = Columns.of(list(dataset.images))
    return {
        mu: dict(
            measure(
                rank_all(encoded.composed, encoded.gallery, dataset, columns, agreements.rescore(mu)), dataset.format
            )
        )
        for mu in mus
    }


def choose_mu(model: DRA, train: Dataset, k: int, cache: Path, sample: int = TRAIN_SAMPLE) -> dict[str, Any]:
    """Choose mu on ``sample`` training triplets, evenly spread, ranked among all training images.

    The best first metric of the protocol (R@1 in CIRR's) decides; of equals the smallest mu.
    """
    step = max(1, len(train.queries) // sample)
    chosen_on = replace(train, queries=train.queries[::step][:sample])
    curve = measure_reranking(model, chosen_on, k, MUS, cache)
    metric = next(iter(curve[MUS[0]]))
    mu = max(MUS, key=lambda mu: (curve[mu][metric], -mu))
    return {"mu": mu, "metric": metric, **describe(chosen_on), "curve": curve_of(curve)}


def rerank_result(model: DRA, dataset: Dataset, k: int, mu: float, cache: Path) -> dict[str, Any]:
    """Measure what re-ranking the first ``k`` answers with ``mu`` changes; nothing is chosen by the curve."""
    measured = measure_reranking(model, dataset, k, sorted({*MUS, mu}), cache)
    before, after = measured[0.0], measured[mu]
    change = {name: round(after[name] - before[name], 2) for name in before}
    return {"k": k, "mu": mu, "before": before, "after": after, "change": change, "curve": curve_of(measured)}


def curve_of(measured: Mapping[float, Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the metrics of every mu as JSON takes them."""
    return [{"mu": mu, **metrics} for mu, metrics in measured.items()]
