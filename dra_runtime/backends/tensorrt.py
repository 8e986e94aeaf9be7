"""TensorRT and TensorRT-RTX: an engine behind the `Session` protocol, run from many threads at once.

Written from the libraries' documentation for tensorrt 10.13, 11 and tensorrt_rtx 1.7. Every line runs in the tests
with stand-ins that compute in numpy; `pytest -m gpu` runs the real ones.

A session holds a pool of lanes. A lane is a stream and, for each optimization profile that it has run, a context, its
memory, and buffers for the profile's largest shapes. A call takes a lane, and nobody else touches it until the call's
results are copied.

CUDA graphs: tensorrt's are captured here. A context from which a graph was captured must not be changed any more, so
each graph has a context of its own; the contexts of one lane and profile share their memory, as they never run at once.
TensorRT-RTX compiles kernels for a shape while it runs, knows when they are there, and makes its graphs itself.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dra_runtime.backends.captures import Captures
from dra_runtime.backends.cuda_memory import Resources, call, load_cuda, quietly, use_first_gpu
from dra_runtime.backends.pool import Pool
from dra_runtime.backends.profiles import (
    Shape,
    batch_ranges,
    buffer_sizes,
    pieces_of,
    profile_for,
    shape_of,
    symbols_of,
)
from dra_runtime.backends.tensorrt_library import Library, engine_from_plan, first_error, import_library
from dra_runtime.engine_file import EngineSidecar, check_plan, rebuild_command
from dra_runtime.engine_host import TENSORRT_RTX, Host
from dra_runtime.errors import BackendError, EngineMismatchError
from dra_runtime.sessions import Array, GpuOptions, Session

_DTYPES = {"FLOAT": "float32", "INT32": "int32", "UINT8": "uint8"}


def open_tensorrt(
    plan: Path, gpu: GpuOptions | None = None, host: Host | None = None, watch: Callable[[Any], Any] | None = None
) -> Session:
    """Open the plan of an engine, once its sidecar, its bytes and the host have been checked.

    ``watch`` gets CUDA's runtime module and returns what is called in its place, to time what the engine does there.

    Raises
    ------
    EngineError
        It can't run here (see `dra_runtime.engine_file.check_plan`), or isn't what its sidecar says.
    BackendError
        A library is missing, or CUDA fails.
    """
    sidecar = check_plan(plan, host)
    library = import_library(sidecar.library)
    cuda = load_cuda(sidecar.library)
    if watch is not None:
        cuda = watch(cuda)
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine, keep = engine_from_plan(library, content, sidecar.target.version_compatible)
    _require_tensors(plan, sidecar, engine)
    return TensorRtSession(_Opened(plan, sidecar, library, cuda, engine, keep), gpu or GpuOptions())


class TensorRtSession:
    """An opened engine; see the module. Safe to share between threads."""

    def __init__(self, opened: _Opened, gpu: GpuOptions) -> None:
        self._opened = opened
        lanes: list[_Lane] = []
        try:
            for _ in range(gpu.contexts):
                lanes.append(_Lane(opened, gpu))
        except BackendError:
            for lane in lanes:
                lane.release()
            raise
        self._pool = Pool(lanes, _Lane.release)
        # At the end of the process it runs before modules are torn down
        self._finalizer = weakref.finalize(self, self._pool.close)

    @property
    def backend(self) -> str:
        """Name the backend."""
        return self._opened.sidecar.library

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the engine; a batch beyond its profiles is cut, one below them filled up with its last row.

        Raises
        ------
        BackendError
            The inputs aren't the engine's, or CUDA or the library failed.
        """
        opened, sidecar = self._opened, self._opened.sidecar
        arrays = {tensor.name: _checked(inputs, tensor.name, tensor.dtype) for tensor in sidecar.inputs}
        shapes = {name: array.shape for name, array in arrays.items()}
        symbols = symbols_of(sidecar.inputs, shapes)
        ranges = batch_ranges(sidecar.profiles, shapes)
        if not ranges:
            raise BackendError(
                f"{opened.name} was given {shapes}, and takes {_limits(sidecar)}; build it with other --min and --max"
            )
        results: dict[str, list[Array]] = {tensor.name: [] for tensor in sidecar.outputs}
        first = 0
        for rows, batch in pieces_of(len(arrays[sidecar.inputs[0].name]), ranges):
            piece = {name: _filled(array[first : first + rows], batch) for name, array in arrays.items()}
            with self._pool.take() as lane:
                for name, array in lane.run(piece).items():
                    results[name].append(array[:rows])
            first += rows
        return {
            tensor.name: _joined(results[tensor.name], shape_of(tensor, symbols), tensor.dtype)
            for tensor in sidecar.outputs
        }

    def close(self) -> None:
        """Give the GPU's memory back, as soon as calls under way have ended; later calls fail."""
        self._finalizer()


