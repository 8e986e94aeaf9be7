"""What INT8 costs and what it brings: recall of a whole split from the parts' sessions, and time beside float32."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dra_export.int8.session import pixel_batches
from dra_runtime.console import progress
from dra_runtime.encoder import COMPOSE_BATCH, TEXT_BATCH, TEXT_BUCKET
from dra_runtime.preprocess import Preprocess
from dra_train.data import Dataset
from dra_train.evaluate import rank_all
from dra_train.metrics import Columns, measure
from dra_train.model import DRA
from dra_train.vocabulary import clip_tokenizer

Array = NDArray[np.float32]

ROUNDS = (7, 200)  #: least and most rounds of a comparison of times
SECONDS = 1.0  #: a comparison goes on for so long, unless it reaches the most rounds


@dataclass(frozen=True)
class Split:
    """A split, ready to be encoded by sessions."""

    dataset: Dataset
    images: tuple[Path, ...]
    references: tuple[int, ...]  #: each query's place among the images
    tokens: tuple[tuple[int, ...], ...]  #: each query's token ids, from the start to the end token
    preprocess: Preprocess

    @classmethod
    def of(cls, dataset: Dataset, model: DRA) -> Split:
        """Tokenize a data set's queries and look up their images."""
        tokenizer = clip_tokenizer(model.text.context_length)
        place = {name: i for i, name in enumerate(dataset.images)}
        return cls(
            dataset,
            tuple(dataset.images.values()),
            tuple(place[query.reference] for query in dataset.queries),
            tuple(tuple(tokenizer.encode(query.text)) for query in dataset.queries),
            model.preprocess,
        )

    def some_images(self, count: int) -> list[Path]:
        """Return up to ``count`` images, spread evenly."""
        return list(self.images[:: -(-len(self.images) // count)])

    def typical_tokens(self) -> NDArray[np.int32]:
        """Return the query of median length: (1, L)."""
        return np.array([sorted(self.tokens, key=len)[len(self.tokens) // 2]], np.int32)


def image_features(session: Any, images: Sequence[Path], preprocess: Preprocess, threads: int, label: str) -> Array:
    """Encode images, streamed: (N, D)."""
    rows = []
    with progress(len(images), label) as advance:
        for pixels in pixel_batches(images, preprocess, threads):
            rows.append(session.run(["image_features"], {"image": pixels})[0])
            advance(len(pixels))
    return np.concatenate(rows)


def text_features(session: Any, split: Split) -> Array:
    """Encode every query's text: (Q, D).

    In the batches of `dra_runtime.encoder.Encoder.encode_texts`, padding included: with dynamic ranges a text's vector
    depends a little on its batch, and what is measured here must be what `verify` and the runtime find.
    """
    order = sorted(range(len(split.tokens)), key=lambda i: len(split.tokens[i]))
    features: dict[int, Array] = {}
    for _, same in groupby(order, key=lambda i: -(-len(split.tokens[i]) // TEXT_BUCKET)):
        bucket = list(same)
        for start in range(0, len(bucket), TEXT_BATCH):
            batch = bucket[start : start + TEXT_BATCH]
            tokens = np.zeros((len(batch), len(split.tokens[batch[-1]])), np.int32)
            for row, i in zip(tokens, batch, strict=True):
                row[: len(split.tokens[i])] = split.tokens[i]
            features |= zip(batch, session.run(["text_features"], {"tokens": tokens})[0], strict=True)
    return np.stack([features[i] for i in range(len(split.tokens))])


def composed(session: Any, images: Array, texts: Array) -> Array:
    """Compose features (Q, D) and (Q, D) into queries (Q, D)."""
    parts = [
        session.run(["query"], {"image_features": images[block], "text_features": texts[block]})[0]
        for block in (slice(start, start + COMPOSE_BATCH) for start in range(0, len(images), COMPOSE_BATCH))
    ]
    return np.concatenate(parts)


def recall_of(queries: Array, gallery: Array, dataset: Dataset) -> dict[str, float]:
    """Measure queries (Q, D) against raw gallery features (G, D) by the data set's protocol, in percent."""
    unit_queries, unit_gallery = (F.normalize(torch.from_numpy(vectors), dim=-1) for vectors in (queries, gallery))
    ranks = rank_all(unit_queries, unit_gallery, dataset, Columns.of(list(dataset.images)))
    return measure(ranks, dataset.format)


def largest_change(recall: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the largest difference at any K, in points, up or down: a change upwards is luck, not quality."""
    return round(max(abs(recall[name] - reference[name]) for name in reference), 4)


def cosines(ours: Array, reference: Array) -> dict[str, float]:
    """Return the smallest and the mean cosine between rows (N, D)."""
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    values = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return {"smallest": round(float(values.min()), 6), "mean": round(float(values.mean()), 6)}


@dataclass(frozen=True)
class Speed:
    """Times of one call in milliseconds, medians of rounds in which both ran, and the median of the rounds' ratios."""

    float32_ms: float
    int8_ms: float
    speedup: float


def speed_of(float32: Any, int8: Any, inputs: Mapping[str, NDArray[Any]]) -> Speed:
    """Time two sessions on the same inputs, in turns, so that what slows the machine slows both."""
    float32.run(None, dict(inputs))
    int8.run(None, dict(inputs))
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + SECONDS
    while len(times) < ROUNDS[0] or (time.perf_counter() < end and len(times) < ROUNDS[1]):
        first = _seconds(float32, inputs)
        times.append((first, _seconds(int8, inputs)))
    slow, fast = (statistics.median(side) for side in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    return Speed(round(1e3 * slow, 4), round(1e3 * fast, 4), round(ratio, 3))


def _seconds(session: Any, inputs: Mapping[str, NDArray[Any]]) -> float:
    start = time.perf_counter()
    session.run(None, dict(inputs))
    return time.perf_counter() - start
