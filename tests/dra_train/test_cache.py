"""Cached features: computed once, never used for anything else, rebuilt when damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dra_train.feature_cache
from dra_runtime.errors import DatasetError, DraError, UsageError
from dra_train.backbones import model_config, untrained_model
from dra_train.data import load_cirr
from dra_train.feature_cache import ImageOutputs, Request, cached_outputs, default_cache, live_outputs
from dra_train.features import load_images
from dra_train.fit import fit
from dra_train.model import DRA
from dra_train.settings import FitSettings

Folder = Any
Settings = Callable[..., FitSettings]


@pytest.fixture
def model() -> DRA:
    return untrained_model(model_config("tiny-resnet"), seed=0)


@pytest.fixture
def images(cirr_folder: Callable[..., Folder]) -> dict[str, Path]:
    return dict(load_cirr(cirr_folder().root, "train").images)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many times the trunk ran over the images."""
    counted: list[int] = []
    real = dra_train.feature_cache.trunk_batches
    monkeypatch.setattr(
        dra_train.feature_cache, "trunk_batches", lambda model, paths: (counted.append(1), real(model, paths))[1]
    )
    return counted


def maps_of(outputs: ImageOutputs, rows: list[int]) -> torch.Tensor:
    assert outputs.maps is not None
    return outputs.maps(torch.tensor(rows))


def test_outputs_are_the_trunks_and_are_computed_once(
    model: DRA, images: dict[str, Path], tmp_path: Path, passes: list[int]
) -> None:
    request = Request(images, "images")
    first = cached_outputs(model, request, tmp_path / "cache")
    with torch.no_grad():
        expected = model.image_trunk(load_images(model, list(images.values())))
    torch.testing.assert_close(first.pooled, expected.pooled)
    torch.testing.assert_close(maps_of(first, [5, 0, 5]), expected.feature_map[[5, 0, 5]].half())
    again = cached_outputs(model, request, tmp_path / "cache")
    assert torch.equal(again.pooled, first.pooled)
    assert len(passes) == 1
    (folder,) = (tmp_path / "cache" / "features").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["maps.f16", "meta.json", "pooled.f32"]
    assert (folder / "maps.f16").stat().st_size == 12 * 4 * 256 * 2


def test_anything_that_matters_makes_another_cache(
    model: DRA, images: dict[str, Path], tmp_path: Path, passes: list[int]
) -> None:
    def passes_for(model: DRA, images: dict[str, Path], maps: bool = True) -> int:
        before = len(passes)
        cached_outputs(model, Request(images, "images", maps), tmp_path / "cache")
        return len(passes) - before

    assert passes_for(model, images) == 1
    for parameter in (*model.text.parameters(), *model.combiner.parameters(), *model.tac.parameters()):
        parameter.data.add_(1.0)  # not of the trunk
    assert passes_for(model, images) == 0
    other = untrained_model(model_config("tiny-resnet"), seed=1)
    assert passes_for(other, images) == 1
    model.visual.layer4[0].bn1.running_mean.add_(0.1)
    assert passes_for(model, images) == 1
    model.config = replace(model.config, preprocess=replace(model.config.preprocess, pad_ratio=2.0))
    assert passes_for(model, images) == 1
    assert passes_for(model, images, maps=False) == 1
    assert passes_for(model, dict(list(images.items())[::-1])) == 1
    first = next(iter(images.values()))
    Image.new("RGB", (20, 20), "white").save(first)
    assert passes_for(model, images) == 1
    os.utime(first, ns=(1, 1))
    assert passes_for(model, images) == 1
    assert passes_for(model, images) == 0


@pytest.mark.parametrize("damage", ["cut", "longer", "gone", "meta", "empty"])
def test_damaged_cache_is_computed_anew(
    model: DRA, images: dict[str, Path], tmp_path: Path, passes: list[int], damage: str
) -> None:
    request = Request(images, "images")
    good = cached_outputs(model, request, tmp_path)
    expected = maps_of(good, [1, 2]).clone()
    (folder,) = (tmp_path / "features").iterdir()
    maps, meta = folder / "maps.f16", folder / "meta.json"
    match damage:
        case "cut":
            maps.write_bytes(maps.read_bytes()[:-2])
        case "longer":
            maps.write_bytes(maps.read_bytes() + b"ab")
        case "gone":
            (folder / "pooled.f32").unlink()
        case "meta":
            meta.write_text(json.dumps({"pooled": "many"}))
        case "empty":
            meta.write_text("")
    mended = cached_outputs(model, request, tmp_path)
    assert len(passes) == 2
    assert torch.equal(maps_of(mended, [1, 2]), expected)
    assert list((tmp_path / "features").iterdir()) == [folder]


def test_live_and_cached_features_give_the_same_losses(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    """Both round the maps to half precision."""
    data = load_cirr(cirr_folder().root, "train")

    def losses(name: str, cache: str) -> list[float]:
        fit(tiny_settings(f"run.cache={cache}"), data, tmp_path / name, cache=tmp_path / "cache")
        entries = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return [value for entry in entries for value in entry["losses"].values()]

    live = losses("live", "false")
    assert not (tmp_path / "cache").exists()
    cached = losses("cached", "true")
    assert losses("again", "true") == cached
    assert live == pytest.approx(cached, rel=1e-5)
    assert len(cached) == 2 + 2 * 3


def test_full_disk_and_a_folder_that_cannot_be_are_one_line(
    model: DRA, images: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"can't be kept below .*--cache.*run.cache=false") as caught:
        cached_outputs(model, Request(images, "images"), tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_interrupted_build_leaves_nothing(
    model: DRA, images: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(images.values())[-1].write_bytes(b"no picture")
    with pytest.raises(DraError):
        cached_outputs(model, Request(images, "images"), tmp_path)
    assert list((tmp_path / "features").iterdir()) == []


def test_empty_and_missing_images_are_named(model: DRA, images: dict[str, Path], tmp_path: Path) -> None:
    images["c3-dark"].write_bytes(b"")
    with pytest.raises(DatasetError, match=r"image 'c3-dark' is empty"):
        cached_outputs(model, Request(images, "images"), tmp_path)
    images["c3-dark"].unlink()
    with pytest.raises(DatasetError, match=r"image 'c3-dark' can't be read"):
        cached_outputs(model, Request(images, "images"), tmp_path)


def test_live_maps_repeat_an_image_that_is_asked_for_twice(model: DRA, images: dict[str, Path]) -> None:
    maps = maps_of(live_outputs(model, Request(images, "images")), [4, 2, 4])
    assert torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[0], maps[1])


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRA_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("DRA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert default_cache() == Path("/var/cache/me/dra-toolkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache() == Path("/home/me/.cache/dra-toolkit")