@dataclass(frozen=True)
class _Opened:
    """An engine with all that is needed to run it, shared by the lanes."""

    plan: Path
    sidecar: EngineSidecar
    library: Library
    cuda: Any
    engine: Any
    keep: Any  #: the runtime and the logger, which must live as long as the engine
    making: threading.Lock = field(default_factory=threading.Lock)  #: contexts are made one after the other

    @property
    def name(self) -> str:
        return self.plan.name

    def fail(self, what: str) -> BackendError:
        """Return an error that says what the library has said since the last one."""
        logger = self.keep[1]
        reason, logger.errors = first_error(logger), []
        return BackendError(f"{self.name} {what} ({reason})")


class _Lane:
    """A stream, and what runs on it: one slot for each profile that came up. Used by one thread at a time."""

    def __init__(self, opened: _Opened, gpu: GpuOptions) -> None:
        self._opened, self._gpu = opened, gpu
        self._resources = Resources(opened.cuda)
        self._stream = self._resources.stream()
        self._slots: dict[int, _Slot] = {}

    def run(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        cuda = self._opened.cuda
        use_first_gpu(cuda)
        try:
            slot = self._slot({name: array.shape for name, array in arrays.items()})
            slot.launch(arrays)
            call(cuda, "cudaStreamSynchronize", self._stream)
            return slot.results(arrays)
        except BaseException:
            # copies may be under way still, and the next caller writes into the same buffers
            quietly(cuda, "cudaStreamSynchronize", self._stream)
            raise

    def _slot(self, shapes: Mapping[str, Shape]) -> _Slot:
        index = profile_for(self._opened.sidecar.profiles, shapes)
        assert index is not None, "the batch was cut so that a profile covers it"
        if index not in self._slots:
            self._slots[index] = _Slot(self._opened, self._gpu, index, self._stream)
        return self._slots[index]

    def release(self) -> None:
        quietly(self._opened.cuda, "cudaStreamSynchronize", self._stream)
        for slot in self._slots.values():
            slot.release()
        self._slots.clear()
        self._resources.release()


class _Slot:
    """One optimization profile in one lane: a context, its memory, buffers for the largest shapes, CUDA graphs."""

    def __init__(self, opened: _Opened, gpu: GpuOptions, profile: int, stream: Any) -> None:
        self._opened, self._profile, self._stream = opened, profile, stream
        self._graphs: dict[tuple[Shape, ...], Any] = {}
        self._keep: list[Any] = []  # the contexts of the graphs
        self._internal_graphs = opened.library.name == TENSORRT_RTX and gpu.graphs > 0
        self._captures = Captures(0 if opened.library.name == TENSORRT_RTX else gpu.graphs)
        self._resources = Resources(opened.cuda)
        try:
            sidecar = opened.sidecar
            sizes = buffer_sizes(sidecar.inputs, sidecar.outputs, sidecar.profiles[profile])
            self._pinned = {name: self._resources.pinned(size) for name, size in sizes.items()}
            self._device = {name: self._resources.device(size) for name, size in sizes.items()}
            self._space = int(opened.engine.get_device_memory_size_for_profile_v2(profile))
            self._memory = self._resources.device(self._space)
            self._context: Any = self._new_context()
        except BaseException:
            self.release()
            raise

    def launch(self, arrays: Mapping[str, Array]) -> None:
        """Copy the inputs to the GPU, run, and copy the outputs back; the stream does it, nobody waits here."""
        for name, array in arrays.items():
            np.copyto(self._host(name, array.shape, array.dtype), array)
        shapes = tuple(array.shape for array in arrays.values())
        if not self._captures.choose(shapes):
            self._prepare(self._context, arrays)
            self._enqueue(self._context, arrays)
        elif shapes in self._graphs:
            call(self._opened.cuda, "cudaGraphLaunch", self._graphs[shapes], self._stream)
        else:
            self._capture(shapes, arrays)

    def results(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Return copies of the outputs, once the stream is done."""
        symbols = self._symbols(arrays)
        return {
            tensor.name: self._host(tensor.name, shape_of(tensor, symbols), tensor.dtype).copy()
            for tensor in self._opened.sidecar.outputs
        }

    def release(self) -> None:
        self._graphs.clear()
        self._keep.clear()
        self._context = None  # before its memory
        self._pinned, self._device = {}, {}
        self._resources.release()

    def _capture(self, shapes: tuple[Shape, ...], arrays: Mapping[str, Array]) -> None:
        """Run these shapes in a context of their own, and capture a second run, which isn't executed, as a graph."""
        cuda, context = self._opened.cuda, self._new_context()
        self._keep.append(context)  # also where the capture fails: the run before it is under way
        self._prepare(context, arrays)
        self._enqueue(context, arrays)  # a context does work at the first run of a shape that can't be captured
        # In this mode other threads may go on allocating
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            call(cuda, "cudaStreamBeginCapture", self._stream, mode)
            try:
                self._enqueue(context, arrays)
            except BackendError:
                quietly(cuda, "cudaStreamEndCapture", self._stream)
                raise
            graph = self._resources.executable(call(cuda, "cudaStreamEndCapture", self._stream))
        except BackendError:
            self._captures.stop()  # this engine can't be captured; it runs without, as this call did already
            self._graphs.clear()
            quietly(cuda, "cudaGetLastError")
            return
        self._graphs[shapes] = graph

    def _new_context(self) -> Any:
        opened, engine, trt = self._opened, self._opened.engine, self._opened.library.module
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        with opened.making:
            if opened.library.name == TENSORRT_RTX:
                config = engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(user_managed)
                strategies = trt.CudaGraphStrategy
                config.cuda_graph_strategy = (
                    strategies.WHOLE_GRAPH_CAPTURE if self._internal_graphs else strategies.DISABLED
                )
                context = engine.create_execution_context(config)
            else:
                context = engine.create_execution_context(user_managed)
        if context is None:
            raise opened.fail("gets no execution context; use fewer contexts, or build it with a smaller --max")
        if not context.set_optimization_profile_async(self._profile, int(self._stream)):
            raise opened.fail(f"has no optimization profile {self._profile}")
        call(opened.cuda, "cudaStreamSynchronize", self._stream)
        context.set_device_memory(self._memory, self._space)
        for name, address in self._device.items():
            if not context.set_tensor_address(name, address):
                raise opened.fail(f"refuses the address of {name}")
        return context

    def _prepare(self, context: Any, arrays: Mapping[str, Array]) -> None:
        for name, array in arrays.items():
            if not context.set_input_shape(name, array.shape):
                raise self._opened.fail(f"refuses {array.shape} as the shape of {name}")
        symbols = self._symbols(arrays)
        for tensor in self._opened.sidecar.outputs:
            found, stated = tuple(context.get_tensor_shape(tensor.name)), shape_of(tensor, symbols)
            if found != stated:  # the buffer is for what the sidecar says
                raise self._opened.fail(f"would give {tensor.name} as {found} where its sidecar says {stated}")

    def _enqueue(self, context: Any, arrays: Mapping[str, Array]) -> None:
        cuda, stream = self._opened.cuda, self._stream
        kinds = cuda.cudaMemcpyKind
        for name, array in arrays.items():
            source = self._pinned[name].ctypes.data
            to_gpu = (self._device[name], source, array.nbytes, kinds.cudaMemcpyHostToDevice)
            call(cuda, "cudaMemcpyAsync", *to_gpu, stream)
        if not context.execute_async_v3(int(stream)):
            raise self._opened.fail(f"failed on {[array.shape for array in arrays.values()]}")
        symbols = self._symbols(arrays)
        for tensor in self._opened.sidecar.outputs:
            target = self._host(tensor.name, shape_of(tensor, symbols), tensor.dtype)
            to_host = (target.ctypes.data, self._device[tensor.name], target.nbytes, kinds.cudaMemcpyDeviceToHost)
            call(cuda, "cudaMemcpyAsync", *to_host, stream)

    def _symbols(self, arrays: Mapping[str, Array]) -> dict[str, int]:
        return symbols_of(self._opened.sidecar.inputs, {name: array.shape for name, array in arrays.items()})

    def _host(self, name: str, shape: Shape, dtype: Any) -> Array:
        """Return the page-locked buffer of a tensor as an array of this shape."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        array: Array = self._pinned[name][:size].view(dtype).reshape(shape)
        return array


def _require_tensors(plan: Path, sidecar: EngineSidecar, engine: Any) -> None:
    """Require that the engine's tensors and profiles are those of its sidecar: buffers are made by what it says.

    A dimension of an output may be unknown to the engine as long as nothing runs; it is compared again at each run.
    """
    again = f"build it again: {rebuild_command(plan, sidecar)}"
    stated = {tensor.name: ("INPUT", tensor) for tensor in sidecar.inputs}
    stated |= {tensor.name: ("OUTPUT", tensor) for tensor in sidecar.outputs}
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    if sorted(names) != sorted(stated):
        raise EngineMismatchError(f"{plan}: its tensors are {names} where its sidecar says {list(stated)}; {again}")
    for name, (mode, tensor) in stated.items():
        shape = tuple(engine.get_tensor_shape(name))
        dtype = _DTYPES.get(engine.get_tensor_dtype(name).name)
        free = tuple(-1 if isinstance(size, str) else size for size in tensor.shape)
        fits = shape == free if mode == "INPUT" else _may_become(shape, free)
        if engine.get_tensor_mode(name).name != mode or dtype != tensor.dtype or not fits:
            raise EngineMismatchError(
                f"{plan}: {name} is {dtype} {shape} in it where its sidecar says {tensor.dtype} {tensor.shape}; {again}"
            )
    inputs = [tensor.name for tensor in sidecar.inputs]
    profiles = [
        {name: tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, i)) for name in inputs}
        for i in range(engine.num_optimization_profiles)
    ]
    if profiles != [{name: tuple(profile[name]) for name in inputs} for profile in sidecar.profiles]:
        raise EngineMismatchError(f"{plan}: its optimization profiles aren't those of its sidecar; {again}")


def _may_become(shape: Shape, stated: Shape) -> bool:
    return len(shape) == len(stated) and all(-1 in (a, b) or a == b for a, b in zip(shape, stated, strict=True))


def _checked(inputs: Mapping[str, Array], name: str, dtype: str) -> Array:
    array = inputs.get(name)
    if array is None or array.dtype != dtype:
        found = "is missing" if array is None else f"is {array.dtype}"
        raise BackendError(f"{name} {found}; expected {dtype}")
    return array


def _filled(array: Array, count: int) -> Array:
    """Return ``count`` rows: those of ``array``, and its last again and again."""
    return array if len(array) == count else np.concatenate([array, np.repeat(array[-1:], count - len(array), axis=0)])


def _joined(arrays: list[Array], shape: Shape, dtype: str) -> Array:
    if not arrays:
        return np.empty(shape, dtype)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _limits(sidecar: EngineSidecar) -> str:
    """Say in words what an engine takes."""
    ranges = {tensor.name: [profile[tensor.name] for profile in sidecar.profiles] for tensor in sidecar.inputs}
    return ", ".join(
        f"{name} from {min(least for least, _, _ in ends)} to {max(most for _, _, most in ends)}"
        for name, ends in ranges.items()
    )
