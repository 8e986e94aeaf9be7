"""A GPU in numpy: as much of cuda-python and of TensorRT's Python interface as the runtime uses, and stricter.

Nothing that is put on a stream runs before somebody waits for the stream, so results that are read too early are wrong.
What a real GPU answers with silence or a crash is written down in `faults`: copies outside an allocation, memory given
back twice, a stream used by two threads at once, a context that was changed after its graph was captured, or captured
before it ran its shape once.
"""

from __future__ import annotations

import ctypes
import json
import threading
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from bundle_factory import Reference

from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import BuildOptions, EngineSidecar, Proof, Target, with_plan, write_sidecar
from dra_runtime.engine_host import TENSORRT, TENSORRT_RTX, Gpu, Host

GPU = Gpu("Test GPU", "8.9")
VERSIONS = {TENSORRT: "10.13.0.35", TENSORRT_RTX: "1.7.1.116"}
HOST = Host("linux-x86_64", GPU, VERSIONS)


class FakeCuda(ModuleType):
    """`cuda.bindings.runtime`; ``failing`` maps a function's name to the error code that it returns."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.lock = threading.RLock()
        self.failing: dict[str, int] = {}
        self.faults: list[str] = []
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.handles: dict[int, str] = {}  # streams, graphs, executables
        self.queues: dict[int, list[Any]] = {}
        self.owners: dict[int, int] = {}
        self.captured: dict[int, list[Any]] = {}  # by stream, while it captures
        self.graphs: dict[int, list[Any]] = {}
        self.next = 1
        self.cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        for name in ("cudaMalloc", "cudaHostAlloc"):
            setattr(self, name, self._counted(name, self._allocate))
        for name in ("cudaFree", "cudaFreeHost"):
            setattr(self, name, self._counted(name, self._free))
        for name in [name for name in dir(type(self)) if name.startswith("_cuda")]:
            setattr(self, name[1:], self._counted(name[1:], getattr(self, name)))

    def _counted(self, name: str, function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            with self.lock:
                self.calls.append(name)
                if name in self.failing:
                    if name == "cudaStreamEndCapture":  # a capture that was broken ends all the same
                        self.captured.clear()
                    return (self.failing[name], None)
                result = function(*arguments)
                return (0,) if result is None else (0, result)

        return called

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory", 35: b"CUDA driver version is insufficient"}.get(code, b"some error")

    def _cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def _cudaGetLastError(self) -> None:
        pass

    def _allocate(self, size: int, flags: int = 0) -> int:
        array = np.full(size, 0xCD, np.uint8)
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def _free(self, address: int) -> None:
        if self.memory.pop(address, None) is None:
            self.faults.append("memory given back twice")

    def _handle(self, kind: str) -> int:
        self.next += 1
        self.handles[self.next] = kind
        return self.next

    def _destroy(self, handle: int, kind: str) -> None:
        if self.handles.pop(handle, None) != kind:
            self.faults.append(f"no such {kind}")

    def _cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == 1
        stream = self._handle("stream")
        self.queues[stream] = []
        return stream

    def _cudaStreamDestroy(self, stream: int) -> None:
        self._destroy(stream, "stream")

    def enqueue(self, stream: int, operation: Any) -> None:
        if stream in self.captured:
            self.captured[stream].append(operation)
            return
        if self.owners.setdefault(stream, threading.get_ident()) != threading.get_ident():
            self.faults.append("two threads on one stream")
        self.queues[stream].append(operation)

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        def copy() -> None:
            if self.inside(target, size) and self.inside(source, size):
                ctypes.memmove(target, source, size)
            else:
                self.faults.append("copy outside an allocation")

        self.enqueue(stream, copy)

    def inside(self, address: int, size: int) -> bool:
        return any(start <= address and address + size <= start + len(a) for start, a in self.memory.items())

    def _cudaStreamSynchronize(self, stream: int) -> None:
        assert stream not in self.captured, "waiting is forbidden while a stream captures"
        operations, self.queues[stream] = self.queues[stream], []
        for operation in operations:
            operation()
        self.owners.pop(stream, None)

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        assert mode == 1
        self.captured[stream] = []

    def _cudaStreamEndCapture(self, stream: int) -> int:
        graph = self._handle("graph")
        self.graphs[graph] = self.captured.pop(stream)
        return graph

    def _cudaGraphInstantiate(self, graph: int, flags: int) -> int:
        executable = self._handle("executable")
        self.graphs[executable] = self.graphs[graph]
        return executable

    def _cudaGraphDestroy(self, graph: int) -> None:
        self._destroy(graph, "graph")

    def _cudaGraphExecDestroy(self, executable: int) -> None:
        self._destroy(executable, "executable")

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:
        for operation in self.graphs[executable]:
            self.enqueue(stream, operation)

    @property
    def leaked(self) -> int:
        return len(self.memory) + len(self.handles)


class FakeTensorRT(ModuleType):
    """`tensorrt` or `tensorrt_rtx`; a plan is JSON from `write_engines`. ``changes`` alters what engines say."""

    def __init__(self, name: str, cuda: FakeCuda) -> None:
        super().__init__(name)
        fake = self
        self.__version__ = VERSIONS[name.replace("_", "-")]
        self.cuda, self.contexts, self.changes, self.delay = cuda, [], {}, 0.0
        self.refuses: set[str] = set()  # methods of a context that return False
        self.ILogger = type("ILogger", (), {"__init__": lambda self: None})
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        if name == "tensorrt_rtx":
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph", DISABLED="disabled")

        class Runtime:
            engine_host_code_allowed = False

            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def deserialize_cuda_engine(self, plan: Any) -> Any:
                content = bytes(plan[:])
                if not content.startswith(b"{"):
                    self.logger.log(SimpleNamespace(name="ERROR"), "magic tag\ndoes not match")
                    return None
                return FakeEngine(fake, json.loads(content) | fake.changes, self)

        self.Runtime = Runtime


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, plan: dict[str, Any], runtime: Any) -> None:
        self.trt, self.plan, self.logger = trt, plan, runtime.logger
        self.tensors = {name: (mode, dtype, tuple(shape)) for name, mode, dtype, shape in plan["tensors"]}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(plan["profiles"])

    def get_tensor_name(self, i: int) -> str:
        return list(self.tensors)[i]

    def get_tensor_mode(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.tensors[name][1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][2]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return self.plan["profiles"][index][name]

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        return 1000 * (index + 1)

    def create_runtime_config(self) -> Any:
        assert self.trt.__name__ == "tensorrt_rtx"
        return FakeConfig()

    def create_execution_context(self, how: Any) -> Any:
        if self.trt.__name__ == "tensorrt_rtx":
            assert (how.strategy, how.cuda_graph_strategy in ("whole graph", "disabled")) == ("user managed", True)
        else:
            assert how == "user managed"
        if "create_execution_context" in self.trt.refuses:
            return None
        context = FakeContext(self, how)
        self.trt.contexts.append(context)
        return context


class FakeConfig:
    cuda_graph_strategy = "disabled"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


class FakeContext:
    def __init__(self, engine: FakeEngine, how: Any) -> None:
        self.engine, self.trt, self.how = engine, engine.trt, how
        self.profile, self.memory, self.addresses, self.shapes = -1, (0, 0), {}, {}
        self.ran: dict[str, Any] | None = None  # the shapes of the last plain run
        self.captured = False

    def _changed(self, name: str) -> bool:
        if self.captured:
            self.trt.cuda.faults.append("a context was changed after its capture")
        return name not in self.trt.refuses

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile, self.shapes = index, {}
        return self._changed("set_optimization_profile_async")

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == self.engine.get_device_memory_size_for_profile_v2(self.profile)
        assert self.trt.cuda.inside(address, size)
        self._changed("set_device_memory")
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self._changed("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.plan["profiles"][self.profile][name]
        inside = all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
        self.shapes[name] = tuple(shape)
        return self._changed("set_input_shape") and inside

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        batch = next(iter(self.shapes.values()))[0] + self.engine.plan.get("extra", 0)
        return tuple(batch if size == -1 else size for size in self.engine.tensors[name][2])

    def execute_async_v3(self, stream: int) -> bool:
        cuda, engine, shapes = self.trt.cuda, self.engine, dict(self.shapes)
        if "execute_async_v3" in self.trt.refuses:
            engine.logger.log(SimpleNamespace(name="ERROR"), "no kernel")
            return False
        assert self.memory[0]
        assert set(self.addresses) == set(engine.tensors)
        if stream in cuda.captured:
            if "capture" in self.trt.refuses:
                return False
            if self.ran != shapes:
                cuda.faults.append("captured before its shape ran once")
            self.captured = True
        else:
            self.ran = shapes

        def compute() -> None:
            time.sleep(self.trt.delay)
            inputs = {}
            for name, shape in shapes.items():
                dtype = np.dtype({"FLOAT": "f4", "INT32": "i4"}[engine.tensors[name][1]])
                size = int(np.prod(shape)) * dtype.itemsize
                inputs[name] = np.frombuffer(ctypes.string_at(self.addresses[name], size), dtype).reshape(shape)
            for name, array in outputs_of(engine.plan["graph"], inputs).items():
                data = np.ascontiguousarray(array, np.float32)
                if cuda.inside(self.addresses[name], data.nbytes):
                    ctypes.memmove(self.addresses[name], data.ctypes.data, data.nbytes)
                else:
                    cuda.faults.append("an output outside its buffer")

        cuda.enqueue(stream, compute)
        return True


def outputs_of(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute what a graph of the tests' bundle gives, from its formulas."""
    model = Reference(0)
    if graph == "image_encoder":
        features, tokens = model.image(inputs["image"])
        return {"image_features": features, "image_tokens": tokens}
    if graph == "text_encoder":
        return {"text_features": model.text(inputs["tokens"])}
    if graph == "compositor":
        return {"query": model.compose(inputs["image_features"], inputs["text_features"])}
    if graph == "reranker":
        return {"relation_features": model.relate(inputs["reference_tokens"], inputs["candidate_tokens"])}
    return {"query": model.compose(model.image(inputs["image"])[0], model.text(inputs["tokens"]))}


