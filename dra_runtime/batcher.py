"""Queries that come at the same time, answered together."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dra_runtime.encoder import Features, Pixels
from dra_runtime.errors import DeadlineError, DraError, OverloadedError, UnknownIdError, UsageError
from dra_runtime.gallery import Gallery, Hit
from dra_runtime.gallery_answers import check_k, check_reference
from dra_runtime.metadata import Where, checked_where
from dra_runtime.preprocess import ImageSource
from dra_runtime.sessions import ONNXRUNTIME_CPU
from dra_runtime.threads import require_process

if TYPE_CHECKING:
    from concurrent.futures import Future

CPU_IMAGES = 4  #: a CPU encodes larger batches no faster (224 px: 20 % slower at 16), and all wait for the last
MAX_TIMEOUT = 86_400.0  # seconds; a longer one is a mistake, such as milliseconds


@dataclass(eq=False)
class _Query:
    """One query on its way: decoded and tokenized first, then part of a batch."""

    text: str
    image: ImageSource | None
    id: str | None
    k: int
    keep_reference: bool
    where: str  # JSON, so that equal filters are equal keys
    deadline: float  # on time.monotonic's clock
    answer: Future[list[Hit]]
    tokens: list[int] = field(default_factory=list)
    pixels: Pixels | None = None

    def forget(self) -> None:
        """Give the memory back: whoever holds the future, or a decoder's queue, may hold the query too."""
        self.image = self.pixels = None
        self.text = ""


