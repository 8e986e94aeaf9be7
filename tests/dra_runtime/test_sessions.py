"""Which backend is chosen, and what is said where one can't be used, on made-up hosts."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fake_gpu import HOST, VERSIONS, write_engines

from dra_runtime import sessions
from dra_runtime.backends import onnxruntime_cuda
from dra_runtime.bundle import Bundle
from dra_runtime.encoder import Encoder
from dra_runtime.engine_host import Gpu
from dra_runtime.errors import BackendError
from dra_runtime.sessions import BACKENDS, GpuOptions, choose_backend, require_backend


def refusal(name, bundle, host=HOST):
    with pytest.raises(BackendError) as caught:
        require_backend(name, Bundle.open(bundle, integrity="size"), host)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def no_cuda_provider(monkeypatch):
    def fail():
        raise BackendError("the installed onnxruntime has no CUDA")

    monkeypatch.setattr(onnxruntime_cuda, "require_provider", fail)


@pytest.fixture
def opened(monkeypatch):
    """Names of the backends that were asked to open a graph; those in `broken` fail."""
    calls = []

    def open_session(backend, bundle, graph, threads, gpu, host):
        calls.append((backend, graph))
        if backend in broken:
            raise BackendError(f"{backend} is broken")
        return backend

    broken = set()
    monkeypatch.setattr(sessions, "open_session", open_session)
    return SimpleNamespace(calls=calls, broken=broken)


def test_auto_takes_the_fastest_that_works(bundle_copy, opened, monkeypatch):
    monkeypatch.setattr(onnxruntime_cuda, "require_provider", lambda: None)
    for library in ("tensorrt", "tensorrt-rtx"):
        write_engines(bundle_copy, library, key=library)
    bundle = Bundle.open(bundle_copy)
    for name in BACKENDS:
        chosen, ready = choose_backend("auto", bundle, 1, host=HOST)
        assert chosen == name
        assert ready == ({} if name == "onnxruntime-cpu" else {"compositor": name})
        opened.broken.add(name)
    assert [backend for backend, _ in opened.calls[-3:]] == list(BACKENDS[:-1])


@pytest.mark.parametrize("name", BACKENDS[:-1])
def test_a_backend_that_was_asked_for_is_never_replaced(name, bundle_copy, opened, monkeypatch):
    monkeypatch.setattr(onnxruntime_cuda, "require_provider", lambda: None)
    for library in ("tensorrt", "tensorrt-rtx"):
        write_engines(bundle_copy, library, key=library)
    opened.broken.add(name)
    with pytest.raises(BackendError, match=f"{name} is broken"):
        choose_backend(name, Bundle.open(bundle_copy), 1, host=HOST)
    assert opened.calls == [(name, "compositor")]


def test_without_a_gpu_auto_is_the_cpu_and_opens_nothing(bundle_path, opened):
    assert choose_backend("auto", Bundle.open(bundle_path), 1, host=replace(HOST, gpu=None)) == ("onnxruntime-cpu", {})
    assert opened.calls == []


def test_a_gpu_without_engines_and_without_onnxruntimes_cuda_leaves_the_cpu(bundle_path, no_cuda_provider):
    assert choose_backend("auto", Bundle.open(bundle_path), 1, host=HOST) == ("onnxruntime-cpu", {})


def test_an_unknown_name_is_told_the_known_ones(bundle_path):
    with pytest.raises(BackendError, match="'cuda' is no backend; give 'auto' or one of 'tensorrt', 'tensorrt-rtx'"):
        choose_backend("cuda", Bundle.open(bundle_path), 1)


@pytest.mark.parametrize("name", BACKENDS[:-1])
def test_without_a_gpu_one_line_says_so(name, bundle_path):
    said = refusal(name, bundle_path, replace(HOST, gpu=None))
    assert said.startswith(f"{name} needs a CUDA GPU, and none is here")
    assert "nvidia-smi" in said


@pytest.mark.parametrize("name", BACKENDS[:-1])
def test_int8_bundles_stay_on_the_cpu(name, bundle_copy):
    bundle = Bundle.open(bundle_copy)
    int8 = replace(bundle, manifest=replace(bundle.manifest, precision="int8"))
    with pytest.raises(BackendError, match="is an INT8 bundle, made for CPUs"):
        require_backend(name, int8, HOST)
    assert choose_backend("auto", int8, 1, host=HOST) == ("onnxruntime-cpu", {})


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_engines_that_do_not_fit_are_refused_with_what_to_do(library, bundle_copy):
    without = replace(HOST, libraries={})
    assert (
        refusal(library, bundle_copy, without)
        == f"{library} isn't installed here; pip install 'dra-toolkit[{library}]'"
    )
    build = f"dra-export engine {bundle_copy} --backend {library}"
    assert refusal(library, bundle_copy).endswith(f"holds no engines of {library}; build them: {build}")
    folder = write_engines(bundle_copy, library)
    require_backend(library, Bundle.open(bundle_copy), HOST)
    other = {"tensorrt": "tensorrt-rtx", "tensorrt-rtx": "tensorrt"}[library]
    assert f"holds no engines of {other}" in refusal(other, bundle_copy)
    newer = replace(HOST, libraries={library: "12.0.0.1"})
    assert f"built with {library} {VERSIONS[library]}, here is 12.0.0.1; build it again: {build}" in refusal(
        library, bundle_copy, newer
    )
    old = replace(HOST, gpu=Gpu("Old GPU", "7.0"))
    assert "here is Old GPU (compute capability 7.0); build it again" in refusal(library, bundle_copy, old)
    (folder / "reranker.plan").unlink()
    said = refusal(library, bundle_copy)
    assert f"{folder} has no engine of reranker, and the encoder needs one of every graph but query" in said
    assert f"{build} --graph reranker --min 1 --opt 4 --max 8" in said


def test_engines_of_another_bundle_are_refused(bundle_copy):
    write_engines(bundle_copy, "tensorrt", bundle_id="0" * 64)
    said = refusal("tensorrt", bundle_copy)
    assert "built from bundle 000000000000, not from" in said
    assert "build it again: dra-export engine" in said


def test_of_several_folders_the_one_for_this_gpu_is_taken(bundle_copy):
    from dra_runtime.backends.engines import engines_in
    from dra_runtime.engine_file import Target

    bundle = Bundle.open(bundle_copy)
    portable = write_engines(bundle_copy, "tensorrt-rtx", key="a-all", target=Target("linux-x86_64", (), None))
    write_engines(bundle_copy, "tensorrt-rtx", key="b-other", target=Target("linux-x86_64", ("12.0",), None))
    assert {plan.parent for plan in engines_in(bundle, "tensorrt-rtx", HOST).values()} == {portable}
    exact = write_engines(bundle_copy, "tensorrt-rtx", key="c-exact")
    found = engines_in(bundle, "tensorrt-rtx", HOST)
    assert {plan.parent for plan in found.values()} == {exact}
    assert set(found) == set(bundle.manifest.graphs)
    (exact / "compositor.plan.json").write_text("{}", encoding="utf-8")
    assert {plan.parent for plan in engines_in(bundle, "tensorrt-rtx", HOST).values()} == {portable}


def test_the_whole_encoder_runs_on_engines(bundle_copy, fake_gpu):
    """Chosen by itself, from the pixels to the query; the graph query is asked for and has no engine."""
    write_engines(bundle_copy, "tensorrt", leave=("query",))
    encoder = Encoder.open(bundle_copy, check=True, gpu=GpuOptions(contexts=1))
    assert encoder.backend == "tensorrt"
    assert {encoder.session(graph).backend for graph in ("image_encoder", "reranker")} == {"tensorrt"}
    cpu = Encoder.open(bundle_copy, "onnxruntime-cpu", threads=1)
    texts = [f"in {word} with {word}" for word in ("red", "green", "blue", "grey", "pink", "teal")] * 3
    np.testing.assert_allclose(encoder.encode_texts(texts), cpu.encode_texts(texts), rtol=2e-5, atol=2e-5)
    images = np.random.default_rng(0).integers(0, 256, (18, 20, 20, 3), np.uint8)
    np.testing.assert_allclose(
        encoder.encode_queries(images, texts), cpu.encode_queries(images, texts), rtol=2e-5, atol=2e-5
    )
    assert list(fake_gpu.cuda.handles.values()).count("stream") == 4  # a context of each graph
    with pytest.raises(BackendError, match=r"has no engine of query; build it: .*--graph query"):
        encoder.session("query")
    assert fake_gpu.cuda.faults == []


def test_a_library_that_fails_when_it_is_used_is_found_when_the_bundle_is_opened(
    bundle_copy, fake_gpu, no_cuda_provider
):
    write_engines(bundle_copy, "tensorrt")
    fake_gpu.cuda.failing["cudaSetDevice"] = 35
    with pytest.raises(BackendError, match="cudaSetDevice failed"):
        Encoder.open(bundle_copy, "tensorrt")
    assert Encoder.open(bundle_copy).backend == "onnxruntime-cpu"


def test_a_swapped_plan_is_found_when_the_bundle_is_opened(bundle_copy, fake_gpu):
    folder = write_engines(bundle_copy, "tensorrt")
    (folder / "compositor.plan").write_bytes(b"other")
    with pytest.raises(BackendError, match=r"compositor\.plan: 5 bytes where its sidecar says"):
        Encoder.open(bundle_copy, "tensorrt")


def test_choosing_the_cpu_looks_for_no_gpu(bundle_path, monkeypatch):
    from dra_runtime import engine_host

    monkeypatch.setattr(engine_host, "first_gpu", None)
    assert Encoder.open(bundle_path, "onnxruntime-cpu").backend == "onnxruntime-cpu"


def test_a_query_on_the_cpu_imports_no_library_of_a_gpu(bundle_path):
    import subprocess

    program = (
        f"import sys, dra_runtime as dra\n"
        f"dra.Encoder.open({str(bundle_path)!r}, 'onnxruntime-cpu').encode_texts('a')\n"
        "print([m for m in sys.modules if m.startswith(('cuda', 'tensorrt', 'dra_runtime.backends.t'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "tensorrt" not in result.stdout, result.stderr
    assert "cuda" not in result.stdout


def test_engines_that_bring_code_are_taken_by_name_alone(bundle_copy, fake_gpu, no_cuda_provider):
    from dra_runtime.engine_file import Target

    target = Target("linux-x86_64", ("8.9",), HOST.gpu.name, version_compatible=True)
    write_engines(bundle_copy, "tensorrt", target=target)
    assert Encoder.open(bundle_copy).backend == "onnxruntime-cpu"
    assert Encoder.open(bundle_copy, "tensorrt").backend == "tensorrt"


def test_a_folder_of_engines_that_is_a_link_is_not_followed(bundle_copy, tmp_path):
    write_engines(bundle_copy, "tensorrt")
    (bundle_copy / "engines").rename(tmp_path / "elsewhere")
    (bundle_copy / "engines").symlink_to(tmp_path / "elsewhere")
    assert "holds no engines of tensorrt" in refusal("tensorrt", bundle_copy)
