"""Two real processes against one: the same global batch gives the same losses and the same weights."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dra_train.checkpoint import load_checkpoint
from dra_train.data import load_cirr
from dra_train.fit import fit
from dra_train.settings import load_settings
from dra_train.workers import Workers

Folder = Any
# 24 triplets in batches of 9: the last one has 6, and shares of 5 and 4 rows aren't equal;
# stage 3 goes on from the best epoch, which the first process alone chooses
SETTINGS = (
    "model.backbone=tiny-resnet",
    "model.dropout=0.0",
    "loss.feature_noise=0",
    "stage1.batch_size=9",
    "stage2.batch_size=9",
    "stage1.epochs=2",
    "stage2.epochs=3",
    "stage3.epochs=1",
    "stage3.batch_size=9",
    "loss.near_misses=10",  # all wrong answers that there are, so that nothing is drawn
    "validation.split=val",
    "validation.metric=R@5",
)


def alone(root: Path, out: Path, *more: str) -> None:
    settings = load_settings("demo", (*SETTINGS, *more))
    fit(settings, load_cirr(root, "train"), out, validation=[load_cirr(root, "val")])


def words(data: Path, out: Path, *more: str) -> list[str]:
    overrides = [word for setting in (*SETTINGS, *more) for word in ("--set", setting)]
    return ["fit", "--preset", "demo", "--dataset", str(data), "--out", str(out), "--threads", "1", *overrides]


def launched(launcher: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch = {"torchrun": [*torchrun, "-m"], "accelerate": [*accelerate, "--main_process_port", "0", "-m"]}[launcher]
    line = [*launch, "dra_train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


def two_processes(*arguments: str) -> list[tuple[int, str, str]]:
    """Start two processes as a launcher does, without one; returns each one's exit code, stdout and stderr."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "dra_train", *arguments],
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def losses(out: Path) -> list[float]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [value for entry in entries for value in entry["losses"].values()]


def assert_same(one: Path, two: Path) -> None:
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    first, second = (load_checkpoint(out / "ckpt.pt").model.state_dict() for out in (one, two))
    for name, tensor in first.items():
        if name.endswith(("in_proj_bias", ".k.bias")):
            continue  # softmax ignores a key's bias: its gradient is rounding alone, which Adam makes as large as any
        # A weight whose gradient is next to nothing is moved by rounding, and Adam makes such a step as large as any
        apart = ~torch.isclose(second[name], tensor, rtol=1e-5, atol=1e-5)
        assert apart.float().mean() <= 1e-3, name
        assert not apart.any() or (second[name] - tensor).abs().max() < 5e-4, name


@pytest.mark.parametrize("negatives", ["batch", pytest.param("gallery", marks=pytest.mark.slow)])
def test_two_processes_equal_one(cirr_folder: Callable[..., Folder], tmp_path: Path, negatives: str) -> None:
    root, more = cirr_folder().root, (f"loss.negatives={negatives}", "stage2.accumulate=2")
    first, second = two_processes(*words(root, tmp_path / "two", *more))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "training on 24 triplets" in first[2]
    assert "written after" in first[1]
    assert "training on" not in second[2]  # one of them speaks
    assert second[1] == ""
    alone(root, tmp_path / "one", *more)
    assert_same(tmp_path / "one", tmp_path / "two")
    provenance = load_checkpoint(tmp_path / "two" / "ckpt.pt").provenance
    assert provenance["processes"] == 2
    if negatives == "batch":
        assert provenance["chosen"]["epoch"] < 3  # else it wouldn't matter from which epoch stage 3 goes on


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_start_them_too(cirr_folder: Callable[..., Folder], tmp_path: Path, launcher: str) -> None:
    root = cirr_folder().root
    pytest.importorskip("accelerate")
    done = launched(launcher, *words(root, tmp_path / "two"))  # --multi_gpu: else accelerate starts one process
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "two" / "ckpt.pt").provenance["processes"] == 2
    alone(root, tmp_path / "one")
    assert_same(tmp_path / "one", tmp_path / "two")


def test_shares_cover_every_batch() -> None:
    for count in (1, 2, 3, 5):
        for rows in range(1, 17):
            shares = [Workers(torch.device("cpu"), rank, count).share(rows) for rank in range(count)]
            assert len({length for _, length in shares}) == 1
            covered = [row for start, length in shares for row in range(start, start + length)]
            assert covered[:rows] == list(range(rows))
            assert len(covered) - rows < count
