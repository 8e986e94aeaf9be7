"""Engines run: on a machine with a CUDA GPU, with whichever of the libraries are installed. `pytest -m gpu`."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dra_export.engine.build import EngineOptions, build_engines
from dra_export.engine.tensorrt_api import load_library
from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu
from dra_runtime.backends.tensorrt import open_tensorrt
from dra_runtime.bundle import Bundle
from dra_runtime.encoder import Encoder
from dra_runtime.engine_file import read_sidecar
from dra_runtime.engine_host import LIBRARIES, this_host
from dra_runtime.selfcheck import selfcheck
from dra_runtime.sessions import GpuOptions, Session

pytestmark = pytest.mark.gpu

HOST = this_host()
MAX_BATCH = 16


@pytest.fixture(scope="module", params=LIBRARIES)
def engines(request: pytest.FixtureRequest, tiny_half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny model's half bundle with engines for this GPU."""
    if HOST.gpu is None:
        pytest.skip("no CUDA GPU is here")
    if request.param not in HOST.libraries:
        pytest.skip(f"{request.param} isn't installed")
    path = shutil.copytree(tiny_half_bundle, tmp_path_factory.mktemp(request.param) / "bundle")
    bundle = Bundle.open(path)
    build_engines(bundle, load_library(request.param, HOST), HOST, EngineOptions(max_batch=MAX_BATCH))
    return bundle


def session_of(bundle: Bundle, graph: str, gpu: GpuOptions | None = None) -> Session:
    (plan,) = (bundle.path / "engines").glob(f"*/{graph}.plan")
    return open_tensorrt(plan, gpu)


def inputs_of(bundle: Bundle, graph: str, batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    made = {}
    for tensor in bundle.manifest.graphs[graph].inputs:
        shape = [size if isinstance(size, int) else batch if i == 0 else length for i, size in enumerate(tensor.shape)]
        if tensor.dtype == "int32":
            made[tensor.name] = generator.integers(1, 49406, shape, dtype=np.int32)
            made[tensor.name][:, -1] = bundle.manifest.tokenizer.end_token
        else:
            made[tensor.name] = generator.normal(size=shape).astype(np.float32)
    return made


@pytest.mark.parametrize("graphs", [0, 4])
@pytest.mark.parametrize("graph", ["image_encoder", "text_encoder", "compositor", "reranker", "query"])
def test_an_engine_gives_onnxruntimes_vectors(graph: str, graphs: int, engines: Bundle, tiny_bundle: Path) -> None:
    """Of the float32 bundle, at batch sizes and lengths of every profile, going back and forth; the third time of a
    shape is a CUDA graph's replay, which must take its inputs from this call."""
    reference = Bundle.open(tiny_bundle)
    spec = reference.manifest.graphs[graph]
    expected_of = open_onnxruntime_cpu(reference.file(spec.file), spec, 1)
    found_of = session_of(engines, graph, GpuOptions(contexts=1, graphs=graphs))
    shapes = [(1, 2), (MAX_BATCH, 77), (1, 12), (7, 16), (2, 77)]
    for seed, (batch, length) in enumerate(shapes * 4):
        inputs = inputs_of(reference, graph, batch, length, seed)
        expected, found = expected_of.run(inputs), found_of.run(inputs)
        assert found.keys() == expected.keys()
        for name in expected:
            ours, theirs = found[name].reshape(batch, -1), expected[name].reshape(batch, -1)
            lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
            assert ((ours * theirs).sum(axis=1) / lengths).min() >= 0.999, (name, batch, length)
            assert found[name].dtype == np.float32


@pytest.mark.parametrize("graphs", [0, 4])
def test_sixteen_threads_get_the_serial_answers(graphs: int, engines: Bundle) -> None:
    session = session_of(engines, "text_encoder", GpuOptions(contexts=3, graphs=graphs))
    inputs = [inputs_of(engines, "text_encoder", 1 + i % 5, 2 + i % 4, i) for i in range(96)]
    serial = [session.run(values)["text_features"] for values in inputs]
    with ThreadPoolExecutor(16) as pool:
        for ours, theirs in zip(pool.map(lambda v: session.run(v)["text_features"], inputs), serial, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_the_encoder_takes_the_engines_by_itself(engines: Bundle) -> None:
    (plan,) = (engines.path / "engines").glob("*/compositor.plan")
    library = read_sidecar(plan).library
    for backend in ("auto", library):
        encoder = Encoder.open(engines.path, backend)
        assert encoder.backend == library
        assert selfcheck(encoder).passed


def test_a_batch_beyond_the_profiles_is_cut(engines: Bundle) -> None:
    session, inputs = session_of(engines, "compositor"), inputs_of(engines, "compositor", 2 * MAX_BATCH + 1, 2)
    whole = session.run(inputs)["query"]
    for i in (0, MAX_BATCH, 2 * MAX_BATCH):
        alone = session.run({name: array[i : i + 1] for name, array in inputs.items()})["query"]
        np.testing.assert_allclose(whole[i : i + 1], alone, rtol=1e-3, atol=1e-3)


def test_the_inspector_finds_half_layers(engines: Bundle) -> None:
    for plan in (engines.path / "engines").glob("*/*.plan"):
        inspected = read_sidecar(plan).proof.inspected
        assert inspected is not None, plan.name
        assert inspected.half > 0
