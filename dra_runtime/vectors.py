"""A gallery's rows: ids and vectors, with metadata and tokens where there are any."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.metadata import Item, Metadata, joined, metadata_from_items

Array = npt.NDArray[Any]
_ROWS = 16_384  # rows scaled at once
Storage = Literal["float32", "float16"]
Unit = npt.NDArray[np.float32] | npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Rows in ascending order of their ids, never changed; plain arrays or memory maps.

    ``ids`` N texts; ``unit`` (N, D) float32 or float16, of unit length; ``norms`` (N,) float32: their product is the
    raw feature, which the compositor needs; ``tokens`` (N, T, D) float16, which re-ranking needs, or None.
    """

    ids: Sequence[str]
    unit: Unit
    norms: npt.NDArray[np.float32]
    metadata: Metadata | None = None
    tokens: npt.NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def vectors_from_features(
    ids: Sequence[str],
    features: npt.NDArray[np.float32],
    storage: Storage = "float32",
    items: Sequence[Item | None] | None = None,
    tokens: npt.NDArray[np.float16] | None = None,
) -> Vectors:
    """Sort by id, and part raw features (N, D) into unit vectors and norms.

    ``items`` are the N images' metadata, ``tokens`` (N, T, D) their tokens, both in the order of ``ids``.

    Raises
    ------
    GalleryError
        A vector is zero, or its length not finite in float32.
    UsageError
        The metadata is none that a gallery can hold.
    """
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    unit, norms = np.empty(features.shape, storage), np.empty(len(order), np.float32)
    for start in range(0, len(order), _ROWS):
        part = slice(start, start + _ROWS)
        raw = features[order[part]]
        lengths = np.linalg.norm(raw.astype(np.float64), axis=1)
        bad = np.flatnonzero(~((lengths > 0) & (lengths <= np.finfo(np.float32).max)))
        if len(bad):
            name = ids[order[start + int(bad[0])]]
            raise GalleryError(f"the vector of {name!r} is zero or not finite; check the bundle and the image")
        unit[part] = raw / lengths[:, None]
        norms[part] = lengths
    metadata = metadata_from_items([items[i] for i in order]) if items is not None else None
    tokens = None if tokens is None else tokens[order].astype(np.float16, copy=False)
    return Vectors(tuple(ids[i] for i in order), unit, norms, metadata, tokens)


def checked_storage(storage: str) -> Storage:
    """Return the storage of a gallery's vectors, or raise UsageError."""
    if storage not in get_args(Storage):
        raise UsageError(f"storage is {storage!r}; give 'float32' or 'float16'")
    return storage  # type: ignore[return-value]


def row_of(ids: Sequence[str], name: str) -> int | None:
    """Return the row of an id in ascending ids, or None."""
    row = bisect_left(ids, name)
    return row if row < len(ids) and ids[row] == name else None


def order_of(first: Sequence[str], alive: npt.NDArray[np.bool_] | None, second: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the order by id of two sets of rows that share no id.

    Parameters
    ----------
    first, second
        Ascending ids.
    alive
        Which of the first count; None for all.

    Returns
    -------
    np.ndarray
        int64: ``r`` stands for row r of the first, ``len(first) + r`` for row r of the second.
    """
    # A look at one id of a file costs more than one in a list; reading all of them costs as much as a few searches each
    known = first if len(second) * 16 < len(first) else list(first)
    places = [bisect_left(known, name) for name in second]
    order = np.insert(np.arange(len(first)), places, np.arange(len(first), len(first) + len(second)))
    if alive is None:
        return order
    kept: npt.NDArray[np.int64] = order[np.concatenate([alive, np.ones(len(second), np.bool_)])[order]]
    return kept


def merged(first: Vectors, alive: npt.NDArray[np.bool_] | None, second: Vectors) -> Vectors:
    """Copy two sets of rows that share no id into one; see `order_of`."""
    order = order_of(first.ids, alive, second.ids)
    split = len(first)
    ids = tuple(first.ids[row] if row < split else second.ids[row - split] for row in order.tolist())
    tokens = None if first.tokens is None or second.tokens is None else rows(first.tokens, second.tokens, order)
    return Vectors(
        ids,
        rows(first.unit, second.unit, order),
        rows(first.norms, second.norms, order),
        joined(first.metadata, second.metadata, (split, len(second)), order),
        tokens,
    )


def rows(first: Array, second: Array, order: npt.NDArray[np.int64]) -> Array:
    """Gather rows of two arrays, as `order_of` numbers them."""
    of_second = order >= len(first)
    if not of_second.any():
        start, count = (int(order[0]), len(order)) if len(order) else (0, 0)
        if (np.diff(order) == 1).all():  # most blocks of a gallery that hardly changed: no copy
            return first[start : start + count]
    gathered = np.empty((len(order), *first.shape[1:]), first.dtype)
    gathered[~of_second] = first[order[~of_second]]
    gathered[of_second] = second[order[of_second] - len(first)]
    return gathered


def none_of(vectors: Vectors) -> Vectors:
    """Return no rows of the same kind."""
    tokens = None if vectors.tokens is None else vectors.tokens[:0]
    return Vectors((), vectors.unit[:0], vectors.norms[:0], None, tokens)