def write_engines(
    bundle: Any, library: str, key: str = "key", batches: Any = ((1, 1, 1), (1, 4, 8)), leave: Any = (), **changes: Any
) -> Any:
    """Write engines of all graphs but ``leave`` that `FakeTensorRT` opens; ``changes`` are of the sidecars."""
    manifest = Bundle.open(bundle).manifest
    folder = bundle / "engines" / key
    folder.mkdir(parents=True)
    for name in manifest.graphs:
        if name in leave:
            continue
        spec = manifest.graphs[name]
        profiles = tuple(
            {
                t.name: tuple(
                    tuple({"batch": batch, "length": length}.get(size, size) for size in t.shape)
                    for batch, length in zip(sizes, (2, 16, 77), strict=True)
                )
                for t in spec.inputs
            }
            for sizes in batches
        )
        dtypes = {"float32": "FLOAT", "int32": "INT32"}
        tensors = [
            (t.name, mode, dtypes[t.dtype], [-1 if isinstance(size, str) else size for size in t.shape])
            for mode, side in (("INPUT", spec.inputs), ("OUTPUT", spec.outputs))
            for t in side
        ]
        plan = folder / f"{name}.plan"
        plan.write_text(json.dumps({"graph": name, "tensors": tensors, "profiles": profiles}), encoding="utf-8")
        sidecar = EngineSidecar(
            graph=name, bundle_id=manifest.bundle_id, onnx_sha256=manifest.files[spec.file].sha256, plan="",
            plan_sha256="", plan_size=0, library=library, library_version=VERSIONS[library],
            target=Target("linux-x86_64", ("8.9",), GPU.name if library == TENSORRT else None), precision="fp32",
            proof=Proof(0, 9, 0, 3), profiles=profiles, inputs=spec.inputs, outputs=spec.outputs,
            build=BuildOptions(1, 4, 8), versions={},
        )  # fmt: skip
        write_sidecar(folder, replace(with_plan(sidecar, plan), **changes))
    return folder
