"""One step of training: the gradient of a batch's loss, however the batch is computed.

A contrastive loss compares every row of the batch with every other, so the loss of a batch isn't the sum of its
pieces' losses. Here the features of all rows come first, in pieces (``accumulate``) and by several processes; the loss
and its gradient with respect to the features are those of the whole batch; then that gradient goes back through each
piece. Where there are several pieces, their activations don't fit into memory together: each is computed again, with
the same random state, when its turn comes (Gao et al., "Scaling deep contrastive learning batch size under memory
limited setup", arXiv 2101.06983).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dra_train.stages import Features, Inputs, Losses, Stage, Temperatures, gallery_candidates
from dra_train.triplets import Batch
from dra_train.workers import Workers

WARM_UP = 0.1  #: share of a stage's steps in which the learning rate rises
MAX_GRADIENT = 1.0  #: norm at which gradients are clipped
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Optimization:
    """What turns gradients into steps."""

    parameters: list[nn.Parameter]  #: of the model
    temperatures: Temperatures
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  #: keeps fp16's small gradients above zero; does nothing otherwise


def make_optimization(
    stage: Stage, parameters: list[nn.Parameter], temperatures: Temperatures, device: torch.device, precision: str
) -> Optimization:
    """Return AdamW over a stage's parameters and the temperatures; only matrices decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": stage.settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1] + list(temperatures.parameters()), "weight_decay": 0.0},
    ]
    # Fused: one pass over the weights in place of a dozen
    optimizer = torch.optim.AdamW(groups, lr=stage.settings.learning_rate, eps=1e-7, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Optimization(parameters, temperatures, optimizer, scaler)


def train_step(
    stage: Stage,
    inputs: Inputs,
    batch: Batch,
    optimization: Optimization,
    workers: Workers,
    precision: str,
    rate: float,
) -> tuple[Losses, Features, Tensor]:
    """Change the weights by one step at learning rate ``rate``; returns losses, features (B, D) and gradient norm."""
    optimizer, scaler = optimization.optimizer, optimization.scaler
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    losses, features = backward(stage, inputs, batch, optimization.temperatures, workers, precision, scaler)
    workers.average([*optimization.parameters, *optimization.temperatures.parameters()])
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(optimization.parameters, MAX_GRADIENT)
    scaler.step(optimizer)
    scaler.update()
    return losses, features, norm


def backward(
    stage: Stage,
    inputs: Inputs,
    batch: Batch,
    temperatures: Temperatures,
    workers: Workers,
    precision: str,
    scaler: torch.amp.GradScaler,
) -> tuple[Losses, Features]:
    """Add the gradient of the whole batch's loss to the parameters; its mean over the processes is exact."""
    device = workers.device
    half = torch.autocast(device.type, dtype=HALVES.get(precision, torch.bfloat16), enabled=precision != "fp32")
    start, length = workers.share(len(batch))
    mine = batch.take(torch.arange(start, start + length).clamp(max=len(batch) - 1))  # what is over is cut off below
    size = math.ceil(length / stage.settings.accumulate)
    pieces = [slice(first, min(first + size, length)) for first in range(0, length, size)]
    again = len(pieces) > 1

    with half:
        gallery = gallery_candidates(inputs)
    computed: list[Features] = []
    random_states: list[list[Tensor] | None] = []
    for piece in pieces:
        random_states.append(random_state(device) if again else None)
        with torch.set_grad_enabled(not again), half:
            computed.append({name: value.float() for name, value in stage.features(inputs, mine.take(piece)).items()})
    share = {name: torch.cat([features[name] for features in computed]) for name in computed[0]}
    whole = {name: workers.gather(value.detach(), len(batch)).requires_grad_() for name, value in share.items()}

    losses = stage.losses(whole, batch, None if gallery is None else gallery.float(), inputs.loss, temperatures)
    scaler.scale(torch.stack(list(losses.parts.values())).sum()).backward()

    # Every process has the gradient of the one loss of all rows; it hands back its own rows', times the number of
    # processes, because the mean over them follows.
    gradients = {
        name: _rows(value.grad, start, length) * workers.count
        for name, value in whole.items()
        if value.grad is not None
    }
    for piece, state in zip(pieces, random_states, strict=True):
        features = share
        if state is not None:
            set_random_state(state, device)
            with half:
                features = {name: value.float() for name, value in stage.features(inputs, mine.take(piece)).items()}
        learns = [name for name in gradients if features[name].requires_grad]
        if learns:
            torch.autograd.backward([features[name] for name in learns], [gradients[name][piece] for name in learns])
    return losses, {name: value.detach() for name, value in whole.items()}


def learning_rate(stage: Stage, step: int, steps: int) -> float:
    """Return a stage's learning rate at ``step`` of ``steps``: a linear rise, then its schedule."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        factor = (step + 1) / warm_up
    elif stage.settings.schedule == "constant":
        factor = 1.0
    else:
        factor = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
    return stage.settings.learning_rate * factor


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of PyTorch's random numbers: the CPU's, and the device's where it has its own."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _rows(gradient: Tensor, start: int, length: int) -> Tensor:
    """Return rows ``start`` to ``start + length`` of a whole batch's gradient; zeros beyond its end."""
    rows = gradient[start : start + length]
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])]) if len(rows) < length else rows
