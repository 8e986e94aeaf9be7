"""PyTorch eager under load, as a service without batching does it: the model, then exact search with numpy."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from queue import SimpleQueue

import numpy as np

from dra_bench.contenders.backend import Floats
from dra_bench.contenders.pytorch import PyTorchTowers
from dra_bench.load.contender import AnswerAll, Contender, pool
from dra_bench.load.queries import K, LoadQuery
from dra_runtime.gallery import Gallery
from dra_runtime.preprocess import Preprocess, open_image
from dra_train.model import DRA


@dataclass(frozen=True)
class PyTorchSearch:
    """A model with a gallery: raw features (N, D), the same of unit length, and each id's row."""

    model: PyTorchTowers
    preprocess: Preprocess
    threads: int
    ids: tuple[str, ...]
    features: Floats
    unit: Floats
    rows: dict[str, int]

    def answer(
        self, queries: Sequence[LoadQuery], lock: AbstractContextManager[object]
    ) -> list[list[tuple[str, float]]]:
        """Answer queries whose references are all given alike: ids and cosines, best first, the reference left out.

        Images are decoded and preprocessed outside of ``lock``, all that follows is within.
        """
        texts = [query.text for query in queries]
        rows = [None if query.id is None else self.rows[query.id] for query in queries]
        images = [open_image(query.image) for query in queries if query.image is not None]
        pixels = [self.preprocess.network_input(image, "float32", self.threads) for image in images]
        with lock:
            if pixels:
                composed = self.model.query(np.stack(pixels), texts)
            else:
                composed = self.model.query_by_id(self.features[[row for row in rows if row is not None]], texts)
            scores = composed @ self.unit.T
            return [self._best(line, row) for line, row in zip(scores, rows, strict=True)]

    def alone(self, queries: Sequence[LoadQuery]) -> list[list[tuple[str, float]]]:
        """Answer queries while nobody else asks."""
        return self.answer(queries, nullcontext())

    def _best(self, scores: Floats, excluded: int | None) -> list[tuple[str, float]]:
        if excluded is not None:
            scores[excluded] = -np.inf
        k = min(K, len(scores))
        best = np.argpartition(-scores, k - 1)[:k]
        return [(self.ids[row], float(scores[row])) for row in best[np.argsort(-scores[best])]]


def pytorch_search(model: PyTorchTowers, gallery: Gallery) -> PyTorchSearch:
    """Put a model before a gallery's vectors; the gallery's bundle must come from the same checkpoint."""
    features = gallery.features(gallery.ids)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    encoder = gallery.encoder
    rows = {name: row for row, name in enumerate(gallery.ids)}
    return PyTorchSearch(model, encoder.preprocess, encoder.threads, gallery.ids, features, unit, rows)


def pytorch_contenders(search: PyTorchSearch) -> tuple[Contender, ...]:
    """Make both services: one query at a time behind a lock, and as many at a time as there are threads."""
    name, callers = search.model.name, search.threads

    @contextmanager
    def batches(size: int) -> Iterator[AnswerAll]:
        yield lambda queries: [
            answer for first in range(0, len(queries), size) for answer in search.alone(queries[first : first + size])
        ]

    lock = threading.Lock()
    copies: SimpleQueue[PyTorchSearch] = SimpleQueue()
    for _ in range(callers):
        copies.put(replace(search, model=replace(search.model, model=with_shared_weights(search.model.model))))

    def answer_with_a_copy(query: LoadQuery) -> object:
        one = copies.get()
        try:
            return one.alone([query])[0]
        finally:
            copies.put(one)

    about = "the model, then exact search with numpy"
    return (
        Contender(
            name,
            f"{about}, one query at a time",
            "fp32",
            lambda: pool(lambda query: search.answer([query], lock)[0], callers),
            batches,
        ),
        Contender(
            f"{name}, pool",
            f"{about}, {callers} callers at a time, each with its modules over shared weights",
            "fp32",
            lambda: pool(answer_with_a_copy, callers),
            None,
        ),
    )


def with_shared_weights(model: DRA) -> DRA:
    """Return a copy of the modules over the same weights.

    A model that reads the stages of its image tower hooks its modules while it runs, so they can't serve two threads.
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
