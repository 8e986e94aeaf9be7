"""A bundle under load: through `Gallery.search` called directly, and through the runtime's batcher."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dra_bench.load.contender import AnswerAll, Contender, pool
from dra_bench.load.queries import K, LoadQuery
from dra_runtime.batcher import Batcher
from dra_runtime.gallery import Gallery

NO_LIMIT = 65_536  #: queries that may wait in the batcher: here the latency limit ends a queue, not a refusal


def direct(name: str, precision: str, gallery: Gallery) -> Contender:
    """Make the contender that calls `Gallery.search` from as many threads as a computation has."""
    callers = gallery.encoder.threads

    @contextmanager
    def batches(size: int) -> Iterator[AnswerAll]:
        yield lambda queries: _in_batches(gallery, queries, size)

    return Contender(
        name,
        f"Gallery.search, {callers} callers; offline Encoder and Gallery.search_vectors",
        precision,
        lambda: pool(lambda query: search(gallery, query), callers),
        batches,
    )


def batched(name: str, precision: str, gallery: Gallery) -> Contender:
    """Make the contender that puts queries which come at the same time together."""

    @contextmanager
    def batches(size: int) -> Iterator[AnswerAll]:
        with Batcher(gallery, max_batch=size, max_pending=NO_LIMIT) as batcher:

            def answer_all(queries: Sequence[LoadQuery]) -> object:
                futures = [batcher.submit(text=q.text, id=q.id, image=q.image, k=K) for q in queries]
                return [future.result() for future in futures]

            yield answer_all

    return Contender(
        f"{name}, batcher", "Batcher, from an event loop; offline from one thread", precision,
        lambda: _batcher_service(gallery), batches,
    )  # fmt: skip


def search(gallery: Gallery, query: LoadQuery) -> object:
    """Answer one query as a service does."""
    return gallery.search(text=query.text, id=query.id, image=query.image, k=K)


def _in_batches(gallery: Gallery, queries: Sequence[LoadQuery], size: int) -> list[object]:
    """Answer queries in batches of ``size`` with the encoder's and the gallery's own functions."""
    if size == 1:
        return [search(gallery, query) for query in queries]
    return [
        answer
        for first in range(0, len(queries), size)
        for answer in _one_batch(gallery, queries[first : first + size])
    ]


def _one_batch(gallery: Gallery, queries: Sequence[LoadQuery]) -> Sequence[object]:
    """Answer queries whose references are all given alike."""
    encoder = gallery.encoder
    if (ids := [query.id for query in queries if query.id is not None]) and len(ids) == len(queries):
        features = gallery.features(ids)
    else:
        pixels = np.stack([encoder.pixels(query.image) for query in queries if query.image is not None])
        features = encoder.encode_pixels(pixels)["image_features"]
    composed = encoder.compose(features, encoder.encode_texts([query.text for query in queries]))
    return gallery.search_vectors(composed, K, [query.id for query in queries])


@dataclass(frozen=True)
class _BatcherService:
    batcher: Batcher
    loop: asyncio.AbstractEventLoop

    def submit(self, query: LoadQuery) -> Future[Any]:
        searched = self.batcher.search(text=query.text, id=query.id, image=query.image, k=K)
        return asyncio.run_coroutine_threadsafe(searched, self.loop)

    def settled(self) -> bool:
        return self.batcher.pending == 0  # a future of the loop is cancelled at once, the batch it is in runs on


@contextmanager
def _batcher_service(gallery: Gallery) -> Iterator[_BatcherService]:
    """Open the batcher as an asyncio service does: the event loop in a thread of its own."""
    with _event_loop() as loop, Batcher(gallery, max_pending=NO_LIMIT) as batcher:
        try:
            yield _BatcherService(batcher, loop)
        finally:
            batcher.close(drain=False)


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread; at the end its tasks are cancelled and the thread is gone."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def until_stopped() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(until_stopped()), name="load-loop")
    thread.start()
    loop, stop = started.result()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
