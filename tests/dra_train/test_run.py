"""What happens around the steps: validation, the log, alternatives of a text, and what can go wrong."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import dra_train.fit
from dra_runtime.errors import CheckpointError, DatasetError, TrainingError, UsageError
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main
from dra_train.data import Dataset, load_cirr
from dra_train.evaluate import evaluate
from dra_train.feature_cache import Request, live_outputs
from dra_train.fit import fit
from dra_train.settings import FitSettings
from dra_train.triplets import make_triplets
from dra_train.validation import Measured, recalls, training_sample

Folder = Any
Settings = Callable[..., FitSettings]
TINY = ("--set", "model.backbone=tiny-resnet", "--set", "stage1.epochs=1", "--set", "stage2.epochs=1")


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_entry_of_the_log_says_what_the_diagnosis_needs(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    fit(tiny_settings(), load_cirr(cirr_folder().root, "train"), tmp_path)
    first, last = log_of(tmp_path)[0], log_of(tmp_path)[-1]
    assert (last["stage"], last["epoch"], last["epochs"], last["step"]) == ("stage 2", 3, 3, 9)
    assert set(last["losses"]) == {"explicit", "implicit"}
    assert last["implicit_share"] == pytest.approx(last["losses"]["implicit"] / sum(last["losses"].values()))
    assert last["losses"]["explicit"] == pytest.approx(sum(last["views"].values()) / 2, rel=1e-5)
    assert last["chance"]["explicit"] == pytest.approx(2.4849066)  # log of twelve images
    assert last["chance"]["implicit"] == pytest.approx(0.5 * 2.0794415)  # weight times log of eight triplets
    assert 0 < last["grad_norm"]["mean"] <= last["grad_norm"]["max"]
    assert set(last["effective_rank"]) == {"query", "relation", "image", "text"}
    assert all(1 <= rank <= 12 for rank in last["effective_rank"].values())
    assert (first["implicit_share"], first["train"], first["val"]) == (0.0, None, None)
    assert 0 < last["learning_rate"] < 1e-3
    assert last["seconds"] >= 0
    assert isinstance(last["findings"], list)


def test_best_epoch_is_kept_and_named(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = cirr_folder().root
    data, validation = load_cirr(root, "train"), load_cirr(root, "val")
    scores = iter([10.0, 10.0, 40.0, 40.0, 30.0])  # of the validation, by epoch
    queue = {"check": 1}

    def scripted(model: Any, parts: Any) -> dict[str, float]:
        if queue["check"]:
            queue["check"] = 0
            return {"R@1": 0.0}
        return {"R@1": 5.0} if parts[0].dataset.split == "train" else {"R@1": next(scores)}

    monkeypatch.setattr(dra_train.fit, "recalls", scripted)
    settings = tiny_settings("validation.split=val", "validation.metric=R@1", "stage2.epochs=5")
    best = fit(settings, data, tmp_path, validation=[validation])
    checkpoint = load_checkpoint(tmp_path / "ckpt.pt")
    assert checkpoint.provenance["chosen"] == {"by": "val R@1", "value": 40.0, "stage": "stage 2", "epoch": 3}
    for name, tensor in best.state_dict().items():
        assert torch.equal(tensor, checkpoint.model.state_dict()[name])
    logged = log_of(tmp_path)
    assert [entry["val"] for entry in logged] == [None] * 2 + [{"R@1": v} for v in (10.0, 10.0, 40.0, 40.0, 30.0)]
    assert logged[-1]["train"] == {"R@1": 5.0}


def test_validation_equals_evaluation(cirr_folder: Callable[..., Folder], tiny_settings: Settings) -> None:
    root = cirr_folder().root
    model, data = untrained_model(model_config("tiny-resnet"), seed=0), load_cirr(root, "val")
    pooled = live_outputs(model, Request(data.images, "images", maps=False)).pooled
    model.train()
    assert recalls(model, [Measured(data, pooled)]) == pytest.approx(evaluate(model, data)["metrics"])
    assert model.combiner.training
    sample = training_sample(data, pooled, gallery=12)
    assert len(sample.dataset.images) == len(sample.pooled) == 12
    torch.testing.assert_close(sample.pooled[list(sample.dataset.images).index("c2-dark")], pooled[5])


def test_unknown_metric_fails_before_the_first_step(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    root = cirr_folder().root
    settings = tiny_settings("validation.split=val", "validation.metric=R@7")
    with pytest.raises(UsageError, match=r"'R@7' isn't measured on this data; use R@1, R@5"):
        fit(settings, load_cirr(root, "train"), tmp_path, validation=[load_cirr(root, "val")])
    assert (tmp_path / "log.jsonl").read_text() == ""


def alternatives(data: Dataset) -> Dataset:
    queries = [replace(q, train_texts=(q.text, f"{q.text} please", f"please {q.text}")) for q in data.queries]
    return replace(data, queries=(replace(queries[0], train_texts=("only this",)), *queries[1:]))


def test_training_draws_one_of_a_querys_texts_anew_in_every_epoch(cirr_folder: Callable[..., Folder]) -> None:
    data = alternatives(load_cirr(cirr_folder().root, "train"))
    model = untrained_model(model_config("tiny-resnet"))
    triplets = make_triplets(model, data, live_outputs(model, Request(data.images, "images")))
    vocabulary = list(dict.fromkeys(text for query in data.queries for text in query.train_texts))
    torch.manual_seed(0)
    epochs = [triplets.draw()[1] for _ in range(300)]
    torch.manual_seed(0)
    assert all(torch.equal(triplets.draw()[1], texts) for texts in epochs)
    for row, query in enumerate(data.queries):
        drawn = [vocabulary[texts[row]] for texts in epochs]
        assert set(drawn) == set(query.train_texts)
        for text in query.train_texts:
            assert drawn.count(text) == pytest.approx(300 / len(query.train_texts), rel=0.35)


def test_a_split_that_hides_its_targets_cannot_be_trained_on(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    hidden = replace(data, queries=(replace(data.queries[0], target=""), *data.queries[1:]))
    with pytest.raises(DatasetError, match="1 queries of data / train have no target"):
        fit(tiny_settings(), hidden, tmp_path)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_loss_that_is_not_finite_stops_the_run_at_once(
    cirr_folder: Callable[..., Folder],
    tiny_settings: Settings,
    tmp_path: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    save_checkpoint(tmp_path / "ckpt.pt", untrained_model(model_config("tiny-resnet")), {"made_by": "an earlier run"})
    before = (tmp_path / "ckpt.pt").read_bytes()
    real, steps = dra_train.fit.train_step, []

    def poisoned(name: Any, inputs: Any, *rest: Any) -> Any:
        steps.append(name.name)
        if steps.count(f"{stage[:-1]} {stage[-1]}") == 2:
            inputs.model.combiner.hidden.weight.data.fill_(float("nan"))
            inputs.model.text.text_projection.data.fill_(float("nan"))
        return real(name, inputs, *rest)

    monkeypatch.setattr(dra_train.fit, "train_step", poisoned)
    settings = tiny_settings("run.save_minutes=0")
    with pytest.raises(TrainingError, match=rf"epoch 1: the loss is nan.*lower {stage}.learning_rate") as caught:
        fit(settings, data, tmp_path, overwrite=True)
    assert "\n" not in str(caught.value)
    assert len(steps) == (2 if stage == "stage1" else 6 + 2)
    assert (tmp_path / "ckpt.pt").read_bytes() == before
    state = torch.load(tmp_path / "train_state.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Fail the writing of larger files, as a full disk does."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("size", "what"), [(200_000, "train_state.pt"), (2_000, "features")])
def test_disk_that_is_full_is_one_line_and_costs_no_checkpoint(
    cirr_folder: Callable[..., Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, what: str
) -> None:
    out = tmp_path / "run"
    root = cirr_folder().root
    arguments = ["fit", "--preset", "demo", "--dataset", root, "--out", out, "--threads", 1, *TINY, "--overwrite"]
    save_checkpoint(out / "ckpt.pt", untrained_model(model_config("tiny-resnet")), {"made_by": "an earlier run"})
    before = (out / "ckpt.pt").read_bytes()
    monkeypatch.setenv("DRA_CACHE", str(tmp_path / "cache"))
    with small_disk(size):
        done = command(*arguments)
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert what in last
    assert (out / "ckpt.pt").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert (
        not (tmp_path / "cache" / "features").exists()
        or what != "features"
        or not any((tmp_path / "cache" / "features").iterdir())
    )


def test_misuse_is_one_line(cirr_folder: Callable[..., Folder], tmp_path: Path) -> None:
    root = cirr_folder().root
    start = ("fit", "--preset", "demo", "--dataset", root, "--out", tmp_path / "run", *TINY)
    done = command(*start, "--resume", "--overwrite")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert command("fit", "--preset", "cirr", "--out", tmp_path / "x").stderr.startswith(
        "error: preset cirr brings no data; name them with --dataset DIR"
    )
    assert "no_such" in command(*start[:4], tmp_path / "no_such", *start[5:]).stderr
    next(iter(load_cirr(root, "train").images.values())).write_bytes(b"")
    done = command(*start)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "c0-bright" in done.stderr.splitlines()[-1]


def test_weights_of_a_file_are_the_start(
    cirr_folder: Callable[..., Folder], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = cirr_folder().root
    widths = ("--set", "model.combiner_projection=0", "--set", "model.combiner_hidden=0")
    sets = (*widths, "--set", "stage1.epochs=0", "--set", "stage2.epochs=0", "--seed", 9)
    done = command(
        "fit",
        "--preset",
        "demo",
        "--dataset",
        root,
        "--out",
        tmp_path / "run",
        *TINY,
        *sets,
        "--weights",
        tiny_checkpoint,
    )
    assert done.exit_code == 0, done.stderr
    loaded, given = load_checkpoint(tmp_path / "run" / "ckpt.pt"), load_checkpoint(tiny_checkpoint)
    assert torch.equal(loaded.model.text.text_projection, given.model.text.text_projection)
    assert loaded.provenance["start"] == given.sha256


def test_tensorboard_gets_the_figures(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit(tiny_settings("run.tensorboard=true"), load_cirr(cirr_folder().root, "train"), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"losses/explicit", "losses/implicit", "grad_norm/mean", "effective_rank/query"} <= set(
        events.Tags()["scalars"]
    )
    shown = [event.value for event in events.Scalars("losses/explicit")]
    assert shown == pytest.approx([entry["losses"]["explicit"] for entry in log_of(tmp_path)], rel=1e-6)


def test_log_that_cannot_be_read_is_one_line(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises((UsageError, CheckpointError), match="can't be used as the run's log"):
        fit(tiny_settings(), data, tmp_path)
