"""Check the arrays of a stored index before faiss sees them: it follows every number in them blindly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.library import Rows, Scalar
from dra_runtime.errors import GalleryFormatError

Arrays = Mapping[str, npt.NDArray[Any]]
S = TypeVar("S", bound=Scalar)

MAX_LEVELS = 24  # with M = 2 links, of 2**24 rows one would stand so high
MAX_LINKS = 256
MAX_EF = 65_536
_BLOCK = 1 << 20  # numbers checked at once


@dataclass(frozen=True)
class HnswArrays:
    """A graph in layers over N rows, in which a search walks from row to nearer row.

    Row ``i`` stands in ``levels[i]`` layers, the lowest of which holds all rows. ``neighbors`` lists for each row, and
    there for each layer from the lowest up, the rows it is linked to: ``2 * links`` places in the lowest layer,
    ``links`` in each other; -1 fills what is left.
    """

    levels: npt.NDArray[np.uint8]  # (N,)
    neighbors: npt.NDArray[np.int32]
    links: int  # M in the paper
    ef_construction: int
    ef_search: int
    entry_point: int  # a row of the highest layer, where searches begin

    def offsets(self) -> Rows:
        """Return where each row's neighbors begin, and at last where all end: (N + 1,)."""
        return _offsets(self.levels, self.links)

    def as_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that are stored."""
        settings = np.array([self.links, self.ef_construction, self.ef_search, self.entry_point], np.int64)
        return {"levels": self.levels, "neighbors": self.neighbors, "settings": settings}


@dataclass(frozen=True)
class IvfArrays:
    """Lists of rows, each with a centroid: a search reads only the lists whose centroids are nearest."""

    centroids: npt.NDArray[np.float32]  # (lists, D)
    assignment: npt.NDArray[np.int32]  # (N,) the list of each row
    probes: int  # lists that a search reads

    def as_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that are stored."""
        settings = np.array([self.probes], np.int64)
        return {"centroids": self.centroids, "assignment": self.assignment, "settings": settings}


ARRAYS_OF_KIND: dict[str, dict[str, type[Scalar]]] = {
    "flat": {},
    "hnsw": {"levels": np.uint8, "neighbors": np.int32, "settings": np.int64},
    "ivf": {"centroids": np.float32, "assignment": np.int32, "settings": np.int64},
}


def check_kinds(kind: str, arrays: Arrays, count: int) -> None:
    """Check the names and types that the index of ``count`` rows has, none where there are none; reads no value.

    Raises
    ------
    GalleryFormatError
        They aren't those of the kind.
    """
    if kind not in ARRAYS_OF_KIND:
        raise GalleryFormatError(
            f"the index is of the kind {kind!r:.40}; this version knows {', '.join(ARRAYS_OF_KIND)}; build it anew"
        )
    expected = {name: np.dtype(dtype) for name, dtype in ARRAYS_OF_KIND[kind if count else "flat"].items()}
    found = {name: array.dtype for name, array in arrays.items()}
    if found != expected:
        _fail(kind, f"arrays {_types(found)} where {_types(expected)} is expected")


