"""Train DRA in its two stages.

    dra-train fit --preset demo --out runs/demo
    dra-train fit --preset demo --dataset my-data --set stage2.epochs=10 --seed 1 --out runs/mine

The image tower's trunk is frozen throughout, so its features are computed once. Stage 1 warms up the text tower
with the query image feature + text feature; stage 2 trains the compositors with the explicit and the implicit
loss (docs/method.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dra_runtime import __version__
from dra_runtime.console import progress
from dra_runtime.errors import UsageError
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import save_checkpoint
from dra_train.data import Dataset
from dra_train.features import tokenize, trunk_features
from dra_train.losses import explicit_loss, implicit_loss, unique_candidates
from dra_train.model import DRA, FrozenFeatures
from dra_train.settings import FitSettings, LossSettings, StageSettings
from dra_train.vocabulary import END_TOKEN

WARM_UP = 0.1  #: share of a stage's steps in which the learning rate rises; then it falls as a cosine
MAX_LOGIT_SCALE = 100.0  #: CLIP's bound on learned temperatures


@dataclass(frozen=True)
class Triplets:
    """The training data as tensors: one row a triplet, images by their index."""

    reference: Tensor  #: (N,) index into the images
    target: Tensor  #: (N,)
    tokens: Tensor  #: (N, L) int32, padded with 0
    length: Tensor  #: (N,) tokens up to the end-of-text token
    text_id: Tensor  #: (N,) equal where texts are equal
    images: FrozenFeatures  #: of all M training images
    spread: Tensor  #: (P,) standard deviation of every pooled feature over the images


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


def fit(settings: FitSettings, dataset: Dataset, out: Path, seed: int = 0) -> DRA:
    """Train a model on ``dataset`` and write ``out/ckpt.pt`` and ``out/log.jsonl``.

    The same settings, seed, library versions and thread count give the same weights.
    """
    try:  # before the minutes of work whose result goes there
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} can't be the run's folder: {error}") from error
    model = untrained_model(model_config(**settings.model), seed)
    triplets = make_triplets(model, dataset)
    torch.manual_seed(seed)
    temperatures = Temperatures(settings.loss.logit_scale)
    with (out / "log.jsonl").open("w", encoding="utf-8") as log:

        def record(entry: dict[str, Any]) -> None:
            log.write(json.dumps(entry) + "\n")
            log.flush()

        run_stage("stage 1", settings.stage1, warm_up_loss, model, triplets, settings.loss, temperatures, record)
        run_stage("stage 2", settings.stage2, composition_loss, model, triplets, settings.loss, temperatures, record)
    provenance = {
        "made_by": "dra-train fit",
        "dataset": dataset.name,
        "split": dataset.split,
        "settings": settings.to_dict(),
        "seed": seed,
        "versions": {"dra-toolkit": __version__, "torch": str(torch.__version__)},
    }
    save_checkpoint(out / "ckpt.pt", model, provenance)
    return model


def make_triplets(model: DRA, dataset: Dataset) -> Triplets:
    """Tokenize the texts and run the frozen trunk over the images, once."""
    index = {name: i for i, name in enumerate(dataset.images)}
    texts = [q.text for q in dataset.queries]
    text_id = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    tokens = tokenize(model, texts)
    images = trunk_features(model, list(dataset.images.values()), "training images")
    return Triplets(
        reference=torch.tensor([index[q.reference] for q in dataset.queries]),
        target=torch.tensor([index[q.target] for q in dataset.queries]),
        tokens=tokens,
        # Not the count of non-zeros: 0 pads, but it is also the id of "!" inside a word.
        length=(tokens == END_TOKEN).int().argmax(dim=1) + 1,
        text_id=torch.tensor([text_id[text] for text in texts]),
        images=images,
        spread=images.pooled.std(dim=0),
    )


Loss = Callable[[DRA, Triplets, Tensor, LossSettings, Temperatures], dict[str, Tensor]]


def run_stage(
    name: str,
    stage: StageSettings,
    loss: Loss,
    model: DRA,
    triplets: Triplets,
    loss_settings: LossSettings,
    temperatures: Temperatures,
    record: Callable[[dict[str, Any]], None],
) -> None:
    """Train the stage's parts of ``model`` in place, and record the mean losses of every epoch."""
    parameters = trained_parameters(model, stage.train)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": stage.weight_decay},
            {
                "params": [p for p in parameters if p.ndim <= 1] + list(temperatures.parameters()),
                "weight_decay": 0.0,
            },
        ],
        lr=stage.learning_rate,
        eps=1e-7,
        fused=True,  # one pass over the weights in place of a dozen
    )
    count = len(triplets.target)
    steps = stage.epochs * math.ceil(count / stage.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step, steps))
    model.train()
    model.visual.eval()  # frozen: its batch norms keep their statistics, its features were computed once
    with progress(steps, name) as advance:
        for epoch in range(stage.epochs):
            totals: dict[str, float] = {}
            for batch in _batches(count, stage.batch_size):
                parts = loss(model, triplets, batch, loss_settings, temperatures)
                total = torch.stack(list(parts.values())).sum()
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                for key, value in parts.items():
                    totals[key] = totals.get(key, 0.0) + value.item() * len(batch) / count
                advance(1)
            record(
                {
                    "stage": name,
                    "epoch": epoch + 1,
                    "losses": totals,
                    "logit_scale": temperatures.explicit.item(),
                }
            )
    model.eval()


