"""The GPU backends on a real GPU, against ONNX Runtime on the CPU: `pytest -m gpu`, which scripts/gpu runs.

TensorRT's engines are built by dra_export, so their parity stands in tests/dra_export/test_engine_gpu.py.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError
from dra_runtime.selfcheck import selfcheck
from dra_runtime.sessions import GpuOptions

pytestmark = pytest.mark.gpu

TEXTS = [f"in {colour} with {count} buttons" for colour in ("red", "blue", "grey") for count in range(6)]


@pytest.fixture(params=[0, 16], ids=["plain", "graphs"])
def encoder(request: pytest.FixtureRequest, tiny_bundle: Path) -> Encoder:
    try:
        return Encoder.open(tiny_bundle, "onnxruntime-cuda", gpu=GpuOptions(graphs=request.param))
    except BackendError as error:
        pytest.skip(str(error))


def test_onnxruntime_on_the_gpu_passes_the_selfcheck(encoder: Encoder) -> None:
    for _ in range(3):  # the first run, the one that captures, a replay
        assert selfcheck(encoder).passed


def test_onnxruntime_on_the_gpu_gives_the_cpus_vectors(encoder: Encoder, tiny_bundle: Path) -> None:
    cpu = Encoder.open(tiny_bundle, "onnxruntime-cpu")
    images = np.random.default_rng(0).integers(0, 256, (len(TEXTS), 40, 50, 3), np.uint8)
    expected = cpu.encode_queries(images, TEXTS)
    for _ in range(3):
        assert (encoder.encode_queries(images, TEXTS) * expected).sum(axis=1).min() > 0.9999


def test_sixteen_threads_get_the_serial_answers(encoder: Encoder) -> None:
    serial = [encoder.encode_texts(text) for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(encoder.encode_texts, TEXTS * 4))
    for ours, theirs in zip(found, serial * 4, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