class Batcher:
    """Answers queries that come at the same time as one batch, through a gallery and its encoder.

    A query that comes alone is run at once. While a batch runs, the next one gathers; it then waits, up to
    ``max_wait``, for queries that are being decoded already and for nothing else. Images are decoded and texts
    tokenized outside of the batches: by `submit` in the caller's thread, by `search` in a few threads of the batcher.

    The answers are those of `Gallery.search`, apart from the last bits of a score (docs/serving.md). A query that can't
    be answered fails alone. Safe to share between threads; idle, it uses no CPU. Use it in a ``with`` block, or call
    `close`.

    Parameters
    ----------
    gallery
        Answers the queries; images may be added and removed meanwhile.
    max_batch
        Queries in a batch at most.
    max_images
        Images in a batch at most; by default 4 on the CPU, where more are no faster, and ``max_batch`` elsewhere.
    max_wait
        Seconds that a batch waits at most for queries that are being decoded.
    max_pending
        Queries that are not yet answered, of all callers together. One more is refused with OverloadedError.

    Raises
    ------
    UsageError
        A limit is out of range.
    """

    def __init__(
        self,
        gallery: Gallery,
        max_batch: int = 16,
        max_images: int | None = None,
        max_wait: float = 0.003,
        max_pending: int = 64,
    ) -> None:
        from concurrent.futures import ThreadPoolExecutor  # slow to import

        if max_images is None:
            max_images = min(max_batch, CPU_IMAGES) if gallery.encoder.backend == ONNXRUNTIME_CPU else max_batch
        for name, value in (("max_batch", max_batch), ("max_images", max_images), ("max_pending", max_pending)):
            if type(value) is not int or not 1 <= value <= 65_536:
                raise UsageError(f"{name} is {value!r}; give a whole number from 1 to 65536")
        if not isinstance(max_wait, int | float) or not 0 <= max_wait <= 1:
            raise UsageError(f"max_wait is {max_wait!r}; give seconds from 0 to 1, such as 0.003")
        self._gallery = gallery
        self._max_batch = max_batch
        self._max_images = max_images
        self._max_wait = float(max_wait)
        self._max_pending = max_pending
        self._process = os.getpid()
        self._changed = threading.Condition(threading.Lock())
        self._pending: set[_Query] = set()  # not yet answered
        self._ready: deque[_Query] = deque()  # those of them that the next batch can take
        self._closed = False
        self._decoders = ThreadPoolExecutor(gallery.encoder.threads, "dra-decoder")
        # A service that forgets to close must still be able to exit
        self._worker = threading.Thread(target=self._work, name="dra-batcher", daemon=True)
        self._worker.start()

    @property
    def pending(self) -> int:
        """Return how many queries aren't answered yet."""
        return len(self._pending)

    def submit(
        self,
        *,
        text: str,
        image: ImageSource | None = None,
        id: str | None = None,
        k: int = 10,
        keep_reference: bool = False,
        where: Where | None = None,
        timeout: float | None = None,
    ) -> Future[list[Hit]]:
        """Decode and tokenize a query in this thread, and hand it to the next batch.

        Parameters
        ----------
        text, image, id, k, keep_reference, where
            As `Gallery.search` takes them.
        timeout
            Seconds from now after which no more work is spent on the query; by default it has no deadline.

        Returns
        -------
        Future
            Of what `Gallery.search` returns. Cancelled before its batch begins, it costs nothing more. It raises
            UnknownIdError, DeadlineError, BackendError.

        Raises
        ------
        OverloadedError
            ``max_pending`` queries aren't answered yet.
        UsageError, TextError, ImageError
            The query can't be used, or the batcher is closed.
        DeadlineError
            ``timeout`` passed before the query was decoded.
        BackendError
            This process was forked from the one that made the batcher.
        """
        query = self._admit(text, image, id, k, keep_reference, where, timeout)
        try:
            error = self._prepare(query)
        except BaseException:  # such as KeyboardInterrupt; its place goes to another
            query.answer.cancel()
            raise
        if error is not None:
            raise error
        return query.answer

    async def search(
        self,
        *,
        text: str,
        image: ImageSource | None = None,
        id: str | None = None,
        k: int = 10,
        keep_reference: bool = False,
        where: Where | None = None,
        timeout: float | None = None,
    ) -> list[Hit]:
        """Answer a query without blocking the event loop: what `submit` does, decoding included, is done elsewhere.

        Cancelling the task takes the query back.
        """
        from asyncio import wrap_future

        query = self._admit(text, image, id, k, keep_reference, where, timeout)
        try:
            self._decoders.submit(self._prepare, query)
        except RuntimeError:  # closed at this very moment
            self._fail(query, _closed())
        return await wrap_future(query.answer)

    def close(self, drain: bool = True) -> None:
        """Take no more queries, and return when the last one is answered.

        It waits for the batcher's threads, so don't call it from a future's callback, which may run in one of them, and
        from an event loop call it by ``asyncio.to_thread``.

        Parameters
        ----------
        drain
            Whether the queries that wait are answered first; otherwise they are cancelled, and only the batch that
            runs is finished.
        """
        require_process(self._process, "batcher")
        with self._changed:
            self._closed = True
            waiting = [] if drain else list(self._pending)
            self._changed.notify_all()
        for query in waiting:
            query.answer.cancel()
        self._decoders.shutdown()
        self._worker.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(
        self,
        text: str,
        image: ImageSource | None,
        id: str | None,
        k: int,
        keep_reference: bool,
        where: Where | None,
        timeout: float | None,
    ) -> _Query:
        from concurrent.futures import Future

        require_process(self._process, "batcher")
        check_k(k)
        check_reference(image, id)
        if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout <= MAX_TIMEOUT):
            raise UsageError(f"timeout is {timeout!r}; give seconds from above 0 to {MAX_TIMEOUT:.0f}, or None")
        deadline = np.inf if timeout is None else time.monotonic() + timeout
        query = _Query(text, image, id, k, keep_reference, _where_key(where), deadline, Future())
        with self._changed:
            if self._closed:
                raise _closed()
            if len(self._pending) >= self._max_pending:
                raise OverloadedError(
                    f"{len(self._pending)} queries wait for an answer, as many as max_pending allows; ask again later"
                )
            self._pending.add(query)
        query.answer.add_done_callback(lambda _: self._leave(query))
        return query

    def _leave(self, query: _Query) -> None:
        """Let a query's place go to another one: before it is answered or failed, or once it is cancelled."""
        query.forget()
        with self._changed:
            self._pending.discard(query)
            if query in self._ready:
                self._ready.remove(query)
            self._changed.notify_all()

    def _fail(self, query: _Query, error: Exception) -> None:
        self._leave(query)  # first: its caller may ask again as soon as it knows
        if query.answer.running() or query.answer.set_running_or_notify_cancel():
            query.answer.set_exception(error)

    def _prepare(self, query: _Query) -> Exception | None:
        """Decode the image and tokenize the text, in whatever thread this is called; return what went wrong."""
        image, text = query.image, query.text
        if query.answer.cancelled():
            return None
        try:
            _check_deadline(query)
            encoder = self._gallery.encoder
            query.tokens = encoder.tokenize([text])[0]
            if image is not None:
                query.pixels = encoder.pixels(image)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it and no other query does
            self._fail(query, error)
            return error
        with self._changed:
            if query in self._pending:
                query.image = None
                self._ready.append(query)
                self._changed.notify_all()
            else:  # cancelled meanwhile
                query.forget()
        return None

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                self._answer(batch)
            except Exception as error:  # noqa: BLE001 - each caller gets it, and the next batch may fare better
                for query in batch:
                    if not query.answer.done():
                        self._fail(query, error)
            batch.clear()  # an idle worker holds no query

    def _next_batch(self) -> list[_Query]:
        """Wait for queries and take them, the oldest first; return none once the batcher is closed and empty."""
        batch: list[_Query] = []
        while not batch:
            with self._changed:
                while not self._ready:
                    if self._closed and not self._pending:
                        return []
                    self._changed.wait()
                latest = time.monotonic() + self._max_wait
                while self._worth_waiting() and (left := latest - time.monotonic()) > 0:
                    self._changed.wait(left)
                taken = self._take()
            for query in taken:  # without the lock: whoever waits for a future may call us from its callback
                if not query.answer.set_running_or_notify_cancel():
                    continue
                try:
                    _check_deadline(query)
                    batch.append(query)
                except DeadlineError as error:
                    self._fail(query, error)
        return batch

    def _worth_waiting(self) -> bool:
        """Whether the batch has room, and a query for it is being decoded: no batch runs, so it is pending alone."""
        if not len(self._ready) < min(self._max_batch, len(self._pending)):
            return False
        return sum(query.pixels is not None for query in self._ready) < self._max_images

    def _take(self) -> list[_Query]:
        taken: list[_Query] = []
        images, left = 0, deque[_Query]()
        while self._ready and len(taken) < self._max_batch:
            query = self._ready.popleft()
            if query.pixels is not None and images == self._max_images:
                left.append(query)
                continue
            images += query.pixels is not None
            taken.append(query)
        self._ready.extendleft(reversed(left))
        return taken

    def _answer(self, batch: Sequence[_Query]) -> None:
        """Run a batch and give each query its answer or its own error."""
        by_id, references = [], []
        for query in batch:
            if query.id is not None:
                try:
                    references.append(self._gallery.features([query.id])[0])
                    by_id.append(query)
                except UnknownIdError as error:
                    self._fail(query, error)
        if by_id:  # first: they shall not wait for the others' images
            self._compose_and_search(by_id, np.stack(references))
        by_image = [query for query in batch if query.id is None]
        if by_image:
            pixels = np.stack([p for query in by_image if (p := query.pixels) is not None])
            self._compose_and_search(by_image, self._gallery.encoder.encode_pixels(pixels)["image_features"])

    def _compose_and_search(self, queries: Sequence[_Query], image_features: Features) -> None:
        encoder = self._gallery.encoder
        text_features = encoder.encode_tokens([query.tokens for query in queries])
        vectors = encoder.compose(image_features, text_features)
        for where in dict.fromkeys(query.where for query in queries):
            rows = [i for i, query in enumerate(queries) if query.where == where]
            self._search([queries[i] for i in rows], vectors[rows])

    def _search(self, queries: Sequence[_Query], vectors: Features) -> None:
        """Search the gallery for queries with the same filter."""
        where = json.loads(queries[0].where)
        exclude = [None if query.keep_reference else query.id for query in queries]
        try:
            found = self._gallery.search_vectors(vectors, max(query.k for query in queries), exclude, where)
        except DraError as error:
            if len(queries) == 1:
                self._fail(queries[0], error)
                return
            # One of them is to blame, such as one whose reference was removed meanwhile; the others have an answer
            for i, query in enumerate(queries):
                self._search([query], vectors[i : i + 1])
            return
        for query, hits in zip(queries, found, strict=True):
            self._leave(query)
            query.answer.set_result(hits[: query.k])


def _where_key(where: Where | None) -> str:
    return json.dumps(None if where is None else checked_where(where), sort_keys=True)


def _closed() -> UsageError:
    return UsageError("this batcher is closed; make another")


def _check_deadline(query: _Query) -> None:
    if time.monotonic() >= query.deadline:
        raise DeadlineError("the query's deadline passed before its turn came; ask again later or give more time")
