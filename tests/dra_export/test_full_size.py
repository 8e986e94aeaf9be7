"""The real model sizes, compared with PyTorch on real pairs: the demo's shape, RN50x4 and ViT-B-32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dra_export.bundle_writer import write_bundle
from dra_export.parity.verify import verify
from dra_runtime.encoder import Encoder
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.data import builtin_dataset, load_cirr


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["demo", "RN50x4", "ViT-B-32"])
def test_a_full_size_bundle_equals_pytorch(backbone: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ckpt.pt", untrained_model(model_config(backbone)), {"made_by": "tests"})
    checkpoint = load_checkpoint(tmp_path / "ckpt.pt")
    bundle = write_bundle(checkpoint, tmp_path / "bundle")
    result = verify(checkpoint.model, Encoder.open(bundle.path), load_cirr(builtin_dataset(), "val"), pairs=32)
    assert result["passed"], result["graphs"]
    assert all(graph["pairs"] >= 32 and graph["min_cosine"] >= 0.99999 for graph in result["graphs"].values())


@pytest.mark.slow
def test_rn50x4_exports_in_the_memory_of_a_small_machine(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ckpt.pt", untrained_model(model_config("RN50x4")), {"made_by": "tests"})
    command = [sys.executable, "-m", "dra_export", "onnx", "ckpt.pt", "--json"]  # alone: the peak is the process's
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["peak_memory_mb"] < 6000
