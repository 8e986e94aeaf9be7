"""ONNX Runtime's CUDA session with a stand-in for the provider: ONNX Runtime on the CPU computes for it.

The stand-in captures as the real one does: the run of a new gpu_graph_id is kept, and later runs with that id compute
from the buffers that were bound then, whatever is bound now.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from bundle_factory import DIM, END

from dra_runtime.backends.onnxruntime_cuda import PROVIDER, open_onnxruntime_cuda, require_provider
from dra_runtime.bundle import Bundle
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError
from dra_runtime.sessions import GpuOptions

ort = pytest.importorskip("onnxruntime")


class Value:
    def __init__(self, shape, dtype):
        self.array = np.full(shape, 7, dtype)

    def update_inplace(self, array):
        assert (array.shape, array.dtype) == (self.array.shape, self.array.dtype)
        assert array.flags.c_contiguous
        self.array[...] = array

    def numpy(self):
        return self.array


class RunOptions:
    def __init__(self):
        self.entries = {}

    def add_run_config_entry(self, key, value):
        self.entries[key] = value


class FakeOnnxRuntime(ModuleType):
    """onnxruntime-gpu on a machine with CUDA; attributes say what is wrong with it."""

    def __init__(self):
        super().__init__("onnxruntime")
        fake = self
        self.__version__ = ort.__version__
        self.available = [PROVIDER, "CPUExecutionProvider"]
        self.given = [PROVIDER, "CPUExecutionProvider"]
        self.on_cpu = []  # (name, op type) of nodes that the CPU gets
        self.captures = True  # whether graphs can be captured
        self.printed, self.opened, self.runs = "", [], []
        self.SessionOptions, self.GraphOptimizationLevel = ort.SessionOptions, ort.GraphOptimizationLevel
        self.RunOptions = RunOptions
        self.OrtValue = SimpleNamespace(
            ortvalue_from_shape_and_type=lambda shape, dtype, device, number: Value(shape, dtype)
        )

        class InferenceSession:
            def __init__(self, path, options, providers, enable_fallback):
                assert enable_fallback == 0
                ((name, self.options),) = providers
                assert name == PROVIDER
                if self.options["enable_cuda_graph"] == "1" and not fake.captures:
                    raise RuntimeError("This session cannot use the graph capture feature")
                self.level = options.graph_optimization_level
                self.inner = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
                self.get_inputs, self.get_outputs = self.inner.get_inputs, self.inner.get_outputs
                self.graphs, self.inside, self.fallback = {}, threading.Lock(), True
                fake.opened.append(self)

            def disable_fallback(self):
                self.fallback = False

            def get_providers(self):
                return fake.given

            def get_provider_graph_assignment_info(self):
                nodes = [SimpleNamespace(name=name, op_type=op) for name, op in fake.on_cpu]
                return [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: nodes)]

            def io_binding(self):
                binding = SimpleNamespace(inputs={}, outputs={}, synchronize_outputs=lambda: None)
                binding.bind_ortvalue_input = binding.inputs.__setitem__
                binding.bind_ortvalue_output = binding.outputs.__setitem__
                return binding

            def run(self, names, inputs, options):
                number = options.entries["gpu_graph_id"] if options else None
                assert number == ("-1" if self.options["enable_cuda_graph"] == "1" else None)
                fake.runs.append(("run", number))
                return self.inner.run(names, inputs)

            def run_with_iobinding(self, binding, options):
                assert self.inside.acquire(blocking=False), "two threads in a session that captures"
                number = options.entries["gpu_graph_id"]
                assert int(number) >= 1
                fake.runs.append(("bound", number))
                bound = self.graphs.setdefault(number, binding)
                names = list(bound.outputs)
                inputs = {name: value.array for name, value in bound.inputs.items()}
                for name, array in zip(names, self.inner.run(names, inputs), strict=True):
                    bound.outputs[name].array[...] = array
                self.inside.release()

        self.InferenceSession = InferenceSession

    def get_available_providers(self):
        return self.available

    def preload_dlls(self):
        if self.printed:
            print(self.printed)  # noqa: T201


@pytest.fixture
def fake(monkeypatch):
    module = FakeOnnxRuntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


@pytest.fixture(scope="module")
def expected(bundle_path):
    session = Encoder.open(bundle_path, "onnxruntime-cpu", threads=1).session("text_encoder")
    return lambda tokens: session.run({"tokens": tokens})["text_features"]


def opened(bundle_path, graph="text_encoder", half=False, **options):
    bundle = Bundle.open(bundle_path, integrity="size")
    spec = bundle.manifest.graphs[graph]
    return open_onnxruntime_cuda(bundle.file(spec.file), spec, half, GpuOptions(**options))


def tokens_of(batch, length, seed=0):
    tokens = np.random.default_rng(seed).integers(1, 400, (batch, length)).astype(np.int32)
    tokens[:, -1] = END
    return tokens


@pytest.mark.parametrize("graphs", [0, 2])
def test_it_gives_the_cpus_answers_with_and_without_cuda_graphs(graphs, bundle_path, fake, expected):
    session = opened(bundle_path, graphs=graphs)
    assert session.backend == "onnxruntime-cuda"
    kept = []
    for seed in range(4):
        for batch, length in ((1, 5), (3, 9), (8, 77)):
            tokens = tokens_of(batch, length, seed)
            kept.append((session.run({"tokens": tokens})["text_features"], expected(tokens)))
    for ours, theirs in kept:  # results aren't overwritten by later runs
        np.testing.assert_array_equal(ours, theirs)
    bound = [number for kind, number in fake.runs if kind == "bound"]
    assert bound == (["1", "2"] * 3 if graphs else [])  # the first two shapes, from the second time on
    assert len(fake.opened) == 1


def test_sixteen_threads_get_the_serial_answers(bundle_path, fake, expected):
    session = opened(bundle_path)
    batches = [tokens_of(1 + i % 3, 4, i) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda tokens: session.run({"tokens": tokens})["text_features"], batches))
    for ours, tokens in zip(found, batches, strict=True):
        np.testing.assert_array_equal(ours, expected(tokens))


def test_it_computes_in_float32_and_half_graphs_at_the_safe_level(bundle_path, fake):
    opened(bundle_path)
    opened(bundle_path, half=True)
    exact, half = fake.opened
    assert (exact.options["use_tf32"], exact.options["device_id"], exact.fallback) == ("0", "0", False)
    assert exact.level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert half.level == ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED


def test_a_graph_that_cannot_be_captured_runs_without(bundle_path, fake, expected):
    fake.captures = False
    session, tokens = opened(bundle_path), tokens_of(2, 6)
    for _ in range(3):
        np.testing.assert_array_equal(session.run({"tokens": tokens})["text_features"], expected(tokens))
    assert fake.runs == [("run", None)] * 3
    assert fake.opened[0].options["enable_cuda_graph"] == "0"


def test_the_cpu_in_place_of_the_gpu_is_an_error(bundle_path, fake, capsys):
    fake.given, fake.printed = ["CPUExecutionProvider"], "Failed to load libcublasLt.so.13\nPlease follow"
    with pytest.raises(
        BackendError, match=r"would run it on the CPU.*dra-toolkit\[gpu\].*libcublasLt\.so\.13"
    ) as caught:
        opened(bundle_path)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_products_on_the_cpu_are_an_error_and_shapes_are_not(bundle_path, fake):
    fake.on_cpu = [("shape_1", "Shape"), ("range_2", "Range"), ("argmax_3", "ArgMax")]
    opened(bundle_path)
    fake.on_cpu.append(("visual/conv1", "Conv"))
    with pytest.raises(BackendError, match="gives 1 of its products to the CPU, such as visual/conv1"):
        opened(bundle_path)


def test_an_onnxruntime_without_cuda_says_what_to_install(bundle_path, fake, monkeypatch):
    fake.available = ["CPUExecutionProvider"]
    with pytest.raises(BackendError, match=r"has no CUDA; pip uninstall onnxruntime, then pip install"):
        require_provider()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r'onnxruntime can\'t be imported .*"dra-toolkit\[gpu\]"'):
        opened(bundle_path)


@pytest.mark.parametrize("graphs", [0, 2])
@pytest.mark.parametrize("inputs", [{"tokens": np.zeros((1, 3), np.int64)}, {"tokens": np.zeros(3, np.int32)}, {}])
def test_a_failing_run_is_one_line(inputs, graphs, bundle_path, fake):
    session = opened(bundle_path, graphs=graphs)
    for _ in range(3):
        with pytest.raises(BackendError) as caught:
            session.run(inputs)
        assert "\n" not in str(caught.value)


def test_inputs_of_any_layout_are_copied_as_what_they_show(bundle_path, fake):
    session = opened(bundle_path, "compositor")
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(2, DIM)).astype(np.float32) for name in ("image_features", "text_features")}
    first = session.run(inputs)["query"]
    for _ in range(3):
        views = {name: np.asfortranarray(array) for name, array in inputs.items()}
        np.testing.assert_array_equal(session.run(views)["query"], first)
