"""The stages of training: what each computes for a batch's rows, and what it minimises.

A stage has two functions. ``features`` computes, for every triplet by itself, all that the loss needs; it may run on
pieces of a batch, in several processes. ``losses`` then sees the features of the whole batch, so that a contrastive
loss has the same wrong answers however the batch was computed (dra_train/step.py). A new stage is one more entry in
`stages`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dra_train.evaluate import project_all
from dra_train.features import device_of, to_device
from dra_train.losses import explicit_loss, implicit_loss, unique_candidates
from dra_train.model import DRA
from dra_train.rerank import agreement
from dra_train.settings import FitSettings, LossSettings, StageSettings
from dra_train.triplets import Batch, Triplets

POOL = 8  #: near misses are drawn from so many times their number of first answers
RERANK_STAGE = "stage 3"
MAX_LOGIT_SCALE = 100.0  #: CLIP's bound on learned temperatures

Features = dict[str, Tensor]  #: (B, D) each


@dataclass(frozen=True)
class Losses:
    """What a batch's features cost."""

    parts: Mapping[str, Tensor]  #: their sum is minimised
    views: Mapping[str, Tensor] = field(default_factory=dict)  #: the explicit loss of every view, for the log
    chance: Mapping[str, float] = field(default_factory=dict)  #: what an even guess would cost, by part


@dataclass(frozen=True)
class Stage:
    """One stage of training."""

    name: str
    settings: StageSettings
    features: Callable[[Inputs, Batch], Features]
    losses: Callable[[Features, Batch, Tensor | None, LossSettings, Temperatures], Losses]


def stages(settings: FitSettings) -> tuple[Stage, ...]:
    """Return the stages of a run, in order."""
    return (
        Stage("stage 1", settings.stage1, warm_up_features, explicit_losses),
        Stage("stage 2", settings.stage2, composition_features, composition_losses),
        *(
            [Stage(RERANK_STAGE, settings.stage3, near_miss_features, near_miss_losses)]
            if settings.stage3.epochs
            else []
        ),
    )


class Temperatures(nn.Module):
    """The two learned factors on cosines; they belong to training, not to the model."""

    def __init__(self, explicit: float) -> None:
        super().__init__()
        self.log_explicit = nn.Parameter(torch.tensor(math.log(explicit)))
        self.log_implicit = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start

    @property
    def explicit(self) -> Tensor:
        """Factor s of the explicit loss."""
        return self.log_explicit.exp().clamp(max=MAX_LOGIT_SCALE)

    @property
    def implicit(self) -> Tensor:
        """Inverse temperature of the implicit loss."""
        return self.log_implicit.exp().clamp(max=MAX_LOGIT_SCALE)


@dataclass(frozen=True)
class Inputs:
    """The model, and features of the training data by their rows, on the model's device."""

    model: DRA
    data: Triplets
    loss: LossSettings
    frozen_text: Tensor | None = None  #: (U, D) of all texts, where the text tower doesn't learn

    @cached_property
    def gallery(self) -> Tensor:
        """Unit features (M, D) of all training images, on the CPU, for a stage in which they don't change."""
        return F.normalize(project_all(self.model, self.data.images.pooled), dim=-1)

    def text(self, rows: Tensor) -> Tensor:
        """Return raw text_features (B, D)."""
        if self.frozen_text is not None:
            return to_device(self.frozen_text[rows], device_of(self.model))
        return encode_texts(self.model, self.data, rows)

    def image(self, rows: Tensor) -> Tensor:
        """Return raw image_features (B, D), with the settings' noise on what the trunk gave."""
        device = device_of(self.model)
        pooled = to_device(self.data.images.pooled[rows], device)
        if self.loss.feature_noise:
            spread = self.data.spread.to(device)
            pooled = pooled + self.loss.feature_noise * spread * torch.randn_like(pooled)
        return self.model.project_image(pooled)

    def image_tokens(self, rows: Tensor) -> Tensor:
        """Return the image_tokens (B, T, D) that TAC relates."""
        assert self.data.images.maps is not None
        maps = to_device(self.data.images.maps(rows), device_of(self.model))
        return self.model.project_tokens(maps.float())


def encode_texts(model: DRA, data: Triplets, rows: Tensor) -> Tensor:
    """Encode texts (B, D) by their rows; the tokens are cut to the longest of these texts."""
    tokens = data.tokens[rows, : int(data.length[rows].max())]
    return model.encode_text(to_device(tokens, device_of(model)))


def gallery_candidates(inputs: Inputs) -> Tensor | None:
    """Return unit features (M, D) of all training images, if these are the wrong answers; None: the batch's are."""
    if inputs.loss.negatives == "batch":
        return None
    return F.normalize(inputs.image(torch.arange(len(inputs.data.images.pooled))), dim=-1)


