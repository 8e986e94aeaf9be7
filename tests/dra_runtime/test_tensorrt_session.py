"""TensorRT's session from end to end on a GPU of numpy (fake_gpu.py), against ONNX Runtime on the CPU."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bundle_factory import DIM, END, SIZE, TOKENS
from fake_gpu import write_engines

from dra_runtime.backends.tensorrt import open_tensorrt
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, EngineError, EngineIntegrityError, EngineMismatchError
from dra_runtime.sessions import GpuOptions

LIBRARIES = ("tensorrt", "tensorrt-rtx")


def inputs_of(graph, batch, length=9, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 400, (batch, length)).astype(np.int32)
    tokens[:, -1] = END
    made = {
        "image": rng.normal(size=(batch, 3, SIZE, SIZE)).astype(np.float32),
        "tokens": tokens,
        "image_features": rng.normal(size=(batch, DIM)).astype(np.float32),
        "text_features": rng.normal(size=(batch, DIM)).astype(np.float32),
        "reference_tokens": rng.normal(size=(batch, TOKENS, DIM)).astype(np.float32),
        "candidate_tokens": rng.normal(size=(batch, TOKENS, DIM)).astype(np.float32),
    }
    names = {
        "image_encoder": ["image"],
        "text_encoder": ["tokens"],
        "compositor": ["image_features", "text_features"],
        "reranker": ["reference_tokens", "candidate_tokens"],
        "query": ["image", "tokens"],
    }
    return {name: made[name] for name in names[graph]}


@pytest.fixture(scope="module")
def reference(bundle_path):
    return Encoder.open(bundle_path, "onnxruntime-cpu", threads=1)


def opened(bundle, library, graph, options=None, **engines):
    folder = write_engines(bundle, library, **engines)
    return open_tensorrt(folder / f"{graph}.plan", options)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("graphs", [0, 2])
def test_an_engine_gives_onnxruntimes_answers(library, graphs, bundle_copy, fake_gpu, reference):
    """Of every profile, beyond them, in an order that goes back and forth, with CUDA graphs and without."""
    folder = write_engines(bundle_copy, library, batches=((1, 1, 1), (2, 4, 6)))
    for graph in ("image_encoder", "text_encoder", "compositor", "reranker", "query"):
        session = open_tensorrt(folder / f"{graph}.plan", GpuOptions(contexts=1, graphs=graphs))
        assert session.backend == library
        for seed, (batch, length) in enumerate(
            [(1, 2), (6, 77), (1, 2), (13, 9), (1, 2), (6, 77), (6, 77), (7, 5), (0, 4)]
        ):
            inputs = inputs_of(graph, batch, length, seed)
            found, expected = session.run(inputs), reference.session(graph).run(inputs)
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                assert found[name].dtype == np.float32
                np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=2e-5)
        session.close()
    assert fake_gpu.cuda.faults == []
    assert fake_gpu.cuda.leaked == 0
    launches = fake_gpu.cuda.calls.count("cudaGraphLaunch")
    assert (launches > 0) == (library == "tensorrt" and graphs > 0)
    strategies = {getattr(c.how, "cuda_graph_strategy", None) for c in fake_gpu.libraries[library].contexts}
    assert strategies == {None if library == "tensorrt" else "whole graph" if graphs else "disabled"}


def test_results_are_the_callers_own(bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "compositor")
    first = session.run(inputs_of("compositor", 3, seed=1))["query"]
    kept = first.copy()
    session.run(inputs_of("compositor", 3, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_a_rows_answer_does_not_depend_on_where_the_batch_is_cut(bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "text_encoder", batches=((3, 4, 5),))
    inputs = inputs_of("text_encoder", 12)["tokens"]
    whole = session.run({"tokens": inputs})["text_features"]
    assert whole.shape == (12, DIM)
    for i in range(12):
        np.testing.assert_allclose(session.run({"tokens": inputs[i : i + 1]})["text_features"][0], whole[i], rtol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_sixteen_threads_get_the_serial_answers(library, bundle_copy, fake_gpu):
    session = opened(bundle_copy, library, "text_encoder", GpuOptions(contexts=3, graphs=2))
    inputs = [inputs_of("text_encoder", 1 + i % 5, 2 + i % 4, i) for i in range(64)]
    serial = [session.run(values)["text_features"] for values in inputs]
    with ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(lambda values: session.run(values)["text_features"], inputs))
    for ours, theirs in zip(parallel, serial, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert fake_gpu.cuda.faults == []
    assert list(fake_gpu.cuda.handles.values()).count("stream") == 3


def test_cuda_graphs_are_bounded_and_come_at_the_second_time(bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "text_encoder", GpuOptions(contexts=1, graphs=2))
    calls = fake_gpu.cuda.calls
    for length in (2, 3, 4, 5):
        session.run(inputs_of("text_encoder", 2, length))
    assert "cudaStreamBeginCapture" not in calls
    for length in (2, 3, 4, 5, 2, 3, 4, 5):
        session.run(inputs_of("text_encoder", 2, length))
    assert calls.count("cudaStreamBeginCapture") == 2
    assert calls.count("cudaGraphLaunch") == 2
    assert list(fake_gpu.cuda.handles.values()).count("executable") == 2


@pytest.mark.parametrize(
    "failing", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "capture"]
)
def test_what_cannot_be_captured_runs_without(failing, bundle_copy, fake_gpu, reference):
    session = opened(bundle_copy, "tensorrt", "compositor", GpuOptions(contexts=1))
    if failing == "capture":
        fake_gpu.libraries["tensorrt"].refuses.add("capture")
    else:
        fake_gpu.cuda.failing[failing] = 900
    inputs = inputs_of("compositor", 2)
    expected = reference.session("compositor").run(inputs)["query"]
    for _ in range(4):
        np.testing.assert_allclose(session.run(inputs)["query"], expected, rtol=2e-5, atol=2e-5)
    assert fake_gpu.cuda.calls.count("cudaStreamBeginCapture") == 1
    assert "cudaGraphLaunch" not in fake_gpu.cuda.calls


@pytest.mark.parametrize(
    "failing", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaSetDevice"]
)
def test_an_error_of_cuda_names_the_call_and_the_lane_comes_back(failing, bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "compositor", GpuOptions(contexts=1))
    fake_gpu.cuda.failing[failing] = 2
    for _ in range(2):  # the second would wait for ever if the first had kept the context
        with pytest.raises(
            BackendError, match=rf"^{failing} failed: out of memory \(CUDA error 2\); use fewer contexts"
        ):
            session.run(inputs_of("compositor", 1))
    fake_gpu.cuda.failing.clear()
    assert session.run(inputs_of("compositor", 1))["query"].shape == (1, DIM)
    session.close()
    assert (fake_gpu.cuda.faults, fake_gpu.cuda.leaked) == ([], 0)


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("execute_async_v3", r"compositor\.plan failed on .* \(no kernel\)"),
        ("create_execution_context", r"gets no execution context.*smaller --max"),
        ("set_optimization_profile_async", "has no optimization profile 0"),
        ("set_tensor_address", "refuses the address of image_features"),
        ("set_input_shape", r"refuses \(1, 8\) as the shape of image_features"),
    ],
)
def test_what_the_library_refuses_is_one_line(refused, said, bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "compositor", GpuOptions(contexts=1))
    fake_gpu.libraries["tensorrt"].refuses.add(refused)
    with pytest.raises(BackendError, match=said) as caught:
        session.run(inputs_of("compositor", 1))
    assert "\n" not in str(caught.value)
    assert not any(fake_gpu.cuda.queues.values())  # nothing is under way when the next caller comes
    fake_gpu.libraries["tensorrt"].refuses.clear()
    session.run(inputs_of("compositor", 1))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "tokens is missing; expected int32"),
        ({"tokens": np.zeros((1, 3), np.int64)}, "tokens is int64; expected int32"),
        ({"tokens": np.zeros((1, 78), np.int32)}, r"takes tokens from \(1, 2\) to \(8, 77\); build it with other"),
        ({"tokens": np.zeros((1,), np.int32)}, "tokens has the shape"),
    ],
)
def test_inputs_that_the_engine_does_not_take_are_refused(inputs, said, bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "text_encoder")
    with pytest.raises(BackendError, match=said):
        session.run(inputs)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensors": [["query", "OUTPUT", "FLOAT", [-1, DIM]]]}, "its tensors are"),
        (
            {
                "tensors": [
                    ["image_features", "INPUT", "HALF", [-1, DIM]],
                    ["text_features", "INPUT", "FLOAT", [-1, DIM]],
                    ["query", "OUTPUT", "FLOAT", [-1, DIM]],
                ]
            },
            "image_features is None",
        ),
        (
            {
                "tensors": [
                    ["image_features", "INPUT", "FLOAT", [-1, DIM]],
                    ["text_features", "INPUT", "FLOAT", [-1, DIM]],
                    ["query", "OUTPUT", "FLOAT", [-1, DIM + 1]],
                ]
            },
            r"query is float32 \(-1, 9\)",
        ),
        (
            {"profiles": [{n: [[1, 8], [1, 8], [99, 8]] for n in ("image_features", "text_features")}]},
            "profiles aren't",
        ),
    ],
)
def test_an_engine_that_is_not_its_sidecars_is_refused_before_it_runs(changes, said, bundle_copy, fake_gpu):
    fake_gpu.libraries["tensorrt"].changes = changes
    with pytest.raises(EngineMismatchError, match=rf"{said}.*build it again: dra-export engine") as caught:
        opened(bundle_copy, "tensorrt", "compositor")
    assert "\n" not in str(caught.value)


def test_an_output_of_another_shape_than_its_buffer_is_refused(bundle_copy, fake_gpu):
    fake_gpu.libraries["tensorrt"].changes = {"extra": 1}
    session = opened(bundle_copy, "tensorrt", "compositor")
    with pytest.raises(BackendError, match=r"would give query as \(2, 8\) where its sidecar says \(1, 8\)"):
        session.run(inputs_of("compositor", 1))


def test_the_plan_is_checked_before_the_library_sees_it(bundle_copy, fake_gpu, monkeypatch):
    folder = write_engines(bundle_copy, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # importing it would be another error
    plan = folder / "compositor.plan"
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(EngineIntegrityError):
        open_tensorrt(plan)


def test_a_plan_that_the_library_cannot_open_is_an_engine_error(bundle_copy, fake_gpu):
    from dataclasses import replace

    from dra_runtime.engine_file import read_sidecar, with_plan, write_sidecar

    plan = write_engines(bundle_copy, "tensorrt") / "compositor.plan"
    plan.write_bytes(b"no plan")
    write_sidecar(plan.parent, with_plan(replace(read_sidecar(plan)), plan))
    with pytest.raises(EngineError, match="can't open the plan \\(magic tag does not match\\)"):
        open_tensorrt(plan)


def test_only_version_compatible_plans_may_bring_code(bundle_copy, fake_gpu):
    from dataclasses import replace

    from dra_runtime.engine_file import read_sidecar, write_sidecar

    library, allowed = fake_gpu.libraries["tensorrt"], []
    deserialize = library.Runtime.deserialize_cuda_engine
    library.Runtime.deserialize_cuda_engine = lambda self, plan: (
        allowed.append(self.engine_host_code_allowed),
        deserialize(self, plan),
    )[1]
    plan = write_engines(bundle_copy, "tensorrt") / "compositor.plan"
    open_tensorrt(plan)
    sidecar = read_sidecar(plan)
    write_sidecar(plan.parent, replace(sidecar, target=replace(sidecar.target, version_compatible=True)))
    open_tensorrt(plan)
    assert allowed == [False, True]


def test_memory_goes_with_the_session_and_a_closed_one_refuses(bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "compositor")
    for _ in range(3):
        session.run(inputs_of("compositor", 2))
    assert fake_gpu.cuda.leaked > 0
    session.close()
    session.close()
    assert fake_gpu.cuda.leaked == 0
    with pytest.raises(BackendError, match="was closed"):
        session.run(inputs_of("compositor", 2))
    another = open_tensorrt(bundle_copy / "engines" / "key" / "compositor.plan")
    another.run(inputs_of("compositor", 2))
    del another
    gc.collect()
    assert (fake_gpu.cuda.faults, fake_gpu.cuda.leaked) == ([], 0)


def test_a_session_that_cannot_be_made_leaves_no_stream(bundle_copy, fake_gpu, monkeypatch):
    create, made = fake_gpu.cuda.cudaStreamCreateWithFlags, []

    def create_one(flags):
        made.append(flags)
        return create(flags) if len(made) == 1 else (2, None)

    monkeypatch.setattr(fake_gpu.cuda, "cudaStreamCreateWithFlags", create_one, raising=False)
    with pytest.raises(BackendError, match="cudaStreamCreateWithFlags failed: out of memory"):
        opened(bundle_copy, "tensorrt", "compositor", GpuOptions(contexts=2))
    assert len(made) == 2
    assert fake_gpu.cuda.leaked == 0


def test_errors_at_the_end_of_cuda_are_passed_over(bundle_copy, fake_gpu):
    session = opened(bundle_copy, "tensorrt", "compositor")
    session.run(inputs_of("compositor", 2))
    for name in ("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaStreamSynchronize"):
        fake_gpu.cuda.failing[name] = 4
    session.close()


def test_without_cuda_python_or_a_driver_one_line_says_what_to_do(bundle_copy, fake_gpu, monkeypatch):
    folder = write_engines(bundle_copy, "tensorrt")
    fake_gpu.cuda.failing["cudaSetDevice"] = 35
    with pytest.raises(
        BackendError, match=r"cudaSetDevice failed: CUDA driver version is insufficient.*install a newer"
    ):
        open_tensorrt(folder / "compositor.plan")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match=r"cuda-python can't be imported.*dra-toolkit\[tensorrt\]"):
        open_tensorrt(folder / "compositor.plan")


def test_the_real_cuda_python_has_what_is_called():
    cuda = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    source = (Path(open_tensorrt.__code__.co_filename).parent).glob("*.py")
    import re

    names = {name for path in source for name in re.findall(r'"(cuda[A-Z]\w+)"', path.read_text(encoding="utf-8"))}
    assert len(names) >= 15
    assert [name for name in names if not hasattr(cuda, name)] == []
    assert int(cuda.cudaStreamNonBlocking) == 1
    assert cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal is not None
    assert cuda.cudaGetErrorString(cuda.cudaError_t.cudaErrorMemoryAllocation)[1] == b"out of memory"


def test_the_real_tensorrt_rtx_has_what_is_called():
    trt = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    names = {
        trt.ICudaEngine: "num_io_tensors num_optimization_profiles get_tensor_name get_tensor_mode get_tensor_dtype "
        "get_tensor_shape get_tensor_profile_shape get_device_memory_size_for_profile_v2 create_execution_context "
        "create_runtime_config",
        trt.IExecutionContext: "set_optimization_profile_async set_device_memory set_tensor_address set_input_shape "
        "get_tensor_shape execute_async_v3",
        trt.IRuntimeConfig: "set_execution_context_allocation_strategy cuda_graph_strategy",
        trt.Runtime: "engine_host_code_allowed deserialize_cuda_engine",
        trt.ExecutionContextAllocationStrategy: "USER_MANAGED",
        trt.CudaGraphStrategy: "WHOLE_GRAPH_CAPTURE DISABLED",
        trt.DataType: "FLOAT INT32 UINT8",
        trt.TensorIOMode: "INPUT OUTPUT",
    }
    for owner, methods in names.items():
        assert [name for name in methods.split() if not hasattr(owner, name)] == [], owner


def test_at_the_end_of_a_process_memory_is_given_back_before_modules_go(bundle_copy):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import atexit, fake_gpu
cuda = fake_gpu.FakeCuda()
atexit.register(lambda: print(cuda.leaked, cuda.faults))
sys.modules["cuda.bindings.runtime"] = cuda
sys.modules["tensorrt"] = fake_gpu.FakeTensorRT("tensorrt", cuda)
from pathlib import Path
folder = fake_gpu.write_engines(Path({str(bundle_copy)!r}), "tensorrt")
from dra_runtime.backends.tensorrt import open_tensorrt
import numpy as np
session = open_tensorrt(folder / "compositor.plan", None, fake_gpu.HOST)
session.run({{name: np.ones((1, {DIM}), np.float32) for name in ("image_features", "text_features")}})
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("0 []\n", "")
