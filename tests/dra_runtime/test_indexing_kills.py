"""Kill -9 while a folder is indexed and while a gallery is saved: nothing committed is lost, every file opens."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery
from dra_runtime.indexing import index_folder
from dra_runtime.journal import journal_path

# The real command, with pauses where a kill shall find it: in the network, between the writes, before the rename
INDEX = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
from dra_runtime import journal
from dra_runtime.cli import main
from dra_runtime.encoder import Encoder

def slow(function, seconds):
    def slower(*arguments):
        time.sleep(seconds)
        return function(*arguments)
    return slower

Encoder.encode_pixels = slow(Encoder.encode_pixels, 0.003)
journal._write = slow(journal._write, 0.001)
os.fsync = slow(os.fsync, 0.01)
os.truncate = slow(os.truncate, 0.005)
main()
"""

# Adds an image and saves, and says what is saved: whatever it said must be there after a kill
SAVE = """
import sys, time
import numpy as np
from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery

bundle, path = sys.argv[1:]
encoder = Encoder.open(bundle, threads=1, integrity="size")
gallery = Gallery.open(path, encoder)
count = len(gallery)
while True:
    gallery.add({f"{count:05}": np.full((4, 4, 3), count % 200 + 1, np.uint8)})
    gallery.save(path)
    count += 1
    print(count, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few hundred small images, some of them damaged."""
    path = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for i in range(300):
        if i % 50 == 49:
            (path / f"{i:03}.png").write_bytes(b"no image")
        else:
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path / f"{i:03}.png", compress_level=0)
    return path


def start(code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def committed(journal: Path) -> int:
    """Return how many images the journal's whole lines name, read without the code under test."""
    try:
        lines = (journal / "images.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    batches = [json.loads(line.split(b" ", 1)[1]) for line in lines]
    return sum(len(batch["images"]) + len(batch["left_out"]) for batch in batches)


def kill_until_done(bundle, folder, out, kills, rng):
    """Start the command again and again, and kill it at random moments; the last one may finish.

    Returns how many kills met a run at work, and the largest number that a killed run had committed.
    """
    met = furthest = 0
    before = out.read_bytes()
    while met < kills:
        process = start(INDEX, "index", bundle, folder, "-o", out, "--integrity", "size")
        done = committed(journal_path(out))
        deadline = time.monotonic() + 60
        # Until it works: it then has resumed, and the journal is in use
        while process.poll() is None and committed(journal_path(out)) <= done and time.monotonic() < deadline:
            if done == 300:
                break  # nothing left to encode: kill it while it reads, sorts and saves
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3 if done == 300 else 0.03))
        process.kill()
        _, errors = process.communicate()
        now = committed(journal_path(out))
        if process.returncode == -signal.SIGKILL:
            met += 1
            assert now >= done or out.read_bytes() != before, "a committed image was lost"
            furthest = max(furthest, now)
        else:
            assert process.returncode == 0, errors
            now = 0
        if done:
            assert not errors or f"resuming: {done:,} of 300 done" in errors or process.returncode < 0
        assert_opens(out, bundle)
        if not journal_path(out).exists() and met < kills:  # it came through: begin another one
            shutil.copyfile(folder.parent / "older.gallery", out)
    process = start(INDEX, "index", bundle, folder, "-o", out, "--integrity", "size")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return met, furthest


def assert_opens(out, bundle):
    gallery = Gallery.open(out, Encoder.open(bundle, threads=1, integrity="size"))
    assert len(gallery) in (1, 294)


def run_kills(bundle_path, folder, tmp_path, kills, seed):
    encoder = Encoder.open(bundle_path, threads=1, integrity="size")
    index_folder(encoder, folder, tmp_path / "whole.gallery")
    older = Gallery.from_features(encoder, ["old"], np.ones((1, encoder.dim), np.float32))
    older.save(folder.parent / "older.gallery")
    out = tmp_path / "shop.gallery"
    older.save(out)
    met, furthest = kill_until_done(bundle_path, folder, out, kills, random.Random(seed))
    assert met == kills
    assert furthest > 0
    assert out.read_bytes() == (tmp_path / "whole.gallery").read_bytes()
    assert not journal_path(out).exists()


def test_a_few_kills_while_indexing(bundle_path, folder, tmp_path):
    run_kills(bundle_path, folder, tmp_path, 2, seed=0)


@pytest.mark.slow
def test_fifty_kills_while_indexing(bundle_path, folder, tmp_path):
    run_kills(bundle_path, folder, tmp_path, 50, seed=1)


def run_save_kills(bundle_path, tmp_path, kills, seed):
    rng = random.Random(seed)
    encoder = Encoder.open(bundle_path, threads=1, integrity="size")
    path = tmp_path / "saved.gallery"
    ids = [f"{i:05}" for i in range(2000)]
    Gallery.from_features(encoder, ids, np.random.default_rng(0).normal(size=(2000, encoder.dim))).save(path)
    for _ in range(kills):
        process = start(SAVE, bundle_path, path)
        first = process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        rest, errors = process.communicate()
        saved = [int(line) for line in (first + rest).split("\n") if line]
        assert saved, errors
        gallery = Gallery.open(path, encoder)  # checks its SHA-256
        assert len(gallery) in (saved[-1], saved[-1] + 1)  # the one that was saved but not yet said
        assert list(gallery.ids) == [f"{i:05}" for i in range(len(gallery))]


def test_a_kill_while_saving(bundle_path, tmp_path):
    run_save_kills(bundle_path, tmp_path, 1, seed=0)


@pytest.mark.slow
def test_fifty_kills_while_saving(bundle_path, tmp_path):
    run_save_kills(bundle_path, tmp_path, 50, seed=1)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_an_interrupted_run_says_how_to_go_on(bundle_path, folder, tmp_path, number, code):
    out = tmp_path / "shop.gallery"
    process = start(INDEX, "index", bundle_path, folder, "-o", out, "--integrity", "size")
    while process.poll() is None and committed(journal_path(out)) < 32:
        time.sleep(0.002)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    done = committed(journal_path(out))
    assert 32 <= done < 300
    assert errors == f"interrupted: {done} of 300 images are done; the same command goes on from there\n"
    assert not out.exists()
