"""A run's log: one JSON object an epoch in ``log.jsonl``, and the same figures for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dra_runtime.errors import TrainingError, UsageError
from dra_train.diagnosis import effective_rank
from dra_train.stages import Features, Losses

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


class Meter:
    """Adds up what an epoch's entry in the log will average; reading a GPU's numbers is put off until `read`."""

    def __init__(self, sums: dict[str, float], where: str, section: str) -> None:
        self.sums, self.where, self.section = sums, where, section
        self.last = math.nan  #: the latest loss that was read
        self._waiting: list[tuple[dict[str, Tensor], dict[str, float], float]] = []

    def add(self, losses: Losses, norm: Tensor, share: float) -> None:
        """Take a step's figures; ``share`` is its part of the epoch's triplets."""
        tensors = {f"losses/{name}": value.detach() for name, value in losses.parts.items()}
        tensors |= {f"views/{name}": value.detach() for name, value in losses.views.items()}
        tensors["norm"] = norm.detach()
        self._waiting.append((tensors, {f"chance/{name}": value for name, value in losses.chance.items()}, share))

    def read(self) -> None:
        """Add up what waits; TrainingError when a loss isn't finite."""
        for tensors, numbers, share in self._waiting:
            values = dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))
            norm = values.pop("norm")
            self.last = sum(value for name, value in values.items() if name.startswith("losses/"))
            if not math.isfinite(self.last):
                raise TrainingError(
                    f"{self.where}: the loss is {self.last}, so the run stops and its last checkpoint stays as it was; "
                    f"lower {self.section}.learning_rate, or set run.precision=fp32 if it was another"
                )
            for name, value in (values | numbers).items():
                self.sums[name] = self.sums.get(name, 0.0) + value * share
            if math.isfinite(norm):  # fp16 skips a step whose gradients overflow, and scales them less
                self.sums["grad_norm/mean"] = self.sums.get("grad_norm/mean", 0.0) + norm * share
                self.sums["grad_norm/max"] = max(self.sums.get("grad_norm/max", 0.0), norm)
        self._waiting.clear()

    def summary(self) -> dict[str, Any]:
        """Return the epoch's averages, and the implicit loss's share of the whole."""
        self.read()
        nested: dict[str, Any] = {}
        for name, value in self.sums.items():
            group, _, key = name.partition("/")
            nested.setdefault(group, {})[key] = value
        losses = nested["losses"]
        return {**nested, "implicit_share": losses.get("implicit", 0.0) / sum(losses.values())}


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
