"""Large galleries of mixed vectors as files, made once and kept: building an index of a million items takes long."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dra_bench.contenders.backend import Floats
from dra_bench.mixed_vectors import RealVectors, character, mixed_blocks, recipe
from dra_runtime.encoder import Encoder
from dra_runtime.files import write_json
from dra_runtime.gallery import Gallery
from dra_runtime.gallery_file import write_gallery
from dra_runtime.vectors import Vectors

Storage = Literal["float32", "float16"]
Kind = Literal["flat", "hnsw", "ivf"]
KINDS: tuple[Kind, ...] = get_args(Kind)
INDEX_STORAGE: Storage = "float16"  #: of the vectors of a gallery with an index
EXACT: tuple[Storage, ...] = get_args(Storage)

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Collection:
    """A set of mixed vectors: what it is made of, and where its files lie.

    ``real`` are vectors of the width that ``encoder`` has; ``narrow`` columns they had before.
    """

    encoder: Encoder
    real: RealVectors
    narrow: int
    made_by: str  #: the bundle_id of what encoded the pictures
    items: int
    seed: int
    cache: Path

    def path(self, variant: str) -> Path:
        """Return the file of a variant: ``"float32"``, ``"float16"``, or the kind of an index."""
        key = hashlib.sha256(json.dumps([self.recipe, self.made_by, self.encoder.bundle_id, self.seed]).encode())
        name = f"{self.items}x{self.encoder.dim}-{key.hexdigest()[:12]}-{variant}.gallery"
        return self.cache / name

    @property
    def recipe(self) -> str:
        """Say what the vectors are."""
        return recipe(len(self.real.features), self.narrow, self.encoder.dim)

    def describe(self) -> dict[str, Any]:
        """Say what the vectors are, and what they are like."""
        return {
            "items": self.items,
            "dim": self.encoder.dim,
            "seed": self.seed,
            "recipe": self.recipe,
            "features_of": self.made_by,
            **character(self.real.features, self.seed),
        }


def cached_gallery(collection: Collection, variant: str, advance: Advance) -> Path:
    """Return the file of a variant: a storage, or the kind of an index; made if it isn't there yet."""
    for storage in EXACT:
        if variant == storage:
            return _exact_gallery(collection, storage, advance)
    return _indexed_gallery(collection, next(kind for kind in KINDS if kind == variant), advance)


def _exact_gallery(collection: Collection, storage: Storage, advance: Advance) -> Path:
    path = collection.path(storage)
    if not path.is_file():
        items, encoder = collection.items, collection.encoder
        with _scratch(path, (items, encoder.dim), storage) as unit:
            norms = np.empty(items, np.float32)
            done = 0
            for rows, lengths in mixed_blocks(collection.real.features, items, collection.seed):
                unit[done : done + len(rows)] = rows
                norms[done : done + len(rows)] = lengths
                done += len(rows)
                advance(done, items)
            ids = [f"item-{i:0{len(str(items))}d}" for i in range(items)]
            write_gallery(path, Vectors(ids, unit, norms), encoder.bundle_id, encoder.bundle.path)
    return path


def _indexed_gallery(collection: Collection, kind: Kind, advance: Advance) -> Path:
    """Index the exact gallery, and note beside the file how long that took."""
    path = collection.path(kind)
    if not path.is_file():
        source = _exact_gallery(collection, INDEX_STORAGE, advance)
        gallery = Gallery.open(source, collection.encoder, "size")
        start = time.monotonic()
        report = gallery.build_index(kind, advance)
        seconds = time.monotonic() - start
        gallery.save(path)
        built = {
            "index": kind,
            "seconds": round(seconds, 1),
            "threads": collection.encoder.threads,
            "report": dataclasses.asdict(report),
        }
        write_json(built_note(path), built)
    return path


def built_note(path: Path) -> Path:
    """Return where it is noted how a gallery's index was built."""
    return path.with_suffix(".json")


def read_built(path: Path) -> dict[str, Any]:
    """Return how a gallery's index was built, or nothing for a gallery without one."""
    note = built_note(path)
    built: dict[str, Any] = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    return built


def held_out_queries(collection: Collection, count: int) -> Floats:
    """Return up to ``count`` composed queries, spread over all that there are."""
    queries = collection.real.queries
    return np.ascontiguousarray(queries[np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(int)])


@contextmanager
def _scratch(path: Path, shape: tuple[int, int], storage: Storage) -> Iterator[npt.NDArray[Any]]:
    """Yield an array on the disk, gone afterwards: a million vectors need not fit into memory."""
    temporary = path.with_name(f".{path.name}.vectors.tmp")
    try:
        yield np.memmap(temporary, storage, "w+", shape=shape)
    finally:
        temporary.unlink(missing_ok=True)
