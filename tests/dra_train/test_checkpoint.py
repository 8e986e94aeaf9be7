"""Checkpoints: what comes back is what was saved; everything else is refused in one line."""

from __future__ import annotations

import hashlib
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dra_runtime.errors import CheckpointError
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main
from dra_train.model import DRA


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def outputs(model: DRA) -> list[torch.Tensor]:
    size = model.preprocess.image_size
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[49406, 320, 736, 49407], [49406, 1579, 49407, 0]])
    with torch.inference_mode():
        features, image_tokens = model.encode_image(image)
        text = model.encode_text(tokens)
        result = [features, text, model.compose(features, text)]
        if image_tokens is not None:
            result += [image_tokens, model.relate(image_tokens, image_tokens.flip(0))]
    return result


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tiny-resnet", {}),
        ("tiny-resnet", {"tac_layers": 0}),
        ("tiny-vit", {"tac_layers": 2, "tac_heads": 2, "share_layers": False, "share_streams": True}),
        ("demo", {"augmentation": "sum", "combiner_projection": 64, "combiner_hidden": 96}),
    ],
)
def test_checkpoint_rebuilds_its_model(tmp_path: Path, backbone: str, options: dict[str, Any]) -> None:
    model = untrained_model(model_config(backbone, **options), seed=7)
    path = tmp_path / "new" / "ckpt.pt"
    save_checkpoint(path, model, {"made_by": "a test", "seed": 7})
    loaded = load_checkpoint(path)
    for got, expected in zip(outputs(loaded.model), outputs(model), strict=True):
        assert torch.equal(got, expected)
    assert loaded.config == model.config
    assert loaded.provenance == {"made_by": "a test", "seed": 7}
    assert not loaded.model.training
    assert listing(path.parent) == ["ckpt.pt"]


def test_hash_is_the_files(tiny_checkpoint: Path) -> None:
    assert load_checkpoint(tiny_checkpoint).sha256 == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


def content(tiny: Path, **changes: Any) -> dict[str, Any]:
    return {**torch.load(tiny, weights_only=True), **changes}


def changed_config(tiny: Path, **changes: Any) -> dict[str, Any]:
    return content(tiny, config={**content(tiny)["config"], **changes})


Spoil = Callable[[Path, Path], object]
SPOILED: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda path, tiny: None, "doesn't exist or is no file; expected a checkpoint"),
    "a folder": (lambda path, tiny: path.mkdir(), "doesn't exist or is no file"),
    "empty": (lambda path, tiny: path.write_bytes(b""), "damaged or no checkpoint"),
    "truncated": (lambda path, tiny: path.write_bytes(tiny.read_bytes()[:-1000]), "damaged or no checkpoint"),
    "cut to its start": (lambda path, tiny: path.write_bytes(tiny.read_bytes()[:200]), "damaged or no checkpoint"),
    "a text": (lambda path, tiny: path.write_text("weights will follow\n" * 9), "damaged or no checkpoint"),
    "a plain pickle": (lambda path, tiny: path.write_bytes(pickle.dumps({"a": 1})), "damaged or no checkpoint"),
    "a state dict": (lambda path, tiny: torch.save({"w": torch.ones(2)}, path), "lacks format 'dra-checkpoint'"),
    "a tensor": (lambda path, tiny: torch.save(torch.ones(2), path), "lacks format 'dra-checkpoint'"),
    "a newer version": (
        lambda path, tiny: torch.save(content(tiny, version=2), path),
        "has version 2; this toolkit reads version 1",
    ),
    "without weights": (lambda path, tiny: torch.save(content(tiny, model={}), path), "don't fit each other"),
    "weights that are a number": (lambda path, tiny: torch.save(content(tiny, model=3), path), "don't fit each other"),
    "no provenance": (
        lambda path, tiny: torch.save({k: v for k, v in content(tiny).items() if k != "provenance"}, path),
        "provenance",
    ),
    "a configuration that is a list": (lambda path, tiny: torch.save(content(tiny, config=[]), path), "configuration"),
    "an unknown option": (
        lambda path, tiny: torch.save(changed_config(tiny, tac_depth=3), path),
        "doesn't fit this version of the toolkit: .*tac_depth",
    ),
    "another size": (
        lambda path, tiny: torch.save(changed_config(tiny, combiner_hidden=7), path),
        "weights and configuration don't fit each other",
    ),
    "a text tower that would be fetched": (
        lambda path, tiny: torch.save(
            changed_config(
                tiny, clip={**content(tiny)["config"]["clip"], "text_cfg": {"hf_model_name": "some-org/some-model"}}
            ),
            path,
        ),
        "text tower must be CLIP's",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_unusable_checkpoints_are_one_line_and_exit_code_two(name: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    spoil, message = SPOILED[name]
    path = tmp_path / "ckpt.pt"
    spoil(path, tiny_checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)

    result = CliRunner().invoke(main, ["evaluate", str(path), "--json"])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {path}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, legacy: bool) -> None:
    path, witness = tmp_path / "ckpt.pt", tmp_path / "it-ran"
    torch.save(
        {"format": "dra-checkpoint", "version": 1, "model": Bomb(witness)},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)
    assert not witness.exists()
    torch.load(path, weights_only=False)  # the same file does run it where loading is careless
    assert witness.is_dir()


def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails half-way, in torch's own writer."""
    path = tmp_path / "ckpt.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    model = untrained_model(model_config("tiny-resnet"), seed=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(CheckpointError, match=r"ckpt\.pt can't be written") as caught:
            save_checkpoint(path, model, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["ckpt.pt"]
    assert path.read_bytes() == tiny_checkpoint.read_bytes()


def test_interrupted_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "ckpt.pt", untrained_model(model_config("tiny-resnet")), {})
    assert listing(tmp_path) == []


def test_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    model = untrained_model(model_config("tiny-resnet"))
    for path in (tmp_path / "file" / "ckpt.pt", tmp_path / "folder"):
        with pytest.raises(CheckpointError, match="can't be written"):
            save_checkpoint(path, model, {})
    assert listing(tmp_path) == ["file", "folder"]
