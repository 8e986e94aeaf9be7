"""A run's log: one JSON object an epoch in ``log.jsonl``, and the same figures for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dra_runtime.errors import UsageError
from dra_train.diagnosis import effective_rank
from dra_train.stages import Features

FEATURES = {"query": ("plain", "compensated"), "relation": ("relation",), "image": ("target",), "text": ("text",)}
ROWS = 512  #: of the features whose effective rank is taken: enough for a width of a few hundred


class RunLog:
    """The log of a run, from where its state says it stood."""

    def __init__(self, folder: Path, length: int, tensorboard: bool) -> None:
        """Open ``folder``'s log, cut to ``length`` bytes: what a killed run wrote behind its state comes again."""
        self.path = folder / "log.jsonl"
        try:
            self.path.touch()
            with self.path.open("r+b") as file:
                file.truncate(length)
                self.entries = [json.loads(line) for line in file.read().decode().splitlines()]
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{self.path} can't be used as the run's log: {error}; start again with --overwrite"
            ) from error
        self._writer = _tensorboard_writer(folder, self.entries) if tensorboard else None

    @property
    def length(self) -> int:
        """Bytes in the log."""
        return self.path.stat().st_size

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one entry; UsageError on a full disk."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UsageError(
                f"{self.path} can't be written: {error.strerror or error}; free some space, then --resume"
            ) from error
        self.entries.append(dict(entry))
        if self._writer:
            for name, value in scalars(entry):
                self._writer.add_scalar(name, value, entry["step"])
            self._writer.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._writer:
            self._writer.close()


def scalars(entry: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Return an entry's numbers with their place in it, such as ``losses/explicit``."""
    found: list[tuple[str, float]] = []
    for key, value in entry.items():
        if isinstance(value, Mapping):
            found += scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + key, float(value)))
    return found


def effective_ranks(features: Features, gallery: Tensor | None) -> dict[str, float]:
    """Return over how many directions a batch's queries, relations, images and texts spread, where there are any."""
    ranks = {}
    for name, keys in FEATURES.items():
        if values := [features[key] for key in keys if key in features]:
            ranks[name] = round(effective_rank(values[0][:ROWS]), 2)
    if "image" not in ranks and gallery is not None:
        ranks["image"] = round(effective_rank(gallery[:ROWS]), 2)
    return ranks


def _tensorboard_writer(folder: Path, entries: list[dict[str, Any]]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "run.tensorboard needs the package tensorboard: pip install tensorboard, or --set run.tensorboard=false"
        ) from error
    after = entries[-1]["step"] + 1 if entries else 0
    return SummaryWriter(str(folder / "tensorboard"), purge_step=after)
