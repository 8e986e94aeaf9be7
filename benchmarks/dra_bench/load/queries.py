"""What is asked under load: texts and pictures of the built-in data set, and a gallery to search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery
from dra_train.data import open_dataset

Item = TypeVar("Item")

REFERENCES = ("id", "new")
LABELS = {"id": "by id", "new": "new reference"}
K = 10  #: answers a query
QUERIES = 64  #: different queries, asked again and again
PICTURES = 16
ABOUT_QUERIES = (
    f"{QUERIES} texts of the built-in data set's validation split in turn, {PICTURES} of its pictures as WebP files of "
    "96 px in memory, or as many ids; ten answers"
)
ABOUT_ITEMS = f"features of {PICTURES} built-in pictures, mixed with random weights until there are enough"


@dataclass(frozen=True)
class LoadQuery:
    """One whole query: a text, and a reference by its id or as the bytes of an image file, never both."""

    text: str
    id: str | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Material:
    """What queries are made of, the same for all contenders."""

    texts: tuple[str, ...]
    pictures: tuple[bytes, ...]


def builtin_material() -> Material:
    """Read texts and pictures, spread over the built-in data set's validation split."""
    (dataset,) = open_dataset("builtin", "val")
    texts = [query.text for query in _spread(dataset.queries, QUERIES)]
    paths = _spread(tuple(dataset.images.values()), PICTURES)
    return Material(tuple(texts), tuple(path.read_bytes() for path in paths))


def load_queries(material: Material, reference: str, ids: Sequence[str]) -> tuple[LoadQuery, ...]:
    """Return the queries that are asked in turn: ``"id"`` takes references from ``ids``, ``"new"`` the pictures."""
    if reference == "id":
        known = _spread(ids, len(material.texts))
        return tuple(LoadQuery(text, id=known[i % len(known)]) for i, text in enumerate(material.texts))
    pictures = material.pictures
    return tuple(LoadQuery(text, image=pictures[i % len(pictures)]) for i, text in enumerate(material.texts))


def made_gallery(encoder: Encoder, pictures: Sequence[bytes], items: int) -> Gallery:
    """Make a gallery of ``items`` vectors: the pictures' own features, mixed with random weights (Dirichlet).

    How long exact search takes doesn't depend on what the vectors are.
    """
    features = encoder.encode_images(pictures)
    weights = np.random.default_rng(0).dirichlet(np.ones(len(features)), items).astype(np.float32)
    return Gallery.from_features(encoder, [f"item-{i:07d}" for i in range(items)], weights @ features)


def _spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    """Take ``count`` items at even distances, or all where there are fewer."""
    if len(items) <= count:
        return items
    return [items[i * len(items) // count] for i in range(count)]
