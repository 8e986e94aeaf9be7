"""Try sets of parts in INT8: each set's recall over a whole split, each part's time beside float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dra_export.int8.dynamic import dynamic_int8
from dra_export.int8.graph import Block
from dra_export.int8.measure import (
    Array,
    Speed,
    Split,
    composed,
    cosines,
    image_features,
    largest_change,
    recall_of,
    speed_of,
    text_features,
)
from dra_export.int8.session import open_session, pixel_batches
from dra_export.int8.tower import Tower, by_sensitivity, calibrated_tower
from dra_train.data import Dataset
from dra_train.model import DRA

PARTS = ("image_encoder", "text_encoder", "compositor")
PROBES = 16  #: images on which blocks and calibrations are compared
MIN_SPEEDUP = 1.05  #: a part that isn't so many times as fast stays float32; above 1, so that noise doesn't decide
NEAR = 0.99  #: image_features with a lower mean cosine are worth some float32 blocks, where these cost no time
ABOUT_AS_FAST = 1.1  #: times that differ by less are the same: another run could have them the other way round
FLOAT32 = -1  #: instead of a number of float32 blocks: the whole tower is float32


@dataclass(frozen=True)
class Trial:
    """A set of parts in INT8, and what it does to the recall."""

    parts: tuple[str, ...]
    float32_blocks: tuple[str, ...]  #: of the image tower, where that is in INT8
    recall: dict[str, float]
    change: float  #: the largest at any K, in points
    cosine: float  #: mean, of the queries with float32's
    ms: float  #: of one query from image and text, on this machine


def best_of(trials: Sequence[Trial], limit: float) -> Trial:
    """Return the fastest set of parts within ``limit``, and of its forms that are about as fast the nearest one."""
    within = [trial for trial in trials if trial.change <= limit]
    fastest = min(within, key=lambda trial: trial.ms)
    forms = [trial for trial in within if trial.parts == fastest.parts and trial.ms <= fastest.ms * ABOUT_AS_FAST]
    return max(forms, key=lambda trial: trial.cosine)


class Search:
    """One search: it holds what the trials share, so that images are encoded once for each form of the image tower.

    Not frozen: vectors and sessions are filled in while it runs. Memory: the vectors of the split's images and texts,
    and few copies of the image tower's weights.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        model: DRA,
        dataset: Dataset,
        calibration: Sequence[Path],
        threads: int,
    ) -> None:
        self._paths = paths
        self._split = Split.of(dataset, model)
        self._calibration = calibration
        self._threads = threads
        self._dim = model.config.dim
        self._images: dict[int, Array] = {}  # by number of float32 blocks
        self._image_speeds: dict[int, Speed] = {}
        self._texts: dict[bool, Array] = {}  # by whether it is INT8
        self._compositors: dict[bool, Any] = {}
        self._reference_queries: Array = np.empty((0, 0), np.float32)
        self._int8 = {
            name: _serialized(dynamic_int8(onnx.load(paths[name]))) for name in ("text_encoder", "compositor")
        }
        self.tower: Tower | None = None
        self.sensitivity: list[tuple[Block, float]] = []
        self._speeds: dict[str, Speed] = {}  # of text tower and Combiner
        self.reference_recall: dict[str, float] = {}

    def run(self, limit: float) -> list[Trial]:
        """Return all trials, the first without any INT8.

        Blocks of the image tower go back to float32, the most sensitive first and twice as many at each step, until
        everything that pays in INT8 is within ``limit``, and image_features are `NEAR` or more float32 costs time. A
        limit of 100 points asks for no quality, as for a model that isn't trained: then the first step is the last.
        """
        self._encode_texts()
        split, threads = self._split, self._threads
        image = self._open(self._paths["image_encoder"])
        self._images[FLOAT32] = image_features(image, split.images, split.preprocess, threads, "float32: images")
        self._reference_queries = self._queries(FLOAT32, False, False)
        self.reference_recall = recall_of(self._reference_queries, self._images[FLOAT32], split.dataset)

        probes = split.some_images(PROBES)
        self.tower = calibrated_tower(
            onnx.load(self._paths["image_encoder"]), self._calibration, probes, split.preprocess, threads
        )
        self._image_speeds[0] = self._time_image(image, 0)
        speeds = {**self._speeds, "image_encoder": self._image_speeds[0]}
        pays = [name for name in PARTS if speeds[name].speedup >= MIN_SPEEDUP]
        trials = self._trials(FLOAT32, [name for name in pays if name != "image_encoder"])
        if "image_encoder" not in pays:
            return trials
        for count in self._steps():
            if count > 0 and not self.sensitivity:
                self.sensitivity = by_sensitivity(self.tower, probes, split.preprocess, threads)
            if count > 0:
                self._image_speeds[count] = self._time_image(image, count)
                if self._image_speeds[count].speedup < MIN_SPEEDUP:
                    break
            label = f"INT8: images, {count} blocks float32" if count else "INT8: images"
            session = self._open(self._tower_graph(count))
            self._images[count] = image_features(session, split.images, split.preprocess, threads, label)
            del session
            new = self._trials(count, pays)
            trials += new
            held = any(trial.change <= limit and len(trial.parts) == len(pays) for trial in trials)
            near = cosines(self._images[count], self._images[FLOAT32])["mean"] >= NEAR
            slower = self._image_speeds[0].speedup / self._image_speeds[count].speedup > ABOUT_AS_FAST
            if held and (near or slower or limit >= 100):
                break
        return trials

    def graphs(self, trial: Trial) -> dict[str, bytes]:
        """Return the INT8 files of a trial's parts."""
        graphs = {name: self._int8[name] for name in trial.parts if name in self._int8}
        if "image_encoder" in trial.parts:
            graphs["image_encoder"] = self._tower_graph(len(trial.float32_blocks))
        return graphs

    def cosines(self, trial: Trial) -> dict[str, dict[str, float]]:
        """Compare a trial's vectors with float32's over the whole split."""
        image = self._image_key(trial)
        text, compositor = ("text_encoder" in trial.parts), ("compositor" in trial.parts)
        return {
            "image_features": cosines(self._images[image], self._images[FLOAT32]),
            "text_features": cosines(self._texts[text], self._texts[False]),
            "queries": cosines(self._queries(image, text, compositor), self._reference_queries),
        }

    def speeds(self, trial: Trial) -> dict[str, Speed]:
        """Return the parts' times, the image tower's in the form that a trial has it in, or all in INT8."""
        return {"image_encoder": self._image_speeds[max(0, self._image_key(trial))], **self._speeds}

    def _encode_texts(self) -> None:
        tokens = {"tokens": self._split.typical_tokens()}
        features = np.random.default_rng(0).standard_normal((2, 1, self._dim), np.float32)
        pair = {"image_features": features[0], "text_features": features[1]}
        text = {False: self._open(self._paths["text_encoder"]), True: self._open(self._int8["text_encoder"])}
        self._compositors = {
            False: self._open(self._paths["compositor"]),
            True: self._open(self._int8["compositor"]),
        }
        self._speeds["text_encoder"] = speed_of(text[False], text[True], tokens)
        self._speeds["compositor"] = speed_of(self._compositors[False], self._compositors[True], pair)
        self._texts = {int8: text_features(session, self._split) for int8, session in text.items()}

    def _time_image(self, float32: Any, count: int) -> Speed:
        pixels = next(pixel_batches(self._split.images[:1], self._split.preprocess, 1))
        return speed_of(float32, self._open(self._tower_graph(count)), {"image": pixels})

    def _steps(self) -> list[int]:
        """Return the numbers of float32 blocks to try: 0, 1, 2, 4, … below all of them."""
        assert self.tower is not None
        total = len(self.tower.blocks)
        return [0, *(2**i for i in range(total.bit_length()) if 2**i < total)]

    def _tower_graph(self, count: int) -> bytes:
        assert self.tower is not None
        return _serialized(self.tower.int8([block for block, _ in self.sensitivity[:count]]))

    def _trials(self, image: int, allowed: Sequence[str]) -> list[Trial]:
        """Measure all sets of parts with this image tower."""
        always = ("image_encoder",) if image != FLOAT32 else ()
        others = [name for name in ("text_encoder", "compositor") if name in allowed]
        chosen = [pair for count in range(len(others) + 1) for pair in combinations(others, count)]
        return [self._trial(image, (*always, *pair)) for pair in chosen]

    def _trial(self, image: int, parts: tuple[str, ...]) -> Trial:
        queries = self._queries(image, "text_encoder" in parts, "compositor" in parts)
        recall = recall_of(queries, self._images[image], self._split.dataset)
        cosine = cosines(queries, self._reference_queries)["mean"]
        float32_ms = self._image_speeds[0].float32_ms
        times = [float32_ms if image == FLOAT32 else float32_ms / self._image_speeds[image].speedup]
        for name, speed in self._speeds.items():
            times.append(speed.int8_ms if name in parts else speed.float32_ms)
        blocks = tuple(block.name for block, _ in self.sensitivity[: max(0, image)])
        change = largest_change(recall, self.reference_recall)
        return Trial(parts, blocks, recall, change, cosine, round(sum(times), 4))

    def _image_key(self, trial: Trial) -> int:
        return len(trial.float32_blocks) if "image_encoder" in trial.parts else FLOAT32

    def _queries(self, image: int, text: bool, compositor: bool) -> Array:
        references = self._images[image][list(self._split.references)]
        return composed(self._compositors[compositor], references, self._texts[text])

    def _open(self, graph: Path | bytes) -> Any:
        return open_session(graph, self._threads)


def _serialized(model: onnx.ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    return content
