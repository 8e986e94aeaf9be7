"""A run that is killed and goes on, against one that never stopped: the same losses and weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import dra_train.fit
from dra_runtime.errors import CheckpointError, UsageError
from dra_train.checkpoint import load_checkpoint
from dra_train.cli import main
from dra_train.data import load_cirr
from dra_train.fit import fit
from dra_train.settings import FitSettings
from dra_train.train_state import load_state

Folder = Any
Settings = Callable[..., FitSettings]
TINY = ("model.backbone=tiny-resnet", "stage1.batch_size=8", "stage2.batch_size=8")
MEASURED = ("stage", "epoch", "step", "losses", "views", "grad_norm", "learning_rate", "logit_scale", "val", "train")


class KilledError(Exception):
    """What stops a run in these tests."""


def log_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: entry.get(key) for key in MEASURED} for entry in entries]


def assert_same_run(a: Path, b: Path) -> None:
    assert log_of(a) == log_of(b)
    first, second = (load_checkpoint(folder / "ckpt.pt") for folder in (a, b))
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    assert first.provenance == second.provenance


def command(data: Path, out: Path, *more: str) -> list[str]:
    overrides = (*TINY, "stage1.epochs=2", "stage2.epochs=400", "run.save_minutes=0")
    sets = [word for override in overrides for word in ("--set", override)]
    start = [sys.executable, "-m", "dra_train", "fit", "--preset", "demo", "--dataset", str(data), "--out", str(out)]
    return [*start, "--threads", "1", *sets, *more]


def test_killed_process_goes_on_where_it_stood(cirr_folder: Callable[..., Folder], tmp_path: Path) -> None:
    """SIGKILL in the middle of stage 2, at whatever instant; then the same command with --resume."""
    root, out = cirr_folder().root, tmp_path / "killed"
    short = ("--set", "stage2.epochs=5")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(root, out, *short), env=environment, stderr=subprocess.DEVNULL)
    log = out / "log.jsonl"
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text().count('"stage": "stage 2"') >= 1):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stood = load_state(out / "train_state.pt")
    assert stood.stage == 1
    assert stood.epoch < 5
    assert not (out / "ckpt.pt").exists()
    for words in (command(root, out, *short, "--resume"), command(root, tmp_path / "straight", *short)):
        done = CliRunner().invoke(main, words[3:])
        assert done.exit_code == 0, done.stderr
    assert_same_run(out, tmp_path / "straight")


def test_every_instant_can_be_gone_on_from(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps an epoch: stops within one, after one, before and in stage 3; with validation and dropout."""
    root = cirr_folder().root
    data, validation = load_cirr(root, "train"), [load_cirr(root, "val")]
    epochs = ("stage1.epochs=1", "stage2.epochs=2", "stage3.epochs=1", "stage3.batch_size=8")
    settings = tiny_settings("run.save_minutes=0", "validation.split=val", "validation.metric=R@1", *epochs)
    fit(settings, data, tmp_path / "straight", seed=2, validation=validation)
    real = dra_train.fit.train_step
    for steps in (2, 6, 9, 11):
        taken: list[int] = []

        def killed(*arguments: Any, steps: int = steps, taken: list[int] = taken) -> Any:
            if len(taken) == steps:
                raise KilledError
            taken.append(1)
            return real(*arguments)

        out = tmp_path / str(steps)
        monkeypatch.setattr(dra_train.fit, "train_step", killed)
        with pytest.raises(KilledError):
            fit(settings, data, out, seed=2, validation=validation)
        with (out / "log.jsonl").open("a") as file:
            file.write('{"half a li')  # what the killed process still wrote
        monkeypatch.setattr(dra_train.fit, "train_step", real)
        torch.rand(3)
        fit(settings, data, out, seed=2, validation=validation, resume=True)
        assert_same_run(tmp_path / "straight", out)


def test_another_run_in_the_folder_is_never_touched(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    settings, out = tiny_settings("stage1.epochs=1", "stage2.epochs=1"), tmp_path / "run"
    fit(settings, data, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"holds a finished run; name another --out, or replace it with --overwrite"):
        fit(settings, data, out)
    fit(settings, data, out, resume=True)  # there is nothing left to do
    other = tiny_settings("stage1.epochs=1", "stage2.epochs=1", "stage2.learning_rate=1e-4", "loss.feature_noise=0")
    with pytest.raises(UsageError, match=r"other loss.feature_noise \(0.6\), stage2.learning_rate \(0.001\) than now"):
        fit(other, data, out, resume=True)
    with pytest.raises(UsageError, match=r"other seed \(0\)"):
        fit(settings, data, out, seed=1, resume=True)
    changed = load_cirr(cirr_folder(root="other").root, "val")
    with pytest.raises(UsageError, match=r"other data \(other content\)"):
        fit(settings, type(data)(data.name, data.split, changed.queries[:-1], data.images), out, resume=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "train_state.pt").unlink()
    with pytest.raises(UsageError, match=r"holds a ckpt.pt already"):
        fit(settings, data, out)
    fit(tiny_settings("stage1.epochs=1", "stage2.epochs=1"), data, out, seed=5, overwrite=True)
    assert load_checkpoint(out / "ckpt.pt").provenance["seed"] == 5


def test_settings_that_leave_the_result_alone_may_change(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    fit(tiny_settings("stage1.epochs=1", "stage2.epochs=1"), data, tmp_path / "run")
    free = ("run.save_minutes=3", "run.cache=false", "run.device=cpu")
    fit(tiny_settings("stage1.epochs=1", "stage2.epochs=1", *free), data, tmp_path / "run", resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_damaged_state_is_one_line(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "train_state.pt").write_bytes(content)
    data = load_cirr(cirr_folder().root, "train")
    with pytest.raises(CheckpointError, match=r"train_state.pt is damaged .*--overwrite") as caught:
        fit(tiny_settings(), data, out, resume=True)
    assert "\n" not in str(caught.value)
    torch.save({"format": "something else"}, out / "train_state.pt")
    with pytest.raises(CheckpointError, match="no state of this version"):
        fit(tiny_settings(), data, out, resume=True)
