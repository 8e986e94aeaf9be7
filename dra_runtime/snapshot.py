"""A gallery's content at one moment: a few segments of rows, never changed but replaced by the next moment's.

The rows of an opened file are one segment and stay mapped; what is added comes into segments of its own, and what is
removed is marked. So a change costs what it changes, not what the gallery holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError, UnknownIdError, UsageError
from dra_runtime.metadata import Value, allowed_rows, check_keys
from dra_runtime.search import Ranked, top_k
from dra_runtime.vectors import Vectors, merged, none_of, row_of

if TYPE_CHECKING:
    from dra_runtime.gallery_index import GalleryIndex

Place = tuple[int, int]  # segment and row
Answer = tuple[float, str, Place]  # score, id and where it is


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows, which of them are alive (None: all), and an index over them.

    A ``kept`` segment is never merged into another in memory: it is mapped from a file, or has an index.
    """

    vectors: Vectors
    alive: npt.NDArray[np.bool_] | None = None
    index: GalleryIndex | None = None
    kept: bool = False

    @cached_property
    def count(self) -> int:
        """Return how many rows are alive."""
        return len(self.vectors) if self.alive is None else int(np.count_nonzero(self.alive))

    def row(self, name: str) -> int | None:
        """Return the row of an id, or None where it isn't or is no longer."""
        row = row_of(self.vectors.ids, name)
        return None if row is None or (self.alive is not None and not self.alive[row]) else row

    def ids(self) -> Iterable[str]:
        """Return the ids of the rows that are alive, ascending."""
        ids = self.vectors.ids
        return ids if self.alive is None else (ids[row] for row in np.flatnonzero(self.alive).tolist())


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Segments that share no living id."""

    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return sum(segment.count for segment in self.segments)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Return all ids, ascending; a million of them are made at the first call."""
        if len(self.segments) == 1:
            return tuple(self.segments[0].ids())
        return tuple(sorted(name for segment in self.segments for name in segment.ids()))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Return the metadata's keys, ascending."""
        found = (segment.vectors.metadata for segment in self.segments)
        return tuple(sorted({key for metadata in found if metadata for key in metadata.columns}))

    def place(self, name: object) -> Place | None:
        """Return where an id is, or None."""
        for number, segment in enumerate(self.segments):
            row = segment.row(name) if isinstance(name, str) else None
            if row is not None:
                return number, row
        return None

    def known_place(self, name: object) -> Place:
        """Return where an id is, or raise UnknownIdError."""
        place = self.place(name)
        if place is None:
            some = [name for segment in self.segments for name, _ in zip(segment.ids(), range(3), strict=False)]
            like = f"its ids look like {', '.join(f'{i!r:.40}' for i in some[:3])}" if some else "add images first"
            raise UnknownIdError(f"the gallery of {len(self)} images holds no id {name!r:.80}; {like}")
        return place

    def features(self, places: Sequence[Place], dim: int) -> npt.NDArray[np.float32]:
        """Return the raw features at places: (N, dim) float32."""
        features = np.empty((len(places), dim), np.float32)
        for feature, (number, row) in zip(features, places, strict=True):
            vectors = self.segments[number].vectors
            np.multiply(vectors.unit[row], vectors.norms[row], out=feature, dtype=np.float32)
        return features

    def item(self, place: Place) -> dict[str, Value]:
        """Return the metadata at a place."""
        number, row = place
        metadata = self.segments[number].vectors.metadata
        return metadata.item(row) if metadata else {}

    def tokens(self, place: Place) -> npt.NDArray[np.float16] | None:
        """Return the image tokens (T, D) at a place, or None where none are stored."""
        number, row = place
        tokens = self.segments[number].vectors.tokens
        return None if tokens is None else tokens[row]

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        excluded: Sequence[Place | None],
        wanted: dict[str, list[Value]] | None = None,
        threads: int = 1,
    ) -> list[list[Answer]]:
        """Find the k nearest living rows of each query; see `dra_runtime.search.top_k`.

        Parameters
        ----------
        queries
            (Q, D), not zero; of any length.
        k
            At least 1.
        excluded
            For each query the place that must not answer, or None.
        wanted
            A filter, as `dra_runtime.metadata.checked_where` returns it.
        threads
            How many threads read the rows for few queries.

        Returns
        -------
        list of list of Answer
            For each query, best first; equal scores in the order of their ids.

        Raises
        ------
        UsageError
            No image has a key of the filter.
        """
        for key in wanted or ():
            if key not in self.keys and len(self):
                known = f"its keys are {', '.join(self.keys)}" if self.keys else "its images have none"
                raise UsageError(f"the gallery has no metadata {key!r}; {known}")
        answers: list[list[Answer]] = [[] for _ in queries]
        for number, segment in enumerate(self.segments):
            left_out = np.array([-1 if p is None or p[0] != number else p[1] for p in excluded], np.int64)
            for merged_answers, (rows, scores) in zip(
                answers, _search_segment(segment, queries, k, left_out, wanted, threads), strict=True
            ):
                ids = segment.vectors.ids
                merged_answers += [
                    (score, ids[row], (number, row)) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
                ]
        if len(self.segments) > 1:
            answers = [sorted(some, key=lambda answer: (-answer[0], answer[1]))[:k] for some in answers]
        return answers


