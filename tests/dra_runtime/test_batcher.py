"""Queries that are answered together get the answers that they would get alone, and their own errors."""

import asyncio
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import numpy as np
import pytest
from bundle_factory import SIZE

from dra_runtime import Encoder, Gallery
from dra_runtime.batcher import Batcher
from dra_runtime.errors import (
    BackendError,
    DeadlineError,
    ImageError,
    OverloadedError,
    TextError,
    UnknownIdError,
    UsageError,
)

TEXTS = [
    "in red",
    "with long sleeves",
    "smaller",
    "the same but in green and with a much longer handle on its left side",
]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def opened(bundle_path):
    return Encoder.open(bundle_path, threads=1)


@pytest.fixture
def gallery(opened):
    shapes = {f"{n:02}": {"shape": ("round", "square")[n % 2]} for n in range(40)}
    return Gallery.build(opened, {name: picture(n) for n, name in enumerate(shapes)}, metadata=shapes)


class Gate:
    """A compositor that notes the size of each batch, and waits while the gate is shut."""

    def __init__(self, encoder: Encoder) -> None:
        self.session = encoder.session("compositor")
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        self.sizes: list[int] = []
        self.error: Exception | None = None

    backend = "onnxruntime-cpu"

    def run(self, inputs):
        self.sizes.append(len(inputs["image_features"]))
        self.entered.release()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error
        return self.session.run(inputs)


@pytest.fixture
def gate(opened, monkeypatch):
    gate = Gate(opened)
    monkeypatch.setitem(opened._sessions, "compositor", gate)
    yield gate
    gate.open.set()


def busy(batcher: Batcher, gate: Gate):
    """Submit a query, and return when its batch waits at the gate."""
    future = batcher.submit(text="first", id="00")
    assert gate.entered.acquire(timeout=20)
    return future


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)


def mixed_queries() -> list[dict]:
    queries = []
    for n in range(60):
        reference = {"id": f"{n % 40:02}"} if n % 3 else {"image": picture(100 + n)}
        where = (None, {"shape": "round"}, {"shape": ["round", "square"]})[n % 5 // 2]
        queries.append(
            {"text": TEXTS[n % 4], "k": 1 + n % 7, "keep_reference": n % 2 == 0, "where": where, **reference}
        )
    return queries


def assert_same(found, expected):
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    assert [hit.rank for hit in found] == [hit.rank for hit in expected]
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], rtol=0, atol=1e-6)


def test_answers_are_those_of_a_search(gallery):
    queries = mixed_queries()
    expected = [gallery.search(**query) for query in queries]
    with Batcher(gallery) as batcher, ThreadPoolExecutor(16) as callers:
        found = list(callers.map(lambda query: batcher.submit(**query).result(20), queries))
    for answer, wanted in zip(found, expected, strict=True):
        assert_same(answer, wanted)


def test_answers_of_one_batch(gallery, gate):
    queries = mixed_queries()[:20]
    with Batcher(gallery, max_batch=20, max_images=20) as batcher:
        busy(batcher, gate)
        futures = [batcher.submit(**query) for query in queries]
        gate.open.set()
        found = [future.result(20) for future in futures]
    assert gate.sizes == [1, 13, 7]  # by id, by image
    for answer, query in zip(found, queries, strict=True):
        assert_same(answer, gallery.search(**query))


def test_what_comes_while_a_batch_runs_is_the_next_batch(gallery, gate):
    with Batcher(gallery, max_batch=4, max_wait=0) as batcher:
        first = busy(batcher, gate)  # alone: run at once
        others = [batcher.submit(text="a", id=f"{n:02}") for n in range(7)]
        assert batcher.pending == 8
        gate.open.set()
        wait_for([first, *others], 20)
    assert gate.sizes == [1, 4, 3]
    assert batcher.pending == 0


def test_a_lone_query_waits_for_nobody(gallery):
    with Batcher(gallery, max_wait=1) as batcher:
        start = time.monotonic()
        for n in range(20):
            batcher.submit(text="a", id=f"{n:02}").result(20)
        assert time.monotonic() - start < 10  # waiting would take 20 s


def test_images_in_a_batch(gallery, gate):
    with Batcher(gallery, max_images=2) as batcher:
        first = busy(batcher, gate)
        by_image = [batcher.submit(text="a", image=picture(n)) for n in range(5)]
        by_id = [batcher.submit(text="a", id=f"{n:02}") for n in range(3)]
        gate.open.set()
        wait_for([first, *by_image, *by_id], 20)
    assert gate.sizes == [1, 3, 2, 2, 1]  # queries by id pass by images


