"""Vectors for large galleries: real features of the built-in pictures, mixed until there are enough of them.

Vectors that are drawn evenly from a sphere are no use here: they have no neighbours, so an index that finds them says
nothing about one that finds pictures. Mixtures of real features keep what matters to a search: clusters, directions in
which nearly all the variance lies, and many items that are nearly equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dra_bench.contenders.backend import Floats
from dra_runtime.console import track
from dra_runtime.encoder import IMAGE_BATCH, Encoder
from dra_train.data import Dataset, open_dataset

BLOCK = 16_384  #: rows made at once; each block has random numbers of its own
ALIKE_NOISE = 0.3  #: length of the noise that is spread as the real features are, against a feature's length of 1
EVEN_NOISE = 0.2  #: length of the noise that is spread evenly over all columns
SPLITS = ("train", "val", "val_unseen")
QUERY_SPLIT = "val"

RECIPE = (
    "each item is the unit vector of w * a + (1 - w) * b + {alike:g} * c + {even:g} * d: a and b unit features of two "
    "of the {pictures} built-in pictures, drawn evenly; w even from 0.5 to 1; c normal with the covariance of the "
    "features, d normal and even over all columns, both of expected length 1. {lift}"
    "Queries are real ones: a picture and a text of the validation split through the whole query"
)
LIFT = "Features of {narrow} columns were turned into {wide} by a random orthonormal map, which keeps every cosine. "


@dataclass(frozen=True)
class RealVectors:
    """What a bundle makes of the built-in data: ``features`` (P, D) of all pictures, ``queries`` (Q, D) composed."""

    features: Floats
    queries: Floats


def real_vectors(encoder: Encoder, cache: Path) -> RealVectors:
    """Encode the built-in pictures and the queries of their validation split; done once, then read from ``cache``."""
    path = cache / f"real-{encoder.bundle_id[:16]}.npz"
    if not path.is_file():
        parts = [part for split in SPLITS for part in open_dataset("builtin", split)]
        (held_out,) = open_dataset("builtin", QUERY_SPLIT)
        temporary = path.with_name(f".{path.name}.tmp.npz")
        np.savez(temporary, features=_features(encoder, parts), queries=_queries(encoder, held_out))
        temporary.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        return RealVectors(arrays["features"], arrays["queries"])


def lifted(vectors: RealVectors, dim: int, seed: int) -> RealVectors:
    """Turn real vectors into wider ones by a random orthonormal map: all lengths and cosines stay as they are."""
    narrow = vectors.features.shape[1]
    if narrow == dim:
        return vectors
    columns, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, narrow)))
    basis = columns.T.astype(np.float32)
    return RealVectors(vectors.features @ basis, vectors.queries @ basis)


def mixed_blocks(features: Floats, items: int, seed: int) -> Iterator[tuple[Floats, npt.NDArray[np.float32]]]:
    """Yield unit vectors (n, D) and norms (n,) block by block, the same for the same seed whatever their number.

    The norms are those of the features that were mixed.
    """
    norms = np.linalg.norm(features, axis=1)
    unit = features / norms[:, None]
    spread = _spread(unit)
    dim = unit.shape[1]
    for number, start in enumerate(range(0, items, BLOCK)):
        rng = np.random.default_rng([seed, number])
        first, second = rng.integers(0, len(unit), (2, BLOCK))
        share = rng.uniform(0.5, 1, (BLOCK, 1)).astype(np.float32)
        rows = share * unit[first] + (1 - share) * unit[second]
        rows += ALIKE_NOISE * (rng.standard_normal((BLOCK, len(spread)), np.float32) @ spread)
        rows += np.float32(EVEN_NOISE / dim**0.5) * rng.standard_normal((BLOCK, dim), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        lengths = share[:, 0] * norms[first] + (1 - share[:, 0]) * norms[second]
        count = min(BLOCK, items - start)
        yield rows[:count], lengths[:count].astype(np.float32)


def recipe(pictures: int, narrow: int, dim: int) -> str:
    """Say in words what the vectors are."""
    lift = "" if narrow == dim else LIFT.format(narrow=narrow, wide=dim)
    return RECIPE.format(alike=ALIKE_NOISE, even=EVEN_NOISE, pictures=pictures, lift=lift)


def character(features: Floats, seed: int) -> dict[str, float]:
    """Measure what the vectors are like, on the first block.

    ``mean_cosine`` of any two, ``nearest_cosine`` the median cosine with the nearest other of that block, and
    ``dimensions``, the participation ratio of the covariance's eigenvalues: in how many directions they spread.
    """
    rows, _ = next(mixed_blocks(features, 4096, seed))
    cosines = rows @ rows.T
    others = cosines[~np.eye(len(rows), dtype=bool)].reshape(len(rows), -1)
    values = np.linalg.eigvalsh(np.cov(rows, rowvar=False))
    return {
        "mean_cosine": round(float(others.mean()), 4),
        "nearest_cosine": round(float(np.median(others.max(axis=1))), 4),
        "dimensions": round(float(values.sum() ** 2 / (values**2).sum()), 1),
    }


def _spread(unit: Floats) -> Floats:
    """Return a matrix that turns even normal noise into noise with the features' covariance and expected length 1."""
    values, vectors = np.linalg.eigh(np.cov(unit, rowvar=False))
    kept = values > values[-1] * 1e-6  # the rest is rounding: lifted features lie in fewer directions than columns
    spread = np.sqrt(values[kept] / values[kept].sum())[:, None] * vectors[:, kept].T
    return np.ascontiguousarray(spread, np.float32)


def _features(encoder: Encoder, parts: list[Dataset]) -> Floats:
    paths = [path for part in parts for path in part.images.values()]
    batches = [paths[i : i + IMAGE_BATCH] for i in range(0, len(paths), IMAGE_BATCH)]
    return np.concatenate([encoder.encode_images(batch) for batch in track(batches, "built-in pictures")])


def _queries(encoder: Encoder, dataset: Dataset) -> Floats:
    names = sorted({query.reference for query in dataset.queries})
    features = encoder.encode_images([dataset.images[name] for name in names])
    row = {name: i for i, name in enumerate(names)}
    texts = encoder.encode_texts([query.text for query in dataset.queries])
    return encoder.compose(features[[row[query.reference] for query in dataset.queries]], texts)
