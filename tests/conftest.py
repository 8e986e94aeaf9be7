"""What the rooms' tests share: a small checkpoint, the bundle made from it, and real pictures.

Imports stand inside the fixtures, so that a room's tests load only what they use.
"""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: its threads shall not spin (dra_train)
_CACHE = tempfile.TemporaryDirectory(prefix="dra-tests-")  # the tests' image features, gone with the process
os.environ["DRA_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an untrained checkpoint with every part of the paper's model, but small (read only)."""
    from dra_train.backbones import model_config, untrained_model
    from dra_train.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    save_checkpoint(path, untrained_model(model_config("tiny-resnet"), seed=0), {"made_by": "tests"})
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Path of the bundle made from `tiny_checkpoint` (read only: copy it before you damage it)."""
    from dra_export.bundle_writer import write_bundle
    from dra_train.checkpoint import load_checkpoint

    return write_bundle(load_checkpoint(tiny_checkpoint), tiny_checkpoint.with_name("bundle")).path


@pytest.fixture(scope="session")
def emoji_images() -> tuple[Path, ...]:
    """Sixteen pictures of the built-in data set's validation split, spread over it."""
    from dra_train.data import builtin_dataset, load_cirr

    paths = tuple(load_cirr(builtin_dataset(), "val").images.values())
    return paths[:: max(1, len(paths) // 16)][:16]
