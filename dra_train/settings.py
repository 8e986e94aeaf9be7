"""Settings of a training run: TOML presets, overridden from the command line, checked once at the edge."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from dra_runtime.errors import UsageError

PARTS = ("text", "image_head", "combiner", "tac")
VIEWS = ("both", "compensated", "plain")
NEGATIVES = ("batch", "gallery")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")


def _number(value: object) -> float:
    """Return a setting as a number; what is none compares as out of every range."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


@dataclass(frozen=True)
class StageSettings:
    """One training stage."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    train: tuple[str, ...]  #: which parts of the model learn; the others stay as they are
    schedule: str = "cosine"  #: of the learning rate, after its warm-up
    accumulate: int = 1  #: a batch is computed in so many pieces, and its loss on all of it

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", tuple(self.train))
        if unknown := set(self.train) - set(PARTS):
            raise UsageError(f"unknown part {', '.join(sorted(unknown))} in train; use {', '.join(PARTS)}")
        whole = type(self.epochs) is int and type(self.batch_size) is int
        if not whole or self.epochs < 0 or self.batch_size < 1:
            raise UsageError(
                f"epochs {self.epochs!r} and batch_size {self.batch_size!r} must be whole numbers, 0 and 1 up"
            )
        if not 0 < _number(self.learning_rate) < math.inf or not 0 <= _number(self.weight_decay) < math.inf:
            raise UsageError("learning_rate must be a number above 0, weight_decay a number of at least 0")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule {self.schedule!r} is unknown; use {', '.join(SCHEDULES)}")
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise UsageError(f"accumulate {self.accumulate!r} must be a whole number from 1")


@dataclass(frozen=True)
class LossSettings:
    """What is minimised."""

    views: str
    implicit_weight: float
    negatives: str
    logit_scale: float
    feature_noise: float
    near_misses: int = 3  #: wrong answers beside each target in stage 3

    def __post_init__(self) -> None:
        if self.views not in VIEWS or self.negatives not in NEGATIVES:
            raise UsageError(f"loss.views is one of {', '.join(VIEWS)}; loss.negatives one of {', '.join(NEGATIVES)}")
        if not 0 < _number(self.logit_scale) < math.inf or not 0 <= _number(self.implicit_weight) < math.inf:
            raise UsageError("loss.logit_scale must be a number above 0, loss.implicit_weight a number of at least 0")
        if not 0 <= _number(self.feature_noise) < math.inf:
            raise UsageError("loss.feature_noise must be a number of at least 0")
        if type(self.near_misses) is not int or self.near_misses < 1:
            raise UsageError(f"loss.near_misses {self.near_misses!r} must be a whole number from 1")


@dataclass(frozen=True)
class ValidationSettings:
    """How the best epoch is chosen; without a split the last one is kept."""

    split: str = ""  #: "" measures nothing
    metric: str = "mean"  #: one of those that `dra-train evaluate` prints
    every: int = 1  #: epochs

    def __post_init__(self) -> None:
        if not isinstance(self.split, str) or not isinstance(self.metric, str) or not self.metric:
            raise UsageError('validation.split and validation.metric must be words, such as "val" and "mean"')
        if type(self.every) is not int or self.every < 1:
            raise UsageError(f"validation.every {self.every!r} must be a whole number from 1")


@dataclass(frozen=True)
class RunSettings:
    """How the machine is used; all but the precision leave the result as it is."""

    precision: str = "fp32"
    device: str = "auto"
    cache: bool = True  #: keep the image trunk's outputs on the disk
    checkpoint_activations: bool = False
    save_minutes: float = 10.0  #: a kill loses at most so much; 0 saves after every step
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"run.precision {self.precision!r} is unknown; use {', '.join(PRECISIONS)}")
        if not isinstance(self.device, str):
            raise UsageError(f'run.device {self.device!r} must be a word: "auto", "cpu" or "cuda"')
        for name in ("cache", "checkpoint_activations", "tensorboard"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"run.{name} {getattr(self, name)!r} must be true or false")
        if not 0 <= _number(self.save_minutes) < math.inf:
            raise UsageError(f"run.save_minutes {self.save_minutes!r} must be a number of at least 0")


@dataclass(frozen=True)
class FitSettings:
    """Everything that decides a run, except its seed and where it writes."""

    dataset: str
    train_split: str
    model: Mapping[str, Any]
    loss: LossSettings
    stage1: StageSettings
    stage2: StageSettings
    stage3: StageSettings = StageSettings(0, 32, 1e-3, 0.01, ("tac",))
    validation: ValidationSettings = ValidationSettings()
    run: RunSettings = RunSettings()

    def __post_init__(self) -> None:
        if self.stage3.epochs and (self.stage3.train != ("tac",) or self.model.get("tac_layers") == 0):
            raise UsageError(
                'stage 3 trains the vision compositor alone: stage3.train is ["tac"], model.tac_layers not 0'
            )
        if not isinstance(self.model, Mapping) or not isinstance(self.model.get("backbone"), str):
            raise UsageError('the section [model] lacks its backbone, such as "demo" or "RN50x4"')

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint's provenance."""
        return asdict(self)


SECTIONS = {
    "loss": LossSettings,
    "stage1": StageSettings,
    "stage2": StageSettings,
    "stage3": StageSettings,
    "validation": ValidationSettings,
    "run": RunSettings,
}  #: of a settings file, beside [model]


def preset_names() -> list[str]:
    """Return the presets that come with the toolkit."""
    return sorted(p.name.removesuffix(".toml") for p in files("dra_train").joinpath("presets").iterdir())


def load_settings(preset: str, overrides: Sequence[str] = ()) -> FitSettings:
    """Read a preset by name, or a TOML file by path, and apply overrides such as ``stage2.epochs=8``.

    UsageError names an unknown preset or key and the ones there are.
    """
    path = Path(preset)
    if path.suffix != ".toml":
        if preset not in preset_names():
            raise UsageError(f"preset {preset!r} is unknown; use {', '.join(preset_names())} or a .toml file")
        path = Path(str(files("dra_train").joinpath("presets", f"{preset}.toml")))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    try:
        sections = {name: kind(**values.pop(name)) for name, kind in SECTIONS.items() if name in values}
        return FitSettings(**sections, **values)
    except (KeyError, TypeError) as error:
        reason = str(error).rpartition("__init__() ")[2]
        raise UsageError(f"{path.name}: a setting is missing or unknown: {reason}") from error


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one ``section.key=value`` in place; the value is TOML, or a bare word."""
    key, equals, text = override.partition("=")
    section, _, name = key.strip().rpartition(".")
    if section in SECTIONS:
        values.setdefault(section, {})  # a file may leave out a section whose settings all have defaults
    target = values.get(section) if section else values
    known = [f.name for f in fields(SECTIONS.get(section, FitSettings))]
    fits = name in known or section == "model"
    if not equals or not isinstance(target, dict) or not fits:
        raise UsageError(f"{override!r} isn't SECTION.KEY=VALUE with a known key; there is {', '.join(known)}")
    try:
        target[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        target[name] = text.strip()