def test_a_batch_waits_for_a_query_that_is_being_decoded(gallery, gate, monkeypatch):
    decoding, decoded = threading.Event(), threading.Event()
    pixels = Encoder.pixels

    def slow(encoder, image):
        if not decoding.is_set():
            decoding.set()
            assert decoded.wait(20)
        return pixels(encoder, image)

    monkeypatch.setattr(Encoder, "pixels", slow)
    gate.open.set()
    for max_wait, sizes in ((1.0, [2]), (0.0, [1, 1])):
        gate.sizes.clear()
        decoding.clear()
        decoded.clear()
        with Batcher(gallery, max_wait=max_wait) as batcher, ThreadPoolExecutor(1) as caller:
            slow_one = caller.submit(lambda b=batcher: b.submit(text="a", image=picture(1)))
            assert decoding.wait(20)
            quick_one = batcher.submit(text="a", image=picture(3))
            if max_wait == 0:
                quick_one.result(20)
            decoded.set()
            slow_one.result(20).result(20)
            quick_one.result(20)
        assert gate.sizes == sizes


def test_one_query_too_many(gallery, gate):
    with Batcher(gallery, max_pending=2) as batcher:
        busy(batcher, gate)
        second = batcher.submit(text="a", id="01")
        with pytest.raises(OverloadedError, match="2 queries wait"):
            batcher.submit(text="a", id="02")
        assert second.cancel()
        batcher.submit(text="a", id="02")  # the cancelled one left its place
        gate.open.set()


def test_a_query_that_cannot_be_used_keeps_no_place(gallery):
    with Batcher(gallery, max_pending=1) as batcher:
        for _ in range(3):
            with pytest.raises(TextError, match="nothing to search for"):
                batcher.submit(text=" ", id="01")
            with pytest.raises(ImageError):
                batcher.submit(text="a", image=b"no image")
            with pytest.raises(UnknownIdError, match="'nowhere'"):
                batcher.submit(text="a", id="nowhere").result(20)
        assert batcher.submit(text="a", id="01").result(20)


def test_deadline(gallery, gate):
    with Batcher(gallery) as batcher:
        first = busy(batcher, gate)
        late, patient = batcher.submit(text="a", id="01", timeout=0.01), batcher.submit(text="a", id="02", timeout=60)
        time.sleep(0.02)
        gate.open.set()
        with pytest.raises(DeadlineError, match="before its turn"):
            late.result(20)
        assert patient.result(20)
        assert first.result(20)
    assert gate.sizes == [1, 1]


def test_a_cancelled_query_is_skipped(gallery, gate):
    with Batcher(gallery) as batcher:
        first = busy(batcher, gate)
        taken_back, kept = batcher.submit(text="a", image=picture(1)), batcher.submit(text="a", id="02")
        assert not first.cancel()  # its batch runs
        assert taken_back.cancel()
        assert batcher.pending == 2
        assert len(batcher._ready) == 1  # it isn't kept either until its turn comes
        gate.open.set()
        assert kept.result(20)
        with pytest.raises(CancelledError):
            taken_back.result(20)
    assert gate.sizes == [1, 1]


def test_an_unknown_id_fails_alone(gallery, gate):
    with Batcher(gallery) as batcher:
        busy(batcher, gate)
        futures = [batcher.submit(text="a", id=name) for name in ("01", "nowhere", "02")]
        gate.open.set()
        wait_for(futures, 20)
        assert gate.sizes == [1, 2]
        with pytest.raises(UnknownIdError, match="'nowhere'"):
            futures[1].result(20)
        assert_same(futures[2].result(20), gallery.search(text="a", id="02"))
        assert futures[0].result(20)


def test_what_a_batch_finds_wrong_comes_by_the_future_however_quick_it_is(gallery, monkeypatch):
    with Batcher(gallery) as batcher:
        prepare = batcher._prepare

        def slow(query):
            error = prepare(query)
            wait_for([query.answer], 20)
            return error

        monkeypatch.setattr(batcher, "_prepare", slow)
        future = batcher.submit(text="in red", id="nobody")
        with pytest.raises(UnknownIdError):
            future.result()


def test_a_reference_removed_meanwhile_fails_alone(gallery, gate):
    with Batcher(gallery) as batcher:
        busy(batcher, gate)
        doomed, other = batcher.submit(text="a", id="01"), batcher.submit(text="a", id="02")
        first_go = gate.open
        gate.open = threading.Event()
        first_go.set()
        assert gate.entered.acquire(timeout=20)  # both were looked up, and wait at the second gate
        gallery.remove(["01"])
        gate.open.set()
        assert_same(other.result(20), gallery.search(text="a", id="02"))
        with pytest.raises(UnknownIdError, match="'01'"):
            doomed.result(20)


