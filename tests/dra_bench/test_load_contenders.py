import threading
from contextlib import ExitStack, nullcontext

import numpy as np
import pytest
import torch

from dra_bench.contenders.pytorch import pytorch_towers
from dra_bench.load.attempt import attempt
from dra_bench.load.contender import Contender, pool
from dra_bench.load.pytorch import pytorch_contenders, pytorch_search, with_shared_weights
from dra_bench.load.queries import K, builtin_material, load_queries, made_gallery
from dra_bench.load.run import Numbered, default_limits, timed
from dra_bench.load.runtime import batched, direct
from dra_bench.load.threads import bundle_turns, pytorch_turns
from dra_bench.load.turns import (
    PARTS,
    latency_rows,
    offline_turns,
    rate_rows,
    single_stream_turns,
    thread_counts,
    turn,
)
from dra_bench.timing import Timings, measure
from dra_runtime.encoder import Encoder
from dra_runtime.errors import ImageError, UnknownIdError
from dra_train.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def gallery(tiny_bundle):
    return made_gallery(Encoder.open(tiny_bundle, threads=2), builtin_material().pictures[:6], 40)


@pytest.fixture(scope="module")
def found(tiny_checkpoint, gallery):
    return pytorch_search(pytorch_towers(load_checkpoint(tiny_checkpoint).model), gallery)


@pytest.fixture(scope="module")
def contenders(gallery, found):
    name = "onnxruntime-cpu"
    return [direct(name, "fp32", gallery), batched(name, "fp32", gallery), *pytorch_contenders(found)]


@pytest.fixture(scope="module")
def queries(gallery):
    material = builtin_material()
    return {kind: load_queries(material, kind, gallery.ids)[:5] for kind in PARTS}


@pytest.fixture(scope="module")
def expected(gallery, queries):
    """Ids and scores as `Gallery.search` finds them, one query at a time."""
    return {
        kind: [[(hit.id, hit.score) for hit in gallery.search(text=q.text, id=q.id, image=q.image, k=K)] for q in asked]
        for kind, asked in queries.items()
    }


def pairs(hits):
    return [(hit.id, hit.score) if hasattr(hit, "id") else hit for hit in hits]


def assert_same(answers, expected):
    assert len(answers) == len(expected) > 0
    for hits, wanted in zip(answers, expected, strict=True):
        assert [score for _, score in pairs(hits)] == pytest.approx([score for _, score in wanted], abs=2e-5)
        assert {name for name, _ in pairs(hits)[:3]} == {name for name, _ in wanted[:3]}


def test_queries_are_by_id_or_new_and_never_both(queries):
    assert all(q.id is not None and q.image is None for q in queries["id"])
    assert all(q.id is None and q.image is not None for q in queries["new"])
    assert [q.text for q in queries["id"]] == [q.text for q in queries["new"]]
    assert len({q.text for q in queries["id"]}) > 1


def test_a_made_gallery_has_as_many_items_as_asked_and_they_differ(gallery):
    assert len(gallery) == 40
    assert len({tuple(row) for row in gallery.features(gallery.ids).round(4).tolist()}) == 40


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("kind", PARTS)
def test_all_contenders_answer_alike_in_batches(contenders, queries, expected, kind, size):
    for contender in contenders[:3]:
        with contender.batches(size) as answer_all:
            assert_same(answer_all(queries[kind]), expected[kind])


def test_all_contenders_answer_alike_as_a_service_and_end_their_threads(contenders, queries, expected):
    before = set(threading.enumerate())
    for contender in contenders:
        with contender.serve() as service:
            for kind, asked in queries.items():
                futures = [service.submit(query) for query in asked]
                assert_same([future.result(timeout=60) for future in futures], expected[kind])
            assert service.settled() or contender.backend.endswith("batcher")
            assert set(threading.enumerate()) > before
        assert set(threading.enumerate()) == before


def test_an_interrupt_ends_every_service(contenders, queries):
    before = set(threading.enumerate())
    for contender in contenders:
        with pytest.raises(KeyboardInterrupt), contender.serve() as service:
            _interrupted(service, queries["id"])
        assert set(threading.enumerate()) == before


def _interrupted(service, queries):
    calls = iter(range(1000))

    def sleep(seconds):
        if next(calls) == 3:
            raise KeyboardInterrupt
        threading.Event().wait(min(seconds, 0.01))

    moments = iter(range(10_000_000))
    attempt(Numbered(service, queries), 5.0, 50, 1e9, lambda: next(moments) / 1000, sleep)


def test_a_service_hands_errors_to_the_attempt(contenders, gallery, queries):
    bad = [queries["id"][0], type(queries["id"][0])("in red", image=b"no image")]
    gone = [type(queries["id"][0])("in red", id="not there")]
    clock, sleep = iter(range(10**9)), threading.Event().wait
    for contender in contenders[:2]:
        for asked, error in ((bad, ImageError), (gone, UnknownIdError)):
            with contender.serve() as service, pytest.raises(error):
                attempt(Numbered(service, asked), 1000.0, 50, 1e9, lambda: next(clock) / 1000, sleep)


