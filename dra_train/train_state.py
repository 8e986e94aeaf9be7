"""What it takes to go on with a run exactly where it stopped: ``train_state.pt``, beside the checkpoint.

Like a checkpoint it holds tensors and plain values only, is loaded with ``weights_only=True`` and written to a
temporary name and renamed. The frozen image trunk isn't in it: it is rebuilt as the run built it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dra_runtime.errors import CheckpointError, UsageError
from dra_train.checkpoint import save_torch
from dra_train.model import DRA

FORMAT, VERSION = "dra-train-state", 1
FREE = ("run.cache", "run.device", "run.save_minutes", "run.tensorboard")  #: may differ when a run goes on


@dataclass
class TrainState:
    """Where a run stands; the next step to do, and everything that it depends on."""

    identity: Mapping[str, Any]  #: settings, seed and data: what must be the same when the run goes on
    stage: int = 0
    epoch: int = 0
    step: int = 0  #: within the epoch
    order: Tensor | None = None  #: (N,) of the epoch that has begun
    texts: Tensor | None = None  #: (N,)
    sums: dict[str, float] = field(default_factory=dict)  #: of what the epoch's log entry will average
    seconds: float = 0.0  #: spent in the epoch
    log_bytes: int = 0  #: the log's length; what follows is written again
    best: dict[str, Any] = field(default_factory=dict)  #: value, stage and epoch of ckpt.pt
    finished: bool = False
    random: list[Tensor] = field(default_factory=list)
    model: dict[str, Tensor] = field(default_factory=dict)
    temperatures: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)  #: empty between stages
    scaler: dict[str, Any] = field(default_factory=dict)


def learnt_weights(model: DRA) -> dict[str, Tensor]:
    """Return a model's weights without the image trunk's, which training never changes."""
    head = hasattr(model.visual, "trunk")
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("visual.") or (head and name.startswith("visual.head."))
    }


def save_state(path: Path, state: TrainState) -> None:
    """Write a state as a whole; CheckpointError when the disk is full, and the older one stays."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    save_torch(path, {"format": FORMAT, "version": VERSION, **values})


def load_state(path: Path) -> TrainState:
    """Read a state; CheckpointError when the file is damaged or something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises on a damaged file isn't documented
        reason = " ".join(str(error).split()).split(". ")[0][:120] or type(error).__name__
        raise CheckpointError(f"{path} is damaged ({reason}); start the run again with --overwrite") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(f"{path} is no state of this version's dra-train fit; start again with --overwrite")
    return TrainState(**{f.name: content[f.name] for f in fields(TrainState)})


def check_same_run(state: TrainState, identity: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with other settings, another seed or other data; UsageError names what differs."""
    old, new = _flat(state.identity), _flat(identity)
    keys = [key for key in sorted(old.keys() | new.keys()) if key.removeprefix("settings.") not in FREE]
    differing = [key.removeprefix("settings.") for key in keys if old.get(key) != new.get(key)]
    if differing:
        shown = ", ".join(f"{key} ({_old(old, key)})" for key in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UsageError(
            f"{path} is of a run with other {shown}{more} than now asked for; use the same, another --out, or "
            "--overwrite"
        )


def _old(flat: Mapping[str, Any], key: str) -> str:
    value = flat.get(key, flat.get(f"settings.{key}"))
    return "other content" if key in ("data", "start") else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return result
