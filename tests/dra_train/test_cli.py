"""The command dra-train as its users meet it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dra_runtime import __version__
from dra_runtime.errors import CheckpointError
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main
from dra_train.commands.evaluate import recall_table
from dra_train.data import load_cirr
from dra_train.evaluate import evaluate, score

Folder = Any
TINY = ("--set", "model.backbone=tiny-resnet", "--set", "stage1.epochs=1", "--set", "stage2.epochs=1")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def assert_one_line(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_fit_then_evaluate(cirr_folder: Callable[..., Folder], tmp_path: Path) -> None:
    root = cirr_folder().root
    result = run("fit", "--preset", "demo", "--dataset", root, "--out", tmp_path / "run", *TINY)
    assert result.exit_code == 0, result.stderr
    assert "training on 24 triplets over 12 images" in result.stderr
    assert "ckpt.pt written after" in result.stdout
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["ckpt.pt", "log.jsonl", "train_state.pt"]

    saved = tmp_path / "eval.json"
    result = run("evaluate", tmp_path / "run" / "ckpt.pt", "--dataset", root, "--json", "-o", saved)
    assert result.exit_code == 0, result.stderr
    measured = json.loads(result.stdout)
    assert json.loads(saved.read_text()) == measured
    assert {"dataset", "split", "protocol", "queries", "gallery", "metrics", "baselines"} <= set(measured)
    assert (measured["dataset"], measured["split"]) == ("data", "val")
    assert (measured["queries"], measured["gallery"]) == (24, 12)
    assert "reference dropped" in measured["protocol"]
    assert set(measured["baselines"]) == {"image_only", "text_only"}
    for metrics in (measured["metrics"], *measured["baselines"].values()):
        assert {"R@1", "R@5", "R@10", "R@50", "Rsubset@1"} <= set(metrics)
        assert all(0 <= value <= 100 for value in metrics.values())
        assert metrics["R@50"] == 100.0  # eleven candidates


def test_several_splits_are_a_list_and_a_table_each(
    cirr_folder: Callable[..., Folder], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = cirr_folder().root
    splits = ("--dataset", root, "--split", "train", "--split", "val")
    assert [r["split"] for r in json.loads(run("evaluate", tiny_checkpoint, *splits, "--json").stdout)] == [
        "train",
        "val",
    ]
    shown = run("evaluate", tiny_checkpoint, *splits, "-o", tmp_path / "eval.json").stdout
    assert [r["split"] for r in json.loads((tmp_path / "eval.json").read_text())] == ["train", "val"]
    assert "data / train: recall in % over a gallery of 12 images" in shown
    assert shown.count("| composed query |") == shown.count("| image only") == shown.count("| text only") == 2


def test_recalls_of_the_builtin_data_say_that_they_are_demo_recalls() -> None:
    metrics = {"R@1": 4.0}
    result = {"split": "val", "queries": 9, "gallery": 7, "metrics": metrics, "baselines": {"image_only": metrics}}
    assert "demo recalls" in recall_table(
        {**result, "dataset": "emoji_cir", "by_edit": {"tone": metrics | {"queries": 3}}}
    )
    assert "demo recalls" not in recall_table({**result, "dataset": "cirr", "by_edit": {}})


def test_scores_are_the_cosines_of_open_clips_own_forward_passes(
    cirr_folder: Callable[..., Folder], tiny_checkpoint: Path
) -> None:
    """One image and one padded text at a time, through the towers as open_clip runs them."""
    data = load_cirr(cirr_folder().root, "val")
    model = load_checkpoint(tiny_checkpoint).model
    scores = score(model, data)
    with torch.inference_mode():
        features = []
        for path in data.images.values():
            with Image.open(path) as image:
                features.append(model.visual(torch.from_numpy(model.preprocess(image))[None]))
        gallery = torch.cat(features)
        names = list(data.images)
        for row, query in enumerate(data.queries):
            reference = gallery[names.index(query.reference)][None]
            text = model.text(open_clip.tokenize([query.text]))
            expected = {"composed": model.compose(reference, text), "image_only": reference, "text_only": text}
            for view, vector in expected.items():
                cosines = torch.nn.functional.cosine_similarity(vector, gallery, dim=1)
                np.testing.assert_allclose(getattr(scores, view)[row], cosines, atol=1e-5)


def test_diverged_model_is_an_error_not_a_perfect_score(
    cirr_folder: Callable[..., Folder], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    with torch.no_grad():
        model.combiner.output.bias[0] = float("nan")
    save_checkpoint(tmp_path / "nan.pt", model, {})
    data = load_cirr(cirr_folder().root, "val")
    with pytest.raises(CheckpointError, match="aren't finite"):
        evaluate(model, data)
    assert_one_line(run("evaluate", tmp_path / "nan.pt", "--dataset", cirr_folder(root="b").root), "training diverged")


def test_init_writes_a_checkpoint_that_repeats(tmp_path: Path) -> None:
    for name, seed in (("a.pt", 5), ("b.pt", 5), ("c.pt", 6)):
        result = run("init", "--backbone", "tiny-vit", "--out", tmp_path / name, "--seed", seed)
        assert result.exit_code == 0, result.stderr
        assert "tiny-vit" in result.stdout
        assert "untrained" in result.stdout
    a, b, c = (load_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt"))
    assert a.provenance == {"made_by": "dra-train init", "backbone": "tiny-vit", "seed": 5}
    assert torch.equal(a.model.combiner.hidden.weight, b.model.combiner.hidden.weight)
    assert not torch.equal(a.model.combiner.hidden.weight, c.model.combiner.hidden.weight)


def test_misuse_is_one_line(cirr_folder: Callable[..., Folder], tiny_checkpoint: Path, tmp_path: Path) -> None:
    root, out = cirr_folder().root, tmp_path / "never"
    fit = ("fit", "--out", out, "--dataset", root)
    assert_one_line(run(*fit, "--preset", "imagenet"), "preset 'imagenet' is unknown; use cirr, demo")
    assert_one_line(run(*fit, "--preset", "demo", "--backbone", "RN99"), "backbone 'RN99' is unknown")
    assert_one_line(run(*fit, "--preset", "demo", "--set", "stage2.epoch=1"), "'stage2.epoch=1' isn't")
    assert_one_line(run("fit", "--out", out, "--preset", "demo", "--dataset", tmp_path / "no"), "is no folder")
    assert_one_line(run("fit", "--preset", "demo"), "Missing option '--out'")
    assert_one_line(run("init", "--backbone", "RN99", "--out", out), "backbone 'RN99' is unknown")
    assert_one_line(run("init", "--backbone", "roberta-ViT-B-32", "--out", out), "text tower must be CLIP's")
    assert_one_line(run("evaluate", tiny_checkpoint, "--dataset", root, "--split", "test1"), "no split 'test1'")
    assert_one_line(run("evaluate", tmp_path / "none.pt"), "doesn't exist")
    no_folder = tmp_path / "none" / "eval.json"
    assert_one_line(run("evaluate", tiny_checkpoint, "--dataset", root, "-o", no_folder), "eval.json can't be written")
    assert not (out / "ckpt.pt").exists()


def test_damaged_image_is_one_line(cirr_folder: Callable[..., Folder], tiny_checkpoint: Path) -> None:
    folder = cirr_folder()
    path = folder.images / "val" / "c1-dark.png"
    path.write_bytes(b"no picture")
    assert_one_line(run("evaluate", tiny_checkpoint, "--dataset", folder.root), str(path))


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.exit_code == 0
    assert "dra-train fit --preset demo" in shown.stdout
    for command in ("fit", "init", "evaluate"):
        assert command in shown.stdout
        assert "--help" in run(command, "--help").stdout
    assert run("--version").stdout.strip().endswith(__version__)