def hnsw_from_arrays(arrays: Arrays, count: int) -> HnswArrays:
    """Check a stored graph over ``count`` rows, at least 1.

    Raises
    ------
    GalleryFormatError
        A search in it could leave the arrays.
    """
    check_kinds("hnsw", arrays, count)
    links, ef_construction, ef_search, entry = _settings("hnsw", arrays, 4)
    _within("hnsw", "links", links, 2, MAX_LINKS)
    _within("hnsw", "ef_construction", ef_construction, 1, MAX_EF)
    _within("hnsw", "ef_search", ef_search, 1, MAX_EF)
    _within("hnsw", "entry point", entry, 0, count - 1)
    levels = _usable(arrays["levels"], np.uint8)
    if levels.shape != (count,):
        _fail("hnsw", f"levels of shape {levels.shape} for {count} rows")
    top = int(levels.max())
    _within("hnsw", "lowest level", int(levels.min()), 1, MAX_LEVELS)
    _within("hnsw", "highest level", top, 1, MAX_LEVELS)
    if levels[entry] != top:
        _fail("hnsw", f"an entry point of level {levels[entry]} where the highest is {top}")
    neighbors = _usable(arrays["neighbors"], np.int32)
    offsets = _offsets(levels, links)
    if neighbors.shape != (int(offsets[-1]),):
        _fail("hnsw", f"neighbors of shape {neighbors.shape} where the levels make ({offsets[-1]},)")
    for start in range(0, len(neighbors), _BLOCK):
        part = neighbors[start : start + _BLOCK]
        if part.min() < -1 or part.max() >= count:
            _fail("hnsw", f"a neighbor outside the {count} rows")
    # A link in a higher layer must lead to a row that stands there too: faiss would read beyond a lower one's neighbors
    for layer in range(1, top):
        rows = np.flatnonzero(levels > layer)
        begins = offsets[rows] + (layer + 1) * links
        step = max(1, _BLOCK // links)
        for start in range(0, len(rows), step):
            part = neighbors[begins[start : start + step, None] + np.arange(links)]
            if (levels[part[part >= 0]] <= layer).any():
                _fail("hnsw", f"a neighbor in layer {layer} that doesn't reach it")
    return HnswArrays(levels, neighbors, links, ef_construction, ef_search, entry)


def check_finite(codes: npt.NDArray[np.uint8]) -> None:
    """Check that half-precision codes are finite numbers, which a walk through a graph may crash on otherwise.

    Raises
    ------
    GalleryFormatError
        One isn't.
    """
    bits = codes.view(np.uint16)
    for start in range(0, len(bits), _BLOCK):
        # Without its sign, a half is finite up to 0x7bff; infinities and NaN lie above
        if ((bits[start : start + _BLOCK] << 1) >= 0xF800).any():
            raise GalleryFormatError(
                "the gallery's vectors are damaged: one isn't finite in half precision; index the images again"
            )


def ivf_from_arrays(arrays: Arrays, count: int, dim: int) -> IvfArrays:
    """Check stored lists of ``count`` rows, at least 1, of ``dim`` columns.

    Raises
    ------
    GalleryFormatError
        They can't be searched.
    """
    check_kinds("ivf", arrays, count)
    (probes,) = _settings("ivf", arrays, 1)
    centroids, assignment = _usable(arrays["centroids"], np.float32), _usable(arrays["assignment"], np.int32)
    if centroids.ndim != 2 or centroids.shape[1] != dim or not 1 <= len(centroids) <= count:
        _fail("ivf", f"centroids of shape {centroids.shape} for {count} rows of {dim} columns")
    if assignment.shape != (count,):
        _fail("ivf", f"an assignment of shape {assignment.shape} for {count} rows")
    _within("ivf", "probes", probes, 1, len(centroids))
    # faiss squares them: what overflows there would make every list as near
    if not (np.abs(centroids) <= 1e6).all():
        _fail("ivf", "a centroid that isn't a finite number")
    if assignment.min() < 0 or assignment.max() >= len(centroids):
        _fail("ivf", f"a row in a list beyond the {len(centroids)}")
    return IvfArrays(centroids, assignment, probes)


def _offsets(levels: npt.NDArray[np.uint8], links: int) -> Rows:
    offsets = np.zeros(len(levels) + 1, np.int64)
    np.cumsum((levels.astype(np.int64) + 1) * links, out=offsets[1:])
    return offsets


def _settings(kind: str, arrays: Arrays, count: int) -> list[int]:
    if arrays["settings"].shape != (count,):
        _fail(kind, f"settings of shape {arrays['settings'].shape} where ({count},) is expected")
    return [int(value) for value in arrays["settings"]]


def _usable(array: npt.NDArray[Any], dtype: type[S]) -> npt.NDArray[S]:
    """Return the array as faiss can read it: contiguous and aligned, which a mapped one is or is copied."""
    return np.require(array, dtype, ["C", "A"])


def _within(kind: str, name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        _fail(kind, f"{name} {value}, which must be {least} to {most}")


def _types(dtypes: dict[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name!s:.20} {dtype}" for name, dtype in sorted(dtypes.items()))[:200] or "none"


def _fail(kind: str, what: str) -> None:
    raise GalleryFormatError(f"the gallery's {kind} index is damaged: {what}; build the index anew")