def trained_parameters(model: DRA, parts: tuple[str, ...]) -> list[nn.Parameter]:
    """Return the parameters of the named parts, and freeze all others."""
    modules: dict[str, list[nn.Module]] = {
        "text": [model.text],
        "image_head": [model.visual.head] if hasattr(model.visual, "trunk") else [],
        "combiner": [model.combiner],
        "tac": [model.tac, model.token_projection] if model.has_tac else [],
    }
    model.requires_grad_(False)
    chosen = [p for part in parts for module in modules[part] for p in module.parameters()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def warm_up_loss(
    model: DRA, triplets: Triplets, batch: Tensor, settings: LossSettings, temperatures: Temperatures
) -> dict[str, Tensor]:
    """Stage 1: the explicit loss of the query image feature + text feature."""
    text = encode_texts(model, triplets, batch)
    candidates, target = _candidates(model, triplets, batch, settings)
    reference = _image_features(model, triplets, triplets.reference[batch], settings)
    query = F.normalize(reference + text, dim=-1)
    return {"explicit": explicit_loss(query, candidates, target, temperatures.explicit)}


def composition_loss(
    model: DRA, triplets: Triplets, batch: Tensor, settings: LossSettings, temperatures: Temperatures
) -> dict[str, Tensor]:
    """Stage 2: the explicit loss on the chosen views, and the implicit loss.

    The compensated query q(f_r, F_c + F_v) has seen the target through F_v, and at test time there is no
    target; so by default the plain query q(f_r, F_c) is trained as well.
    """
    text = encode_texts(model, triplets, batch)
    candidates, target = _candidates(model, triplets, batch, settings)
    reference = _image_features(model, triplets, triplets.reference[batch], settings)
    views = []
    losses = {}
    if settings.views != "compensated" or not model.has_tac:
        views.append(model.compose(reference, text))
    if model.has_tac:
        maps = triplets.images.feature_map
        reference_tokens = model.project_tokens(maps[triplets.reference[batch]].float())
        target_tokens = model.project_tokens(maps[triplets.target[batch]].float())
        relation = model.relate(reference_tokens, target_tokens)
        if settings.views != "plain":
            views.append(model.compose(reference, model.augment(text, relation)))
        if settings.implicit_weight:
            implicit = implicit_loss(relation, text, triplets.text_id[batch], temperatures.implicit)
            losses["implicit"] = settings.implicit_weight * implicit
    explicit = [explicit_loss(query, candidates, target, temperatures.explicit) for query in views]
    return {"explicit": torch.stack(explicit).mean(), **losses}


def encode_texts(model: DRA, triplets: Triplets, batch: Tensor) -> Tensor:
    """Encode a batch's texts, cut to the longest of them."""
    return model.encode_text(triplets.tokens[batch, : int(triplets.length[batch].max())])


def _candidates(model: DRA, triplets: Triplets, batch: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Return unit image features to rank (G, D), and each target's index among them (N,)."""
    if settings.negatives == "gallery":
        rows, target = torch.arange(len(triplets.images.pooled)), triplets.target[batch]
    else:
        rows, target = unique_candidates(triplets.target[batch])
    return F.normalize(_image_features(model, triplets, rows, settings), dim=-1), target


def _image_features(model: DRA, triplets: Triplets, rows: Tensor, settings: LossSettings) -> Tensor:
    """Return raw features (len(rows), D) of training images, from cached trunk outputs with the settings' noise."""
    pooled = triplets.images.pooled[rows]
    if settings.feature_noise:
        pooled = pooled + settings.feature_noise * triplets.spread * torch.randn_like(pooled)
    return model.project_image(pooled)


def _batches(count: int, size: int) -> Iterator[Tensor]:
    return iter(torch.randperm(count).split(size))


def _learning_rate_factor(step: int, steps: int) -> float:
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
