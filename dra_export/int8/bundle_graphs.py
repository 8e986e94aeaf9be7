"""INT8 for machines without a GPU: the fastest set of a bundle's parts in INT8 that keeps the recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dra_export.int8.cpu import cpu_features
from dra_export.int8.search import MIN_SPEEDUP, PARTS, Search, Trial, best_of
from dra_export.onnx_from_model import ExportError
from dra_runtime.errors import UsageError
from dra_runtime.files import write_bytes
from dra_runtime.sessions import checked_threads
from dra_train.data import Dataset, require_targets
from dra_train.model import DRA

FEW_IMAGES = 16  #: with fewer images than this, ranges are guesses


@dataclass(frozen=True)
class Int8Options:
    """What INT8 is calibrated and judged on.

    Attributes
    ----------
    calibration
        Real images of the kind that will be encoded, a few hundred.
    dataset
        The split whose recall must hold; other images than ``calibration`` make the judgement honest.
    max_recall_loss
        In points: how far any recall of the split may move.
    threads
        Of a session; by default the CPUs that affinity and container quota leave us.
    """

    calibration: Sequence[Path]
    dataset: Dataset
    max_recall_loss: float = 0.5
    threads: int | None = None

    def __post_init__(self) -> None:
        if len(self.calibration) < FEW_IMAGES:
            raise UsageError(
                f"{len(self.calibration)} images to calibrate INT8; give at least {FEW_IMAGES}, better a few hundred"
            )
        if not 0 < self.max_recall_loss <= 100:
            raise UsageError(f"the largest loss of recall is {self.max_recall_loss}; give points above 0, up to 100")
        require_targets(self.dataset, "INT8's choice of parts")


def quantize_graphs(paths: Mapping[str, Path], model: DRA, options: Int8Options) -> dict[str, Any]:
    """Replace float32 graphs by INT8 ones: the fastest set whose recall at every K holds the limit.

    Parameters
    ----------
    paths
        The float32 files by graph name. Of image_encoder, text_encoder and compositor those that are kept in INT8 are
        overwritten, each as a whole; the others, and all other graphs, stay as they are.
    model
        The model that they were made from, for its preprocessing and tokenizer.

    Returns
    -------
    dict
        Plain values: ``kept`` parts, ``parts`` with the reason for each, ``recall`` of float32 and of what was kept,
        ``cosine`` with float32's vectors, all ``tried`` sets, ``calibration``; and under ``host`` what depends on this
        machine: its CPU and the measured times.

    Raises
    ------
    ExportError
        No part is both faster and within the limit: the bundle wouldn't be INT8.
    """
    threads = checked_threads(options.threads)
    search = Search(paths, model, options.dataset, options.calibration, threads)
    trials = search.run(options.max_recall_loss)
    best = best_of(trials, options.max_recall_loss)
    if not best.parts:
        raise ExportError(
            f"no part of the model is faster in INT8 and within {options.max_recall_loss} points of its recall "
            f"({_reasons(trials, search, options)}); raise --max-recall-loss, calibrate on other images, or export "
            "with --precision fp32"
        )
    for name, graph in search.graphs(best).items():
        write_bytes(paths[name], graph)
    return _report(trials, best, search, options, threads)


def _report(trials: Sequence[Trial], best: Trial, search: Search, options: Int8Options, threads: int) -> dict[str, Any]:
    dataset = options.dataset
    tower = search.tower
    return {
        "max_recall_loss": options.max_recall_loss,
        "kept": list(best.parts),
        "float32_blocks": list(best.float32_blocks),
        "parts": {name: _why(name, trials, best, search, options) for name in PARTS},
        "dataset": {
            "name": dataset.name,
            "split": dataset.split,
            "queries": len(dataset.queries),
            "gallery": len(dataset.images),
        },
        "recall": {"float32": search.reference_recall, "int8": best.recall},
        "cosine": search.cosines(best),
        "tried": [
            {
                "int8": list(trial.parts),
                "float32_blocks": len(trial.float32_blocks),
                "recall": trial.recall,
                "change": trial.change,
                "cosine": trial.cosine,
                "within": trial.change <= options.max_recall_loss,
            }
            for trial in trials
        ],
        "calibration": {
            "images": len(options.calibration),
            "method": tower.method if tower else None,
            "tried": tower.tried if tower else {},
        },
        "sensitivity": {block.name: loss for block, loss in search.sensitivity},
        "host": {
            "cpu": cpu_features(),
            "threads": threads,
            "speed": {
                name: {"float32_ms": speed.float32_ms, "int8_ms": speed.int8_ms, "speedup": speed.speedup}
                for name, speed in search.speeds(best).items()
            },
        },
    }


def _why(name: str, trials: Sequence[Trial], best: Trial, search: Search, options: Int8Options) -> str:
    """Say in words why a part was kept or left, without figures that differ from run to run."""
    if name in best.parts:
        blocks = len(best.float32_blocks) if name == "image_encoder" else 0
        rest = f", {blocks} of its {len(search.tower.blocks)} blocks in float32" if blocks and search.tower else ""
        return f"kept: faster, and the recall holds{rest}"
    if search.speeds(best)[name].speedup < MIN_SPEEDUP:
        return "float32: not faster in INT8"
    least = min(trial.change for trial in trials if name in trial.parts)
    if least <= options.max_recall_loss:
        return "float32: the recall doesn't hold together with the other parts"
    return f"float32: moves a recall by {least:.2f} points at least"


def _reasons(trials: Sequence[Trial], search: Search, options: Int8Options) -> str:
    none = trials[0]
    return "; ".join(f"{name} {_why(name, trials, none, search, options)}" for name in PARTS)
