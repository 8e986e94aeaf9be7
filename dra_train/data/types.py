"""What every data set becomes: queries, and the gallery they are ranked in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dra_runtime.errors import DatasetError


@dataclass(frozen=True)
class Query:
    """A reference image and a text, with the image that they should find."""

    id: int | str
    reference: str
    text: str  #: at test time; a blank one is data, not an error
    target: str  #: "" where the split hides it
    group: tuple[str, ...] = ()  #: the look-alikes that Rsubset ranks, reference and target among them
    edit: str = ""  #: what kind of change the text asks for, where the data set says so; several joined by "+"
    train_texts: tuple[str, ...] = ()  #: of which training draws one a step; () means ``(text,)``
    targets: tuple[str, ...] = ()  #: all right answers where there are several; () means ``(target,)``

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All right answers, the target first; none where the split hides them."""
        return self.targets or ((self.target,) if self.target else ())


@dataclass(frozen=True)
class Dataset:
    """The queries of one split and its gallery."""

    name: str
    split: str
    queries: tuple[Query, ...]
    images: Mapping[str, Path]  #: the gallery by name; it holds every image that a query names
    format: str = "cirr"  #: cirr, fashioniq, circo or jsonl: names the evaluation's protocol
    gallery: str = ""  #: which one, where a format has several: "original" or "val_union"
    category: str = ""  #: FashionIQ's
    missing: tuple[str, ...] = ()  #: images left out because they are missing or unreadable, as was allowed
    dropped: int = 0  #: queries left out because they need one of those images

    @property
    def title(self) -> str:
        """Name, category and split, for messages and tables."""
        return " / ".join(part for part in (self.name, self.category, self.split) if part)

    @property
    def hides_targets(self) -> bool:
        """Whether the right answers are known to the benchmark's server alone."""
        return not any(query.target for query in self.queries)


def join(datasets: Sequence[Dataset]) -> Dataset:
    """Join the parts of one data set, such as FashionIQ's categories, into one: to train on, not to evaluate.

    DatasetError when an image name stands for different files.
    """
    first = datasets[0]
    if len(datasets) == 1:
        return first
    images: dict[str, Path] = {}
    for dataset in datasets:
        clash = [name for name, path in dataset.images.items() if images.get(name, path) != path]
        if clash:
            raise DatasetError(
                f"the parts of {first.name} give {clash[0]!r} different files; join parts of one data set"
            )
        images |= dataset.images
    return replace(
        first,
        queries=tuple(query for dataset in datasets for query in dataset.queries),
        images=images,
        category="",
        missing=tuple(dict.fromkeys(name for dataset in datasets for name in dataset.missing)),
        dropped=sum(dataset.dropped for dataset in datasets),
    )


def require_targets(dataset: Dataset, purpose: str) -> None:
    """Refuse a split that hides its targets, for a ``purpose`` such as "training"; raises DatasetError."""
    if dataset.hides_targets:
        raise DatasetError(f"{dataset.title} hides its targets, and {purpose} needs them; choose another split")