@pytest.mark.parametrize("error", [BackendError("the graph failed"), MemoryError("no more")])
def test_a_failed_batch_is_each_callers_error_and_not_the_end(gallery, gate, error):
    with Batcher(gallery) as batcher:
        gate.error = error
        first = busy(batcher, gate)
        futures = [first, *(batcher.submit(text="a", id=f"{n:02}") for n in range(3))]
        gate.open.set()
        for future in futures:
            with pytest.raises(type(error), match=str(error)):
                future.result(20)
        gate.error = None
        assert batcher.submit(text="a", id="01").result(20)


def test_closing_answers_what_waits(gallery, gate):
    batcher = Batcher(gallery)
    futures = [busy(batcher, gate), *(batcher.submit(text="a", id=f"{n:02}") for n in range(5))]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(lambda: batcher._closed)
    with pytest.raises(UsageError, match="closed"):
        batcher.submit(text="a", id="01")
    gate.open.set()
    closing.join(20)
    assert all(future.result(0) for future in futures)
    batcher.close()  # a second time does no harm


def test_closing_without_draining_cancels_what_waits(gallery, gate):
    batcher = Batcher(gallery)
    first, second = busy(batcher, gate), batcher.submit(text="a", image=picture(1))
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    until(second.cancelled)
    gate.open.set()
    closing.join(20)
    assert first.result(0)  # its batch ran already


def test_closing_ends_its_threads(gallery):
    before = threading.active_count()
    with Batcher(gallery) as batcher:
        asyncio.run(batcher.search(text="a", id="01"))
        assert threading.active_count() > before
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"max_images": 1.5}, "max_images"),
        ({"max_pending": True}, "max_pending"),
        ({"max_wait": -1}, "max_wait"),
        ({"max_wait": 3000}, "max_wait"),
    ],
)
def test_limits_out_of_range(gallery, options, named):
    with pytest.raises(UsageError, match=named):
        Batcher(gallery, **options)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"text": "a"}, "exactly one"),
        ({"text": "a", "id": "01", "image": b""}, "exactly one"),
        ({"text": "a", "id": "01", "k": 0}, "k is 0"),
        ({"text": "a", "id": "01", "k": 1.0}, "k is 1.0"),
        ({"text": "a", "id": "01", "timeout": 0}, "timeout is 0"),
        ({"text": "a", "id": "01", "timeout": float("nan")}, "timeout is nan"),
        ({"text": "a", "id": "01", "timeout": "1"}, "timeout is '1'"),
        ({"text": "a", "id": "01", "where": {"shape": b"round"}}, "shape"),
        ({"text": "a", "id": "01", "where": "round"}, "where is"),
    ],
)
def test_queries_that_do_not_fit(gallery, query, named):
    with Batcher(gallery) as batcher, pytest.raises(UsageError, match=named):
        batcher.submit(**query)


def test_asyncio_answers(gallery):
    queries = mixed_queries()

    async def ask_all(batcher):
        return await asyncio.gather(*(batcher.search(**query) for query in queries))

    with Batcher(gallery) as batcher:
        for answer, query in zip(asyncio.run(ask_all(batcher)), queries, strict=True):
            assert_same(answer, gallery.search(**query))


def test_asyncio_decodes_elsewhere(gallery, monkeypatch):
    decoders, pixels = set(), Encoder.pixels

    def noted(encoder, image):
        decoders.add(threading.current_thread().name.rpartition("_")[0])
        return pixels(encoder, image)

    async def ask(batcher):
        await asyncio.gather(*(batcher.search(text="a", image=picture(n)) for n in range(4)))

    monkeypatch.setattr(Encoder, "pixels", noted)
    with Batcher(gallery) as batcher:
        asyncio.run(ask(batcher))
    assert decoders == {"dra-decoder"}


def test_asyncio_errors(gallery):
    async def ask(**query):
        with Batcher(gallery) as batcher:
            return await batcher.search(**query)

    for query, error in (
        ({"text": " ", "id": "01"}, TextError),
        ({"text": "a", "image": b"none"}, ImageError),
        ({"text": "a", "id": "nowhere"}, UnknownIdError),
        ({"text": "a"}, UsageError),
    ):
        with pytest.raises(error):
            asyncio.run(ask(**query))


def test_asyncio_loop_goes_on_and_cancelling_takes_the_query_back(gallery, gate):
    async def story():
        with Batcher(gallery, max_pending=2) as batcher:
            first = asyncio.create_task(batcher.search(text="a", id="00"))
            while not gate.sizes:  # the loop ticks while the batch waits at the gate
                await asyncio.sleep(0.001)
            second = asyncio.create_task(batcher.search(text="a", image=picture(1)))
            while batcher.pending < 2:
                await asyncio.sleep(0.001)
            with pytest.raises(OverloadedError):
                await batcher.search(text="a", id="01")
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert batcher.pending == 1
            third = asyncio.create_task(batcher.search(text="a", id="01"))
            gate.open.set()
            return await asyncio.gather(first, third)

    assert all(asyncio.run(story()))
    assert gate.sizes == [1, 1]
