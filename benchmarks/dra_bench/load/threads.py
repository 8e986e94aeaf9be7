"""Throughput against threads: one query after the other with ever more threads, and ever more callers of one thread."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch

from dra_bench.load.contender import AnswerAll
from dra_bench.load.pytorch import PyTorchSearch
from dra_bench.load.queries import LoadQuery
from dra_bench.load.runtime import search
from dra_bench.load.turns import Queries, Turn, callers, thread_counts, turn
from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery


def bundle_turns(name: str, gallery: Gallery, queries: Queries, stack: ExitStack) -> list[Turn]:
    """List a bundle with 1 to all threads: one query after the other, and as many callers with a thread each."""
    most = gallery.encoder.threads
    turns = []
    alone = with_threads(gallery, 1)
    for count in thread_counts(most):
        opened = alone if count == 1 else with_threads(gallery, count)
        for reference, asked in queries.items():
            turns.append(_threaded(name, reference, asked, count, 1, _one_by_one(opened)))
            if count > 1:
                at_once = callers(lambda query: search(alone, query), count, stack)
                turns.append(_threaded(f"{name}, callers of 1 thread", reference, asked, count, 2 * count, at_once))
    return turns


def pytorch_turns(found: PyTorchSearch, queries: Queries) -> list[Turn]:
    """List PyTorch with 1 to all threads, one query after the other."""
    return [
        _threaded(found.model.name, reference, asked, count, 1, _with_torch_threads(found, count))
        for count in thread_counts(found.threads)
        for reference, asked in queries.items()
    ]


def with_threads(gallery: Gallery, count: int) -> Gallery:
    """Return the gallery with an encoder of its own that uses ``count`` threads, or itself where it does already."""
    encoder = gallery.encoder
    if encoder.threads == count:
        return gallery
    opened = Encoder.open(encoder.bundle.path, encoder.backend, threads=count, integrity="size")
    return Gallery.from_features(opened, gallery.ids, gallery.features(gallery.ids))


def _threaded(
    name: str, reference: str, queries: Sequence[LoadQuery], threads: int, count: int, run: AnswerAll
) -> Turn:
    made = turn(name, reference, queries, count, 1, run)
    return replace(made, key={"backend": name, "reference": reference, "threads": threads})


def _one_by_one(gallery: Gallery) -> AnswerAll:
    return lambda queries: [search(gallery, query) for query in queries]


def _with_torch_threads(found: PyTorchSearch, count: int) -> AnswerAll:
    def run(queries: Sequence[LoadQuery]) -> object:
        torch.set_num_threads(count)
        return found.alone(queries)

    return run
