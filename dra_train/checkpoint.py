"""Read and write checkpoints: one file that rebuilds its own model.

``{"format": "dra-checkpoint", "version": 1, "config": plain values, "model": state_dict, "provenance": {…}}``,
always loaded with ``weights_only=True``: a checkpoint from elsewhere can't run code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dra_runtime.errors import CheckpointError
from dra_train.model import DRA, DRAConfig

FORMAT, VERSION = "dra-checkpoint", 1


@dataclass(frozen=True)
class Checkpoint:
    """A model with where it comes from."""

    model: DRA
    provenance: Mapping[str, Any]
    sha256: str  #: of the file it was read from

    @property
    def config(self) -> DRAConfig:
        """The model's configuration."""
        return self.model.config


def save_checkpoint(path: Path, model: DRA, provenance: Mapping[str, Any]) -> None:
    """Write ``model`` to ``path`` by a temporary name and a rename, so that an older file is replaced whole."""
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.to_dict(),
        "model": weights,
        "provenance": dict(provenance),
    }
    save_torch(path, content)


def save_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values to ``path`` by a temporary name and a rename.

    CheckpointError when that fails, on a full disk for one; an older file then stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(dict(content), temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error.strerror or error}; check the folder") from error
    except RuntimeError as error:  # torch's own words for a disk that takes only part of a file
        full = "the disk is full; free some space (an older file there is whole)"
        reason = full if "unexpected pos" in str(error) else str(error).split("\n")[0]
        raise CheckpointError(f"{path} can't be written: {reason}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and rebuild its model, in evaluation mode on the CPU.

    CheckpointError says why a file can't be used: missing, truncated, of another program, of a newer version,
    or with weights that don't fit its own configuration.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} doesn't exist or is no file; expected a checkpoint from dra-train")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = " ".join(str(error).split()).split(". ")[0][:120] or type(error).__name__
        raise CheckpointError(f"{path} is damaged or no checkpoint of dra-train ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of dra-train: it lacks format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{path} has version {content.get('version')}; this toolkit reads version {VERSION}")
    try:
        model = DRA(DRAConfig.from_dict(content["config"]))
        model.load_state_dict(content["model"])
        provenance = dict(content["provenance"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: its weights and configuration don't fit each other ({reason})") from error
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Checkpoint(model.eval(), provenance, digest)