def snapshot_of(vectors: Vectors, index: GalleryIndex | None = None, kept: bool = False) -> Snapshot:
    """Make the first snapshot of a gallery; ``kept`` where the rows are mapped from a file."""
    return Snapshot((Segment(vectors, index=index, kept=kept or index is not None),))


def without(snapshot: Snapshot, places: Iterable[Place]) -> Snapshot:
    """Remove the rows at places."""
    segments = list(snapshot.segments)
    rows: dict[int, list[int]] = {}
    for number, row in places:
        rows.setdefault(number, []).append(row)
    for number, some in rows.items():
        segment = segments[number]
        alive = np.ones(len(segment.vectors), np.bool_) if segment.alive is None else segment.alive.copy()
        alive[some] = False
        segments[number] = replace(segment, alive=alive)
    return Snapshot(tuple(segment for segment in segments if segment.count) or (segments[0],))


def with_added(snapshot: Snapshot, vectors: Vectors) -> Snapshot:
    """Add rows whose ids aren't there.

    The last segments are merged while they are of like size. So there are never more than a few, and a row is copied a
    few times at most, however many times rows are added.

    Raises
    ------
    UsageError
        The metadata would have more keys than a gallery holds.
    """
    if not len(vectors):
        return snapshot
    segments = [*(segment for segment in snapshot.segments if segment.count), Segment(vectors)]
    while len(segments) > 1 and not segments[-2].kept and segments[-2].count <= 2 * segments[-1].count:
        last, before = segments.pop(), segments.pop()
        segments.append(Segment(_merged(before, last)))
    added = Snapshot(tuple(segments))
    check_keys(added.keys)
    return added


def parts(snapshot: Snapshot) -> tuple[Segment, Vectors]:
    """Return the first segment, and the living rows of all others as one set."""
    first, *others = snapshot.segments
    if not others:
        return first, none_of(first.vectors)
    while len(others) > 1:  # from the smallest
        last, before = others.pop(), others.pop()
        others.append(Segment(_merged(before, last)))
    return first, _living(others[0])


def whole(snapshot: Snapshot) -> Vectors:
    """Return all living rows as one set: those of a single segment as they are, otherwise a copy in memory."""
    first, others = parts(snapshot)
    return merged(first.vectors, first.alive, others) if len(others) else _living(first)


def compacted(snapshot: Snapshot) -> Snapshot:
    """Bring all living rows into one kept segment, with the index where it is over these very rows."""
    first, vectors = snapshot.segments[0], whole(snapshot)
    return snapshot_of(vectors, first.index if vectors is first.vectors else None, kept=True)


def with_index(snapshot: Snapshot, vectors: Vectors, index: GalleryIndex) -> Snapshot:
    """Put an index over the first segment, whose rows it was built over.

    Raises
    ------
    GalleryError
        The first segment has other rows than ``vectors`` by now.
    """
    first, *others = snapshot.segments
    if first.vectors is not vectors:
        raise GalleryError("all images were replaced while the index was built; build it again")
    return Snapshot((replace(first, index=index, kept=True), *others))


def _merged(first: Segment, second: Segment) -> Vectors:
    return merged(first.vectors, first.alive, _living(second))


def _living(segment: Segment) -> Vectors:
    vectors = segment.vectors
    if segment.alive is None:
        return vectors
    return merged(vectors, segment.alive, none_of(vectors))


def _search_segment(
    segment: Segment,
    queries: npt.NDArray[np.float32],
    k: int,
    excluded: npt.NDArray[np.int64],
    wanted: dict[str, list[Value]] | None,
    threads: int,
) -> list[Ranked]:
    vectors, allowed = segment.vectors, segment.alive
    if wanted:
        filtered = allowed_rows(vectors.metadata, len(vectors), wanted)
        allowed = filtered if allowed is None else filtered & allowed
    if segment.index is not None:
        return segment.index.search(vectors.unit, queries, k, excluded, allowed, threads)
    return top_k(vectors.unit, queries, k, excluded, allowed, threads)
