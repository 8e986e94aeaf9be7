"""Sixteen threads share an encoder and a gallery that changes, and get the answers of one thread alone."""

import random
import sys
import threading
import time

import numpy as np
import pytest
from bundle_factory import SIZE

from dra_runtime import Batcher, Encoder, Gallery
from dra_runtime import encoder as encoder_module

THREADS, ROUNDS, TURNS = 16, 20, 4
TEXTS = ["in red", "with long sleeves", "the same but in green and with a much longer handle on its left side"]


@pytest.fixture(autouse=True)
def frequent_switches():
    """Let threads take turns a hundred times as often as usual: what can go wrong between two lines does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)


def pictures(names, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for name in names}


BASE = pictures([f"base{n:02}" for n in range(30)], 0)
GUESTS = [pictures([f"guest{group}{n}" for n in range(4)], group) for group in range(3)]
COLOURS = {name: {"colour": ("red", "blue")[n % 2]} for n, name in enumerate([*BASE, *(g for x in GUESTS for g in x)])}


def queries():
    """Return 30 queries of all kinds; no reference is a guest."""
    unseen = list(pictures([str(n) for n in range(6)], 99).values())
    for n in range(30):
        reference = {"image": unseen[n % 6]} if n % 3 == 0 else {"id": f"base{n:02}"}
        where = {"colour": "red"} if n % 4 == 0 else None
        yield {"text": TEXTS[n % 3], "k": 1 + n % 9, "where": where, **reference}


def key(hits):
    """Return what must be equal: ids, and scores but for the last bits that a batch changes."""
    return tuple((hit.id, hit.rank, round(hit.score, 5)) for hit in hits)


def run_all(*targets):
    """Run each in a thread of its own, and raise the first error of any."""
    faults = []

    def guarded(target):
        try:
            target()
        except BaseException as fault:  # noqa: BLE001 - it fails the test, in the test's own thread
            faults.append(fault)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if faults:
        raise faults[0]


@pytest.mark.parametrize("batched", [False, True])
def test_searches_while_images_are_added_and_removed(bundle_path, batched):
    # Guests come and go a group at a time, so the gallery is always in one of four states. What one thread alone gets
    # in these is golden: each answer must be one of the four, never a mixture.
    questions = list(queries())
    alone = Encoder.open(bundle_path, threads=1)
    golden = [set() for _ in questions]
    for guests in ({}, *GUESTS):
        names = [*BASE, *guests]
        quiet = Gallery.build(alone, {**BASE, **guests}, metadata={name: COLOURS[name] for name in names})
        for allowed, question in zip(golden, questions, strict=True):
            allowed.add(key(quiet.search(**question)))
    assert sum(len(allowed) > 1 for allowed in golden) > 20  # the guests do make a difference

    encoder = Encoder.open(bundle_path, threads=2)
    gallery = Gallery.build(encoder, BASE, metadata={name: COLOURS[name] for name in BASE})
    seen = [set() for _ in questions]
    answers, turns = [0] * THREADS, [0]

    def wait_for_answers():
        wanted = sum(answers) + 4 * THREADS
        while sum(answers) < wanted:
            time.sleep(0.0005)

    def change():
        for turns[0] in range(1, TURNS + 1):
            guests = GUESTS[turns[0] % 3]
            gallery.add(guests, metadata={name: COLOURS[name] for name in guests})
            wait_for_answers()
            gallery.remove(guests)
            wait_for_answers()
        turns[0] = TURNS + 1

    with Batcher(gallery, max_pending=THREADS) as batcher:

        def ask(number):
            order = random.Random(number)
            while answers[number] < ROUNDS or turns[0] <= TURNS:
                n = order.randrange(len(questions))
                hits = batcher.submit(**questions[n]).result(30) if batched else gallery.search(**questions[n])
                seen[n].add(key(hits))
                answers[number] += 1

        run_all(change, *(lambda n=n: ask(n) for n in range(THREADS)))
    for found, allowed in zip(seen, golden, strict=True):
        assert found <= allowed
    assert sum(len(found) > 1 for found in seen) > len(questions) // 4  # more than one state was met
    assert gallery.ids == tuple(BASE)


def test_sixteen_threads_encode_as_one_does(bundle_path):
    alone = Encoder.open(bundle_path, threads=1)
    images, texts = list(BASE.values()), [f"{TEXTS[n % 3]} {n}" for n in range(30)]
    golden = [alone.encode_queries(images[: 1 + n], texts[: 1 + n]) for n in range(THREADS)]
    shared = Encoder.open(bundle_path, threads=2)
    found = [None] * THREADS

    def work(number):
        for _ in range(5):
            found[number] = shared.encode_queries(images[: 1 + number], texts[: 1 + number])

    run_all(*(lambda n=n: work(n) for n in range(THREADS)))
    for ours, wanted in zip(found, golden, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-6)


def test_each_graph_is_loaded_once(bundle_path, monkeypatch):
    opened = []
    open_session = encoder_module.Encoder._open_session

    def counted(self, graph):
        opened.append(graph)
        return open_session(self, graph)

    monkeypatch.setattr(encoder_module.Encoder, "_open_session", counted)
    shared = Encoder.open(bundle_path, threads=1)
    start = threading.Barrier(THREADS)

    def work():
        start.wait(20)
        shared.encode_queries([next(iter(BASE.values()))], ["in red"])

    run_all(*([work] * THREADS))
    assert sorted(opened) == ["compositor", "image_encoder", "text_encoder"]
