"""Training runs small enough for a test: they repeat, they learn, and they leave frozen what is frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dra_runtime.errors import DatasetError, UsageError
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint
from dra_train.data import Dataset, load_cirr
from dra_train.feature_cache import Request, live_outputs
from dra_train.fit import fit
from dra_train.model import DRA
from dra_train.settings import FitSettings
from dra_train.stages import (
    Inputs,
    Temperatures,
    composition_features,
    composition_losses,
    gallery_candidates,
    warm_up_features,
)
from dra_train.triplets import Batch, Triplets, make_triplets

Folder = Any
Settings = Callable[..., FitSettings]


def weights(model: DRA) -> dict[str, torch.Tensor]:
    return model.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, bool]:
    assert a.keys() == b.keys()
    return {name: torch.equal(a[name], b[name]) for name in a}


def triplets_of(model: DRA, data: Dataset) -> Triplets:
    return make_triplets(model, data, live_outputs(model, Request(data.images, "images")))


def everything(triplets: Triplets) -> Batch:
    return triplets.batch(torch.arange(len(triplets)), triplets.texts[:, 0])


def test_same_seed_gives_the_same_weights_and_another_gives_others(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    first = weights(fit(tiny_settings(), data, tmp_path / "a", seed=3))
    torch.rand(5)  # what ran before must not matter
    again = weights(fit(tiny_settings(), data, tmp_path / "b", seed=3))
    other = weights(fit(tiny_settings(), data, tmp_path / "c", seed=4))
    assert all(same(first, again).values())
    assert not torch.equal(first["combiner.output.weight"], other["combiner.output.weight"])
    assert not torch.equal(first["text.token_embedding.weight"], other["text.token_embedding.weight"])
    assert all(same(first, weights(load_checkpoint(tmp_path / "a" / "ckpt.pt").model)).values())


@pytest.mark.parametrize("backbone", ["tiny-resnet", "tiny-vit", "demo"])
def test_training_changes_what_it_names_and_never_the_trunk(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, backbone: str
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    stages = "all" if backbone == "demo" else "last"
    chosen = (f"model.backbone={backbone}", f"model.image_stages={stages}")
    settings = tiny_settings(*chosen, "stage1.epochs=1", "stage2.epochs=1")
    trained = fit(settings, data, tmp_path)
    unchanged = same(weights(trained), weights(untrained_model(model_config(**settings.model), seed=0)))
    trunk = {n: kept for n, kept in unchanged.items() if n.startswith("visual.") and not n.startswith("visual.head.")}
    assert len(trunk) > 20
    assert all(trunk.values())  # the running means and variances of batch norms are among them
    assert backbone == "tiny-vit" or any("running_mean" in name for name in trunk)
    for name in ("combiner.output.weight", "token_projection.weight", "tac.class_token", "text.text_projection"):
        assert not unchanged[name], name
    if backbone == "demo":
        assert not unchanged["visual.head.proj.weight"]
        assert not unchanged["stage_projection.linear.weight"]
        assert not unchanged["stage_projection.mean"]  # set once, by the training images


def test_each_stage_trains_only_its_parts(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    start = weights(untrained_model(model_config(**tiny_settings().model), seed=0))

    def changed(*overrides: str) -> set[str]:
        unchanged = same(start, weights(fit(tiny_settings(*overrides), data, tmp_path, overwrite=True)))
        return {name.split(".")[0] for name, kept in unchanged.items() if not kept}

    assert changed("stage2.epochs=0") == {"text"}
    assert changed("stage1.epochs=0", 'stage2.train=["combiner"]') == {"combiner"}
    assert changed("stage1.epochs=0", 'stage2.train=["tac"]') == {"tac", "token_projection"}
    assert changed("stage1.epochs=0", "stage2.epochs=0") == set()


def test_loss_falls_and_the_log_can_be_read(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    fit(tiny_settings("stage1.epochs=6", "stage2.epochs=10", "model.dropout=0.0"), data, tmp_path)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["epoch"]) for e in log] == [
        *[("stage 1", i) for i in range(1, 7)],
        *[("stage 2", i) for i in range(1, 11)],
    ]
    for stage in ("stage 1", "stage 2"):
        losses = [e["losses"] for e in log if e["stage"] == stage]
        assert sum(losses[-1].values()) < 0.9 * sum(losses[0].values())
        assert set(losses[0]) == ({"explicit"} if stage == "stage 1" else {"explicit", "implicit"})
    assert all(0 < e["logit_scale"] <= 100 for e in log)


def test_provenance_says_how_to_repeat_the_run(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    settings = tiny_settings("stage1.epochs=1", "stage2.epochs=0")
    fit(settings, load_cirr(cirr_folder().root, "train"), tmp_path, seed=11)
    provenance = load_checkpoint(tmp_path / "ckpt.pt").provenance
    assert provenance["settings"] == settings.to_dict()
    assert (provenance["seed"], provenance["dataset"], provenance["split"]) == (11, "data", "train")
    assert provenance["versions"]["torch"] == str(torch.__version__)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["loss.views=plain"], {"explicit", "implicit"}),
        (["loss.views=compensated"], {"explicit", "implicit"}),
        (["loss.implicit_weight=0"], {"explicit"}),
        (["model.tac_layers=0"], {"explicit"}),
        (["model.tac_layers=0", "loss.views=compensated"], {"explicit"}),  # without TAC only the plain view exists
        (["loss.negatives=batch"], {"explicit", "implicit"}),
    ],
)
def test_every_choice_of_loss_trains(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, overrides: list[str], keys: set[str]
) -> None:
    fit(
        tiny_settings("stage1.epochs=1", "stage2.epochs=1", *overrides),
        load_cirr(cirr_folder().root, "train"),
        tmp_path,
    )
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert set(last["losses"]) == keys


def test_composition_loss_is_the_mean_of_its_views_plus_the_weighted_implicit_loss(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    model = untrained_model(model_config("tiny-resnet"), seed=0)
    triplets = triplets_of(model, data)
    batch = everything(triplets).take(torch.arange(10))

    def parts(*overrides: str) -> dict[str, float]:
        settings = tiny_settings("loss.feature_noise=0", *overrides).loss
        inputs = Inputs(model, triplets, settings)
        features, gallery = composition_features(inputs, batch), gallery_candidates(inputs)
        losses = composition_losses(features, batch, gallery, settings, Temperatures(20.0))
        return {k: v.item() for k, v in losses.parts.items()}

    plain, compensated, both = (parts(f"loss.views={v}")["explicit"] for v in ("plain", "compensated", "both"))
    assert both == pytest.approx((plain + compensated) / 2, rel=1e-5)
    assert abs(plain - compensated) > 1e-4
    light, heavy = (parts(f"loss.implicit_weight={w}")["implicit"] for w in (0.5, 2))
    assert heavy == pytest.approx(4 * light, rel=1e-5)
    assert parts("loss.negatives=batch")["explicit"] < parts()["explicit"]  # fewer wrong answers are on offer


def test_feature_noise_is_in_standard_deviations_of_each_feature(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    model = untrained_model(model_config("tiny-resnet"), seed=0)
    triplets = triplets_of(model, data)
    torch.testing.assert_close(triplets.spread, triplets.images.pooled.std(dim=0))
    seen: list[torch.Tensor] = []
    model.project_image = lambda pooled: (seen.append(pooled), pooled)[1]  # type: ignore[method-assign]
    for noise in (0, 0.5):
        inputs = Inputs(model, triplets, tiny_settings(f"loss.feature_noise={noise}", "loss.negatives=gallery").loss)
        for _ in range(200):
            gallery_candidates(inputs)
            warm_up_features(inputs, everything(triplets).take(slice(2)))
    clean = triplets.images.pooled
    galleries = [pooled for pooled in seen if len(pooled) == len(clean)]
    assert all(torch.equal(gallery, clean) for gallery in galleries[:200])
    errors = torch.stack(galleries[200:]) - clean
    torch.testing.assert_close(errors.std(dim=(0, 1)), 0.5 * triplets.spread, rtol=0.1, atol=0)
    assert errors.mean(dim=(0, 1)).abs().max() < 0.1 * triplets.spread.max()


def test_triplets_keep_the_end_of_every_text(cirr_folder: Callable[..., Folder]) -> None:
    """Id 0 pads, and is also "!" inside a word: a count of non-zero ids would cut such a text too early."""
    folder = cirr_folder()
    entries = json.loads(folder.captions("train").read_text())
    entries[0]["caption"] = "make it red !%!"
    entries[1]["caption"] = "make it red !%!"
    folder.captions("train").write_text(json.dumps(entries[:2]))
    model = untrained_model(model_config("tiny-resnet"))
    triplets = triplets_of(model, load_cirr(folder.root, "train"))
    assert triplets.tokens.tolist() == [[49406, 1078, 585, 736, 0, 35070, 49407]]
    assert triplets.length.tolist() == [7]
    assert triplets.texts.tolist() == [[0], [0]]


def test_triplets_hold_the_frozen_features_of_every_image_once(cirr_folder: Callable[..., Folder]) -> None:
    data = load_cirr(cirr_folder().root, "train")
    model = untrained_model(model_config("tiny-resnet"))
    triplets = triplets_of(model, data)
    names = list(data.images)
    assert triplets.images.pooled.shape == (12, 32)
    assert triplets.images.maps is not None
    maps = triplets.images.maps(torch.tensor([3, 0, 3]))
    assert maps.shape == (3, 4, 256)
    assert maps.dtype == torch.float16
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[1])
    assert [names[i] for i in triplets.reference.tolist()] == [q.reference for q in data.queries]
    assert [names[i] for i in triplets.target.tolist()] == [q.target for q in data.queries]
    assert not triplets.images.pooled.is_inference()


def test_folder_that_cannot_be_made_fails_before_the_work(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    data = load_cirr(cirr_folder().root, "train")
    for image in data.images.values():
        image.unlink()  # work on them would raise another error
    with pytest.raises(UsageError, match="can't be the run's folder"):
        fit(tiny_settings(), data, tmp_path / "file" / "run")


@pytest.mark.parametrize("cached", ["true", "false"])
def test_images_that_cant_be_opened_are_told_of_together(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, cached: str
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    damaged = list(data.images)[:2]
    for name in damaged:
        data.images[name].write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=f"2 of {len(data.images)} images .*{damaged[0]}, {damaged[1]}"):
        fit(tiny_settings(f"run.cache={cached}"), data, tmp_path / "run")
    assert not (tmp_path / "run" / "ckpt.pt").exists()
