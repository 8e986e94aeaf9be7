"""After a fork, what another process opened is refused at once, and what may be shared works."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork")

# Each story runs in a process of its own: pytest's has threads, which must not be forked. The child answers on stdout;
# a hang is ended by the alarm and shows as a signal.
STORY = """
import os, signal, sys
import numpy as np
import dra_runtime as dra
from dra_runtime.batcher import Batcher

bundle, saved = sys.argv[1:]
encoder = dra.Encoder.open(bundle, threads=2)
pictures = {{name: np.full((9, 9, 3), 40 * n, np.uint8) for n, name in enumerate("abcd")}}
gallery = dra.Gallery.build(encoder, pictures)
gallery.save(saved)
gallery = dra.Gallery.open(saved, encoder)
expected = gallery.search(text="in red", id="a")
query = np.random.default_rng(0).normal(size=(600, encoder.dim)).astype(np.float32)
near = gallery.search_vectors(query)
{before}
child = os.fork()
if child == 0:
    signal.alarm(20)
    try:
{inside}
    except dra.DraError as error:
        print(type(error).__name__, error, flush=True)
    os._exit(0)
signal.alarm(30)
assert os.waitpid(child, 0)[1] == 0
assert gallery.search(text="in red", id="a") == expected  # the parent goes on
{after}
"""


def story(bundle_path, tmp_path, inside, before="", after=""):
    code = STORY.format(before=before, after=after, inside="\n".join(f"        {line}" for line in inside.splitlines()))
    # BLAS with threads of its own, whatever the tests run with
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle_path), str(tmp_path / "a.gallery")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_parent_opened_is_refused(bundle_path, tmp_path):
    before = """
fresh = dra.Encoder.open(bundle)  # no graph loaded yet
batcher = Batcher(gallery)
assert batcher.submit(text="in red", id="a").result() == expected
"""
    inside = """
for call in (
    lambda: encoder.encode_texts("in red"),
    lambda: encoder.encode_images(pictures["a"]),
    lambda: encoder.compose(query, query),
    lambda: fresh.encode_texts("in red"),
    lambda: gallery.search(text="in red", id="a"),
    lambda: gallery.add({"e": pictures["a"]}),
    lambda: gallery.remove(["a"]),
    lambda: gallery.build_index("flat"),
    lambda: batcher.submit(text="in red", id="a").result(),
    lambda: batcher.close(),
):
    try:
        call()
    except dra.BackendError as error:
        print(error, flush=True)
"""
    after = 'assert batcher.submit(text="in red", id="a").result() == expected\nbatcher.close()'
    said = story(bundle_path, tmp_path, inside, before, after).splitlines()
    assert [line.split(" was opened by process ")[0] for line in said] == [
        *["this encoder"] * 5,
        *["this gallery"] * 3,
        *["this batcher"] * 2,
    ]
    for line in said:
        assert line.endswith("open one in each worker, after the fork, or start workers by 'spawn'")


def test_a_worker_opens_its_own_and_shares_the_vectors(bundle_path, tmp_path):
    # The parent's vectors are a memory map, BLAS renews its threads after a fork, and faiss is asked for one thread
    before = 'indexed = dra.Gallery.open(saved, encoder)\nindexed.build_index("hnsw")\nindexed.search_vectors(query)'
    inside = """
assert indexed.search_vectors(query) == near
print(gallery.search_vectors(query) == near, len(gallery.features(["a"])), len(gallery))
mine = dra.Gallery.open(saved, dra.Encoder.open(bundle, threads=2))
print(mine.search(text="in red", id="a") == expected)
mine.add({"e": pictures["a"]})
with Batcher(mine) as batcher:
    print(batcher.submit(text="in red", id="a").result() == mine.search(text="in red", id="a"))
"""
    assert story(bundle_path, tmp_path, inside, before) == "True 1 4\nTrue\nTrue\n"


def test_starting_by_spawn_works(bundle_path, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, sys
import dra_runtime as dra

def answer(bundle):
    return dra.Encoder.open(bundle, threads=1).encode_texts("in red").tolist()

if __name__ == "__main__":
    encoder = dra.Encoder.open(sys.argv[1], threads=1)
    here = encoder.encode_texts("in red").tolist()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(answer, [sys.argv[1]]) == here)
"""
    )
    command = [sys.executable, str(program), str(bundle_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"
