"""A gallery's content at one moment: ids and vectors, never changed but made anew."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError, UnknownIdError


@dataclass(frozen=True)
class Vectors:
    """A gallery's content at one moment, never changed: ids in ascending order, and a row for each.

    ``unit`` (N, D) float32 of unit length, ``norms`` (N,) float32: their product is the raw feature, which the
    compositor needs.
    """

    ids: tuple[str, ...]
    unit: npt.NDArray[np.float32]
    norms: npt.NDArray[np.float32]


def vectors_from_features(ids: Sequence[str], features: npt.NDArray[np.float32]) -> Vectors:
    """Sort by id, and part raw features (N, D) into unit vectors and norms.

    Raises
    ------
    GalleryError
        A vector is zero, or its length not finite in float32.
    """
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    features = features[order]
    norms = np.linalg.norm(features.astype(np.float64), axis=1)
    bad = np.flatnonzero(~((norms > 0) & (norms <= np.finfo(np.float32).max)))
    if len(bad):
        raise GalleryError(
            f"the vector of {ids[order[bad[0]]]!r} is zero or not finite; check the bundle and the image"
        )
    unit = (features / norms[:, None]).astype(np.float32)
    return Vectors(tuple(ids[i] for i in order), unit, norms.astype(np.float32))


def without(vectors: Vectors, ids: set[str]) -> Vectors:
    """Leave out the rows of these ids; what isn't there is left out already."""
    kept = [row for row, name in enumerate(vectors.ids) if name not in ids]
    if len(kept) == len(vectors.ids):
        return vectors
    return Vectors(tuple(vectors.ids[row] for row in kept), vectors.unit[kept], vectors.norms[kept])


def merged(old: Vectors, new: Vectors) -> Vectors:
    """Join two that share no id."""
    ids = old.ids + new.ids
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    unit, norms = np.concatenate([old.unit, new.unit]), np.concatenate([old.norms, new.norms])
    return Vectors(tuple(ids[i] for i in order), unit[order], norms[order])


def row_of(ids: tuple[str, ...], name: str) -> int | None:
    """Return the row of an id, or None."""
    row = bisect_left(ids, name)
    return row if row < len(ids) and ids[row] == name else None


def known_row(ids: tuple[str, ...], name: object) -> int:
    """Return the row of an id, or raise UnknownIdError."""
    row = row_of(ids, name) if isinstance(name, str) else None
    if row is None:
        like = f"its ids look like {', '.join(f'{i!r:.40}' for i in ids[:3])}" if ids else "add images first"
        raise UnknownIdError(f"the gallery of {len(ids)} images holds no id {name!r:.80}; {like}")
    return row
