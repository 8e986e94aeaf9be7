"""Memory while indexing doesn't grow with the number of images, apart from their names."""

import io
import tracemalloc

import bundle_factory
import numpy as np
import psutil
import pytest
from PIL import Image

from dra_runtime.encoder import Encoder
from dra_runtime.indexing import index_folder

FEW, MANY = 500, 5000
BLOCKS = (0, 20 * 2**20)  # bytes: while images stream, and while the file is written in blocks
NAMES = 1200  # bytes an image: its id, path, size, time and place, in Python's objects
KEPT = 640 * 4 + bundle_factory.TOKENS * 640 * 2  # bytes of an image's vector and tokens


def write_images(folder, numbers, prefix=""):
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(10):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG", compress_level=0)
        encoded.append(buffer.getvalue())
    for i in numbers:
        (folder / f"{prefix}{i:05}.png").write_bytes(encoded[i % 10])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Of a bundle whose vectors are long enough to be seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_factory, "DIM", 640)
        path = bundle_factory.write_bundle(tmp_path_factory.mktemp("wide") / "bundle")
    return Encoder.open(path, threads=2, integrity="size")


def memory_of(work):
    """Return bytes that Python and numpy held when all was encoded, their peak from then on, and the process's peak."""
    process, held, most = psutil.Process(), [0], [0]

    def progress(done, total):
        most.append(process.memory_full_info().uss)
        if done == total:
            held.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        work(progress)
        return held[-1], tracemalloc.get_traced_memory()[1], max(most)
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(encoder, tmp_path):
    few, many = tmp_path / "few", tmp_path / "many"
    few.mkdir()
    many.mkdir()
    write_images(few, range(FEW))
    write_images(many, range(MANY))
    index_folder(encoder, few, tmp_path / "warm", tokens=True)

    def measured(folder):
        return memory_of(lambda p: index_folder(encoder, folder, tmp_path / "g", tokens=True, progress=p))

    before, after = measured(few), measured(many)
    assert NAMES < KEPT / 7  # so vectors or tokens that stay would be seen
    for stage in (0, 1):
        assert after[stage] - before[stage] < (MANY - FEW) * NAMES + BLOCKS[stage]
    assert after[2] - before[2] < 24e6  # the pixels of all of them are 37 MB


@pytest.mark.slow
def test_sorting_a_resumed_run_takes_no_memory_either(encoder, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    write_images(folder, range(MANY))

    def stop(done, total):
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_folder(encoder, folder, tmp_path / "g", tokens=True, progress=stop)
    write_images(folder, range(3), prefix="!")  # before all others: every row moves
    _, peak, _ = memory_of(lambda p: index_folder(encoder, folder, tmp_path / "g", tokens=True, progress=p))
    assert peak < MANY * NAMES + BLOCKS[1] < MANY * KEPT
