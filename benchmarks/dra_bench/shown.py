"""Choose the queries that a report shows, by a rule that can't flatter, and answer them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dra_train.data import Dataset, Query
from dra_train.metrics import drops_reference

ANSWERS = 5  #: best answers shown a query


@dataclass(frozen=True)
class Picture:
    """An image with its name."""

    name: str
    path: Path


@dataclass(frozen=True)
class ShownQuery:
    """A query with its best answers."""

    id: int | str
    text: str
    edit: str
    reference: Picture
    target: Picture
    answers: tuple[Picture, ...]  #: best first
    rank: int  #: of the target among all answers, from 1

    @property
    def is_first(self) -> bool:
        """Whether the best answer is the right one."""
        return self.rank == 1


def choose(queries: Sequence[Query], count: int, seed: int) -> list[Query]:
    """Draw ``count`` queries without looking at their answers, spread over the kinds of edit.

    Systematic sampling: all queries in one row, sorted by kind of edit and shuffled within a kind; every
    n-th of them from a random start. So a kind is shown about as often as it occurs.
    """
    rng = random.Random(seed)  # noqa: S311 - a fixed draw, nothing secret
    row = sorted(rng.sample(list(queries), len(queries)), key=lambda q: q.edit)
    if count >= len(row):
        return row
    start = rng.random()
    return [row[int((i + start) * len(row) / count)] for i in range(count)]


def rule(count: int, seed: int) -> str:
    """Say in a sentence how `choose` chose."""
    return (
        f"Chosen before any answer was known: all queries sorted by kind of edit, shuffled within a kind "
        f"(seed {seed}), every n-th taken so that {count} remain."
    )


def answer(
    queries: Sequence[Query], dataset: Dataset, ranking: Callable[[Query], Sequence[str]]
) -> tuple[ShownQuery, ...]:
    """Answer queries; ``ranking`` gives all image names of the split for a query, best first, with its reference.

    The reference is dropped where the data set's protocol does.
    """
    drop = drops_reference(dataset.format)
    return tuple(_answer(query, dataset.images, ranking(query), drop) for query in queries)


def _answer(query: Query, images: Mapping[str, Path], ranked: Sequence[str], drop_reference: bool) -> ShownQuery:
    names = [name for name in ranked if not (drop_reference and name == query.reference)]
    return ShownQuery(
        id=query.id,
        text=query.text,
        edit=query.edit,
        reference=Picture(query.reference, images[query.reference]),
        target=Picture(query.target, images[query.target]),
        answers=tuple(Picture(name, images[name]) for name in names[:ANSWERS]),
        rank=names.index(query.target) + 1,
    )
