"""Minutes of queries from eight threads, while the gallery changes and is saved: no wrong answer, nothing leaks.

pytest -m slow tests/dra_runtime/test_soak.py                        five minutes
DRA_SOAK_SECONDS=30 pytest -m slow tests/dra_runtime/test_soak.py    while you work on it
"""

import asyncio
import gc
import itertools
import os
import random
import sys
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import psutil
import pytest

from dra_runtime import Batcher, DeadlineError, Encoder, Gallery, ImageError, TextError, UnknownIdError

SECONDS = float(os.environ.get("DRA_SOAK_SECONDS", "300"))
GROWTH = 12e6  # bytes, between the medians of the first and the last quarter; 5 minutes' leak of 50 bytes a query
TEXTS = [
    "in red",
    "with dark skin",
    "as a woman",
    "the same person with a hat and much shorter hair, seen from the left",
]
BAD = [
    ({"text": " ", "id": "base000"}, TextError),
    ({"text": "in red", "image": b"no image"}, ImageError),
    ({"text": "in red", "id": "nowhere"}, UnknownIdError),
]


def key(hits):
    return tuple((hit.id, hit.rank, round(hit.score, 4), hit.metadata.get("parity")) for hit in hits)


class Questions:
    """Queries with all answers that they may get: one for each state of the gallery."""

    def __init__(self, encoder, base, groups, unseen):
        self.asked, self.states = [], [{}, *groups]
        for n in range(48):
            reference = {"image": unseen[n % len(unseen)]} if n % 3 == 0 else {"id": f"base{n % len(base):03}"}
            where = {"parity": "odd"} if n % 5 == 0 else None
            self.asked.append({"text": TEXTS[n % 4], "k": 1 + n % 12, "where": where, **reference})
        quiet = [Gallery.build(encoder, {**base, **state}, metadata=parity({**base, **state})) for state in self.states]
        self.by_state = [[key(gallery.search(**query)) for query in self.asked] for gallery in quiet]
        self.allowed = [set(answers) for answers in zip(*self.by_state, strict=True)]


def parity(names):
    return {name: {"parity": ("even", "odd")[int(name[-1]) % 2]} for name in names}


class Soak:
    def __init__(self, gallery, batcher, questions, path):
        self.gallery, self.batcher, self.questions, self.path = gallery, batcher, questions, path
        self.end = time.monotonic() + SECONDS
        self.counts = dict.fromkeys(("search", "submit", "asyncio", "refused", "given up", "changes", "saves"), 0)
        self.lock = threading.Lock()
        self.faults = []

    def note(self, what, count=1):
        with self.lock:
            self.counts[what] += count

    def going_on(self):
        return time.monotonic() < self.end and not self.faults

    def guarded(self, work, number):
        try:
            work(random.Random(number))
        except BaseException as fault:  # noqa: BLE001 - it ends the run and fails the test, in the test's own thread
            self.faults.append(fault)

    def check(self, n, hits):
        assert key(hits) in self.questions.allowed[n], (self.questions.asked[n], hits)

    def ask_directly(self, order):
        while self.going_on():
            n = order.randrange(len(self.questions.asked))
            self.check(n, self.gallery.search(**self.questions.asked[n]))
            self.note("search")
            self.ask_badly(order, self.gallery.search)

    def ask_batcher(self, order):
        while self.going_on():
            n = order.randrange(len(self.questions.asked))
            self.check(n, self.batcher.submit(**self.questions.asked[n], timeout=60).result(60))
            self.note("submit")
            self.ask_badly(order, lambda **query: self.batcher.submit(**query).result(60))

    def ask_badly(self, order, ask):
        if order.random() < 0.05:
            query, error = order.choice(BAD)
            with pytest.raises(error):
                ask(**query)
            self.note("refused")

    def ask_from_a_loop(self, order):
        async def ask(n):
            give_up = order.random()
            query = {**self.questions.asked[n], "timeout": 1e-5 if give_up < 0.1 else 60}
            task = asyncio.create_task(self.batcher.search(**query))
            if give_up > 0.9:
                await asyncio.sleep(0.002 * order.random())
                task.cancel()
            try:
                self.check(n, await task)
                self.note("asyncio")
            except (DeadlineError, asyncio.CancelledError, CancelledError):
                self.note("given up")

        async def ask_on():
            while self.going_on():
                await asyncio.gather(*(ask(order.randrange(len(self.questions.asked))) for _ in range(4)))

        asyncio.run(ask_on())

    def change(self, order):
        for turn in itertools.count():
            state = 1 + turn % (len(self.questions.states) - 1)
            guests = self.questions.states[state]
            self.gallery.add(guests, metadata=parity(guests))
            time.sleep(0.01 * order.random())
            if turn % 10 == 0:
                self.gallery.save(self.path)
                again = Gallery.open(self.path, self.gallery.encoder)
                n = order.randrange(len(self.questions.asked))
                assert key(again.search(**self.questions.asked[n])) == self.questions.by_state[state][n]
                self.note("saves")
            self.gallery.remove(guests)
            time.sleep(0.01 * order.random())
            self.note("changes", 2)
            if not self.going_on():
                return

    def run(self):
        """Run all, and return the process's memory in bytes, every half second."""
        process, memory = psutil.Process(), []
        work = [*[self.ask_directly] * 3, *[self.ask_batcher] * 3, self.ask_from_a_loop, self.change]
        threads = [threading.Thread(target=self.guarded, args=(w, n)) for n, w in enumerate(work)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            memory.append(process.memory_info().rss)
            assert time.monotonic() < self.end + 60, "a thread hangs"
        if self.faults:
            raise self.faults[0]
        return np.array(memory)


@pytest.mark.slow
def test_soak(tiny_bundle, emoji_images, tmp_path, capsys):
    pictures = [path.read_bytes() for path in emoji_images]
    base = {f"base{n:03}": pictures[n % 8] if n < 8 else noise(n) for n in range(60)}
    groups = [{f"guest{group}{n}": noise(1000 + 10 * group + n) for n in range(3)} for group in range(3)]
    alone = Encoder.open(tiny_bundle, threads=1)
    questions = Questions(alone, base, groups, pictures[8:])
    process = psutil.Process()

    encoder = Encoder.open(tiny_bundle, threads=2)
    gallery = Gallery.build(encoder, base, metadata=parity(base))
    gallery.search(text="in red", image=pictures[0])  # all graphs are loaded
    before = process.num_threads(), process.num_fds()
    with Batcher(gallery) as batcher:
        soak = Soak(gallery, batcher, questions, tmp_path / "soak.gallery")
        memory = soak.run()
        assert batcher.pending == 0
    gc.collect()
    after = process.num_threads(), process.num_fds()

    warm = memory[len(memory) // 5 :]
    quarter = max(1, len(warm) // 4)
    growth = float(np.median(warm[-quarter:]) - np.median(warm[:quarter]))
    queries = sum(soak.counts[way] for way in ("search", "submit", "asyncio"))
    report = (
        f"{queries} right answers in {SECONDS:.0f} s, {queries / SECONDS:.0f} a second; {soak.counts}; "
        f"memory {np.median(warm) / 1e6:.0f} MB, growth {growth / 1e6:+.1f} MB; threads and files {before} -> {after}"
    )
    with capsys.disabled():
        sys.stdout.write(f"\nsoak: {report}\n")
    assert growth < GROWTH
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert min(soak.counts.values()) > 0
    assert gallery.ids == tuple(base)
    assert list(tmp_path.iterdir()) == [tmp_path / "soak.gallery"]


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