def test_copies_of_the_model_share_its_weights(tiny_checkpoint):
    model = load_checkpoint(tiny_checkpoint).model
    shared = with_shared_weights(model)
    originals, copies = dict(model.named_modules()), dict(shared.named_modules())
    assert all(copies[name] is not module for name, module in originals.items())
    for (name, weight), (other, copied) in zip(model.named_parameters(), shared.named_parameters(), strict=True):
        assert (name, weight.data_ptr()) == (other, copied.data_ptr())


def test_pytorch_decodes_outside_of_its_lock(found, queries):
    class Lock(nullcontext):
        entered = False

        def __enter__(self):
            Lock.entered = True

    with pytest.raises(ImageError):
        found.answer([type(queries["new"][0])("in red", image=b"no image")], Lock())
    assert not Lock.entered
    found.answer(queries["new"][:1], Lock())
    assert Lock.entered


def test_a_planted_sleep_is_timed_and_offline_work_is_equal(contenders, queries):
    """On a clock that only sleep moves: one query takes 10 ms, of the planted contender 30."""
    now, asked = [0], []

    def slow(name, seconds):
        def answer_all(many):
            asked.append((name, len(many)))
            now[0] += int(seconds * 1e9) * len(many)

        return Contender(name, "", "fp32", None, lambda size: nullcontext(answer_all))

    both = [slow("fast", 0.01), slow("planted", 0.03)]
    with ExitStack() as stack:
        rows = {}
        for turns in (
            single_stream_turns(both, {"id": queries["id"]}, stack),
            offline_turns(both, {"id": queries["id"]}, (1, 4), stack),
        ):
            timings = measure([t.cell for t in turns], 11, 0.01, clock=lambda: now[0], sleep=lambda seconds: None)
            rows[len(turns)] = (latency_rows(turns, timings), rate_rows(turns, timings))
    single, offline = rows[2][0], rows[4][1]
    assert [(row["backend"], row["p50_ms"], row["p99_ms"], row["iqr_ms"]) for row in single] == [
        ("fast", 10.0, 10.0, 0.0),
        ("planted", 30.0, 30.0, 0.0),
    ]
    assert default_limits(single) == {"id": 90.0}
    assert [(r["backend"], r["batch"], r["queries_per_second"], r["low"], r["high"]) for r in offline] == [
        ("fast", 1, 100.0, 100.0, 100.0),
        ("fast", 4, 100.0, 100.0, 100.0),
        ("planted", 1, 33.33, 33.33, 33.33),
        ("planted", 4, 33.33, 33.33, 33.33),
    ]
    assert {count for _, count in asked} == {1, 4}  # one stream asks for one, every offline call for four


def test_rows_of_rates_carry_the_quartiles():
    one = turn("a", "new", (), 2, 1, lambda queries: None)
    samples = [[int(1e9 * seconds)] for seconds in (0.1, 0.2, 0.4, 0.5, 1.0)]
    (row,) = rate_rows([one], Timings((one.cell,), np.array(samples), 3, True))
    assert (row["queries_per_second"], row["low"], row["high"], row["samples"]) == (5.0, 4.0, 10.0, 5)


def test_threads_are_counted_in_powers_of_two_and_all():
    assert [thread_counts(most) for most in (1, 2, 3, 8, 12)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8),
        (1, 2, 4, 8, 12),
    ]


def test_threads_are_really_those_of_the_row(gallery, found, queries, monkeypatch):
    set_to, opened = [], []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    real = Encoder.open
    monkeypatch.setattr(
        Encoder, "open", lambda *a, threads, **k: opened.append(threads) or real(*a, threads=threads, **k)
    )
    with ExitStack() as stack:
        turns = [*bundle_turns("bundle", gallery, queries, stack), *pytorch_turns(found, {"id": queries["id"]})]
        for one in turns:
            one.cell.run()
    assert opened == [1]  # two threads are the gallery's own
    assert set_to == [1, 2]
    assert [(t.key["backend"], t.key["reference"], t.key["threads"], t.queries) for t in turns] == [
        ("bundle", "id", 1, 1),
        ("bundle", "new", 1, 1),
        ("bundle", "id", 2, 1),
        ("bundle, callers of 1 thread", "id", 2, 4),
        ("bundle", "new", 2, 1),
        ("bundle, callers of 1 thread", "new", 2, 4),
        ("pytorch-eager", "id", 1, 1),
        ("pytorch-eager", "id", 2, 1),
    ]


def test_a_pool_has_as_many_callers_as_asked():
    together = threading.Barrier(3)
    with pool(lambda query: together.wait(timeout=10), 3) as service:
        assert sorted(future.result() for future in [service.submit(None) for _ in range(3)]) == [0, 1, 2]


def test_calls_of_many_queries_are_planned_with_what_one_takes():
    one = turn("a", "id", (None,), 10, 1, lambda queries: None)
    alone = {("a", "id"): 1e6}  # 1 ms, so a call takes 10 ms and 7 fit into three quarters of 0.1 s
    assert len(timed([one], 0.1, lambda done, planned: None, alone).samples_ns) == 7
    assert len(timed([one], 0.001, lambda done, planned: None, alone).samples_ns) == 5