def warm_up_features(inputs: Inputs, batch: Batch) -> Features:
    """Stage 1: the query is image feature + text feature."""
    text = inputs.text(batch.text)
    reference = inputs.image(batch.reference)
    return {"plain": F.normalize(reference + text, dim=-1), "text": text, **_targets(inputs, batch)}


def composition_features(inputs: Inputs, batch: Batch) -> Features:
    """Stage 2: the queries of both views, and the relation.

    The compensated query q(f_r, F_c + F_v) has seen the target through F_v, and at test time there is no
    target; so by default the plain query q(f_r, F_c) is trained as well.
    """
    model, views = inputs.model, inputs.loss.views
    text = inputs.text(batch.text)
    reference = inputs.image(batch.reference)
    features = {"text": text, **_targets(inputs, batch)}
    if views != "compensated" or not model.has_tac:
        features["plain"] = model.compose(reference, text)
    if model.has_tac:
        tokens = inputs.image_tokens(batch.reference), inputs.image_tokens(batch.target)
        features["relation"] = model.relate(*tokens)
        if views != "plain":
            features["compensated"] = model.compose(reference, model.augment(text, features["relation"]))
    return features


def near_miss_features(inputs: Inputs, batch: Batch) -> Features:
    """Stage 3, ours: TAC sees the target and wrong answers that the query ranks high, as in re-ranking.

    Stage 2 shows TAC true pairs alone, so it has no reason to tell near misses apart.
    """
    model, images, count = inputs.model, inputs.data.images, inputs.loss.near_misses
    assert images.maps is not None
    text = inputs.text(batch.text)
    with torch.no_grad():  # dropout and noise are on: the wrong answers vary from epoch to epoch
        scores = model.compose(inputs.image(batch.reference), text).cpu() @ inputs.gallery.T
    right = torch.stack([batch.reference, batch.target], dim=1)
    near = scores.scatter(1, right, -torch.inf).topk(min(POOL * count, scores.shape[1] - 2), dim=1).indices
    near = near.gather(1, torch.rand(near.shape).argsort(dim=1)[:, :count])
    candidates = torch.cat([batch.target[:, None], near], dim=1)  # (B, 1 + near_misses), the right one first
    return {"agreement": agreement(model, batch.reference, candidates, text, images.maps)}


def explicit_losses(
    features: Features, batch: Batch, gallery: Tensor | None, settings: LossSettings, temperatures: Temperatures
) -> Losses:
    """Return the explicit loss: the mean over the views that there are."""
    if gallery is None:  # a target that occurs twice in the batch is one candidate
        target, first = unique_candidates(batch.target)
        candidates = F.normalize(features["target"][first], dim=-1)
    else:
        target, candidates = batch.target, gallery
    target = target.to(candidates.device)
    views: dict[str, Tensor] = {
        view: explicit_loss(features[view], candidates, target, temperatures.explicit)
        for view in ("plain", "compensated")
        if view in features
    }
    parts = {"explicit": torch.stack(list(views.values())).mean()}
    return Losses(parts, views, {"explicit": math.log(len(candidates))})


def composition_losses(
    features: Features, batch: Batch, gallery: Tensor | None, settings: LossSettings, temperatures: Temperatures
) -> Losses:
    """Return the explicit loss and the weighted implicit one."""
    explicit = explicit_losses(features, batch, gallery, settings, temperatures)
    weight = settings.implicit_weight
    if "relation" not in features or not weight:
        return explicit
    text_id = batch.text.to(features["text"].device)
    implicit = implicit_loss(features["relation"], features["text"], text_id, temperatures.implicit)
    parts = {**explicit.parts, "implicit": weight * implicit}
    return Losses(parts, explicit.views, {**explicit.chance, "implicit": weight * math.log(len(batch))})


def near_miss_losses(
    features: Features, batch: Batch, gallery: Tensor | None, settings: LossSettings, temperatures: Temperatures
) -> Losses:
    """Return the cross entropy of the target among its near misses, by how well each relation agrees with the text."""
    logits = temperatures.implicit * features["agreement"]
    right = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return Losses({"near misses": F.cross_entropy(logits, right)}, chance={"near misses": math.log(logits.shape[1])})


def trained_parameters(model: DRA, parts: tuple[str, ...]) -> list[nn.Parameter]:
    """Return the parameters of the named parts, and freeze all others."""
    modules: dict[str, list[nn.Module]] = {
        "text": [model.text],
        "image_head": [
            *([model.visual.head] if hasattr(model.visual, "trunk") else []),
            *([model.stage_projection] if model.stage_projection is not None else []),
        ],
        "combiner": [model.combiner],
        "tac": [model.tac, model.token_projection] if model.has_tac else [],
    }
    model.requires_grad_(False)
    chosen = [p for part in parts for module in modules[part] for p in module.parameters()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def _targets(inputs: Inputs, batch: Batch) -> Features:
    """Return the targets' raw features where the batch holds the wrong answers."""
    return {"target": inputs.image(batch.target)} if inputs.loss.negatives == "batch" else {}
