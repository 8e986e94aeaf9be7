"""One step: pieces of a batch, precision and activation checkpointing against the plain computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dra_train.backbones import model_config, untrained_model
from dra_train.data import load_cirr
from dra_train.feature_cache import Request, live_outputs
from dra_train.settings import FitSettings
from dra_train.stages import Inputs, Stage, Temperatures, gallery_candidates, stages, trained_parameters
from dra_train.step import backward, learning_rate, random_state, set_random_state
from dra_train.triplets import make_triplets
from dra_train.workers import Workers

Folder = Any
Settings = Callable[..., FitSettings]
CPU = torch.device("cpu")


class Case:
    """A model with a batch of ten triplets, and its gradients under some settings."""

    def __init__(self, root: Path, settings: FitSettings, stage: int) -> None:
        data = load_cirr(root, "train")
        self.model = untrained_model(model_config(**settings.model), seed=0)
        triplets = make_triplets(self.model, data, live_outputs(self.model, Request(data.images, "images")))
        self.batch = triplets.batch(torch.arange(10), triplets.texts[:, 0])
        self.inputs = Inputs(self.model, triplets, settings.loss)
        self.stage: Stage = stages(settings)[stage]
        self.parameters = trained_parameters(self.model, self.stage.settings.train)
        self.temperatures = Temperatures(20.0)
        self.model.train()
        self.model.visual.eval()

    def gradients(self) -> list[Tensor]:
        wanted = [*self.parameters, *self.temperatures.parameters()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in wanted]
        for parameter in wanted:
            parameter.grad = None
        return gradients

    def stepped(self, precision: str = "fp32") -> tuple[float, list[Tensor]]:
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        losses, _ = backward(self.stage, self.inputs, self.batch, self.temperatures, Workers(CPU), precision, scaler)
        return sum(value.item() for value in losses.parts.values()), self.gradients()

    def in_one_graph(self, pieces: list[slice]) -> tuple[float, list[Tensor]]:
        """Return what plain autograd gives when the same pieces are computed and kept."""
        torch.manual_seed(0)
        gallery = gallery_candidates(self.inputs)
        computed = [self.stage.features(self.inputs, self.batch.take(piece)) for piece in pieces]
        whole = {name: torch.cat([features[name] for features in computed]) for name in computed[0]}
        losses = self.stage.losses(whole, self.batch, gallery, self.inputs.loss, self.temperatures)
        total = torch.stack(list(losses.parts.values())).sum()
        total.backward()
        return total.item(), self.gradients()


def assert_same(got: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]], close: float = 1e-3) -> None:
    """Compare each parameter's gradient as a vector: its error's length against its own.

    Other pieces are other sums: float32 then differs by 6e-5 of a gradient's length at most (measured), while single
    elements, sums of terms that cancel, may differ by any share of themselves. A row, a negative or a factor that is
    wrong changes tenths of the length. Keys' biases have no gradient but rounding (softmax ignores them), hence 1e-6.
    """
    assert got[0] == pytest.approx(expected[0], rel=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected[1])
    for mine, theirs in zip(got[1], expected[1], strict=True):
        assert (mine - theirs).norm() <= close * theirs.norm() + (1e-6 if close else 0)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("negatives", ["batch", "gallery"])
def test_pieces_of_a_batch_give_the_gradient_of_the_whole(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, stage: int, negatives: str
) -> None:
    """Dropout and noise on: the pieces' random numbers come again when they are computed again."""
    root = cirr_folder().root
    sets = (f"loss.negatives={negatives}", "stage1.accumulate=3", "stage2.accumulate=3")
    case = Case(root, tiny_settings(*sets), stage)
    pieces = [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert_same(case.stepped(), case.in_one_graph(pieces))
    assert_same(case.stepped(), case.stepped(), close=0)


@pytest.mark.parametrize("accumulate", [1, 2, 4, 10, 99])
def test_any_number_of_pieces_gives_the_same_without_dropout(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, accumulate: int
) -> None:
    root = cirr_folder().root
    calm = ("model.dropout=0.0", "loss.feature_noise=0", "loss.negatives=batch")
    whole = Case(root, tiny_settings(*calm), 1)
    pieces = Case(root, tiny_settings(*calm, f"stage2.accumulate={accumulate}"), 1)
    assert_same(pieces.stepped(), whole.in_one_graph([slice(0, 10)]))


def test_checkpointed_activations_change_nothing(cirr_folder: Callable[..., Folder], tiny_settings: Settings) -> None:
    case = Case(cirr_folder().root, tiny_settings(), 0)
    plain = case.stepped()
    calls: list[int] = []
    block = case.model.text.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    case.model.text.set_grad_checkpointing(True)
    assert_same(case.stepped(), plain)
    assert len(calls) == 2  # forward, and again on the way back


@pytest.mark.parametrize(("precision", "close"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_is_close_and_its_losses_are_whole(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, precision: str, close: float
) -> None:
    calm = ("model.dropout=0.0", "loss.feature_noise=0")
    case = Case(cirr_folder().root, tiny_settings(*calm), 1)
    exact, rounded = case.stepped(), case.stepped(precision)
    assert rounded[0] != exact[0]
    assert rounded[0] == pytest.approx(exact[0], rel=close)
    cosine = torch.cosine_similarity(*(torch.cat([g.flatten() for g in s[1]]) for s in (exact, rounded)), dim=0)
    assert cosine > 0.99
    assert all(gradient.dtype == torch.float32 for gradient in rounded[1])


def test_learning_rate_rises_then_follows_its_schedule(tiny_settings: Settings) -> None:
    cosine, constant = (
        stages(tiny_settings("stage2.learning_rate=2.0", f"stage2.schedule={name}"))[1]
        for name in ("cosine", "constant")
    )
    rises = [learning_rate(cosine, step, 100) for step in range(10)]
    assert rises == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert learning_rate(cosine, 55, 100) == pytest.approx(1.0)
    assert learning_rate(cosine, 100, 100) == pytest.approx(0.0)
    assert {learning_rate(constant, step, 100) for step in (9, 10, 55, 99)} == {2.0}


def test_random_state_comes_back() -> None:
    state = random_state(CPU)
    first = torch.rand(4)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(4), first)
