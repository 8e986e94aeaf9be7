"""The one seam where backends meet: a session runs a graph on numpy arrays. Which backend it is, is chosen here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from dra_runtime.bundle import Bundle
from dra_runtime.errors import BackendError, EngineError, UsageError
from dra_runtime.threads import available_threads

if TYPE_CHECKING:
    from dra_runtime.engine_host import Host

Array = npt.NDArray[Any]

AUTO = "auto"
ONNXRUNTIME_CPU, ONNXRUNTIME_CUDA = "onnxruntime-cpu", "onnxruntime-cuda"
ENGINE_BACKENDS = ("tensorrt", "tensorrt-rtx")
BACKENDS = (*ENGINE_BACKENDS, ONNXRUNTIME_CUDA, ONNXRUNTIME_CPU)  #: in the order in which "auto" tries them
FIRST_GRAPH = "compositor"  #: every query needs it, and it is small: opening it shows whether a backend works


class Session(Protocol):
    """An opened graph. Implementations may be run from many threads at once."""

    @property
    def backend(self) -> str:
        """Name the backend, such as ``onnxruntime-cpu``."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on its named inputs and return its named outputs.

        Raises
        ------
        BackendError
            The backend failed.
        """


@dataclass(frozen=True)
class GpuOptions:
    """How the backends that need a GPU use it; the CPU's ignores them.

    ``contexts`` is how many calls of one TensorRT engine run at once, each with memory and a stream of its own; further
    callers wait. ``graphs`` is how many shapes of a graph's inputs get a CUDA graph, in each context: the first that
    come a second time. 0: none.
    """

    contexts: int = 2
    graphs: int = 16

    def __post_init__(self) -> None:
        for name, value, least in (("contexts", self.contexts, 1), ("graphs", self.graphs, 0)):
            if type(value) is not int or not least <= value <= 1024:
                raise UsageError(f"{name} is {value!r}; give a whole number from {least} to 1024")


def choose_backend(
    name: str, bundle: Bundle, threads: int, gpu: GpuOptions | None = None, host: Host | None = None
) -> tuple[str, dict[str, Session]]:
    """Choose what runs a bundle here, and see that it does.

    A backend on the GPU has to open the bundle's compositor: a library that is installed may still lack another, or not
    fit the driver.

    Parameters
    ----------
    name
        A backend's name, or ``"auto"`` for the first of `BACKENDS` that works here; engines that bring code of their
        own, version-compatible ones, are taken by name only.
    bundle, threads, gpu
        What it shall run, and how.
    host
        Default: this machine.

    Returns
    -------
    str, dict
        The backend's name, and the sessions that are open already, by their graphs' names.

    Raises
    ------
    BackendError
        It doesn't work here. The line says why and what to do. Nothing else is used in its place.
    """
    if name not in (AUTO, *BACKENDS):
        raise BackendError(f"{name!r} is no backend; give 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    for candidate in BACKENDS if name == AUTO else (name,):
        try:
            require_backend(candidate, bundle, host)
            if name == AUTO and candidate in ENGINE_BACKENDS:
                from dra_runtime.backends.engines import require_no_code

                require_no_code(bundle, candidate, host)
            if candidate == ONNXRUNTIME_CPU:
                return candidate, {}
            return candidate, {FIRST_GRAPH: open_session(candidate, bundle, FIRST_GRAPH, threads, gpu, host)}
        except (BackendError, EngineError) as error:
            if name != AUTO:
                raise BackendError(str(error)) from error
            failure = error
    raise failure  # the CPU's, the last: without it none is installed


def require_backend(name: str, bundle: Bundle, host: Host | None = None) -> None:
    """Raise BackendError unless a backend can run a bundle on ``host``, as far as can be told without opening a graph.

    The GPU is asked for first: looking for libraries takes longer, and without one they are of no use.
    """
    if name == ONNXRUNTIME_CPU:
        if importlib.util.find_spec("onnxruntime") is None:
            raise BackendError(
                "no backend is installed: onnxruntime can't be imported; "
                'install one with: pip install "dra-toolkit[cpu]"'
            )
        return
    if bundle.manifest.precision == "int8":
        raise BackendError(f"{bundle.path} is an INT8 bundle, made for CPUs; for {name} use an fp16 or fp32 one")
    from dra_runtime.engine_host import first_gpu  # only where a GPU may be used: a cold start counts

    if (host.gpu if host else first_gpu()) is None:
        raise BackendError(
            f"{name} needs a CUDA GPU, and none is here; check NVIDIA's driver (nvidia-smi), or use {ONNXRUNTIME_CPU}"
        )
    if name == ONNXRUNTIME_CUDA:
        from dra_runtime.backends.onnxruntime_cuda import require_provider

        require_provider()
    else:
        from dra_runtime.backends.engines import engines_in

        engines_in(bundle, name, host)


def open_session(
    backend: str,
    bundle: Bundle,
    graph: str,
    threads: int,
    gpu: GpuOptions | None = None,
    host: Host | None = None,
) -> Session:
    """Open a graph of a bundle in a backend.

    Raises
    ------
    UsageError
        The bundle has no such graph.
    BackendError
        The backend can't open it; for TensorRT: it has no engine of it that runs here.
    EngineError
        The engine isn't what its sidecar says.
    """
    manifest, gpu = bundle.manifest, gpu or GpuOptions()
    spec = manifest.graphs.get(graph)
    if spec is None:
        raise UsageError(f"{bundle.path} has no {graph}; it has {', '.join(manifest.graphs)}")
    if backend in ENGINE_BACKENDS:
        from dra_runtime.backends.engines import engine_of
        from dra_runtime.backends.tensorrt import open_tensorrt

        return open_tensorrt(engine_of(bundle, backend, graph, host), gpu, host)
    path, half = bundle.file(spec.file), manifest.precision == "fp16"
    if backend == ONNXRUNTIME_CUDA:
        from dra_runtime.backends.onnxruntime_cuda import open_onnxruntime_cuda

        return open_onnxruntime_cuda(path, spec, half, gpu)
    from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu

    return open_onnxruntime_cpu(path, spec, threads, half)


def checked_threads(threads: int | None) -> int:
    """Return how many threads a session uses: as many as asked for, by default `available_threads`.

    Raises
    ------
    UsageError
        Not a whole number from 1 to 1024.
    """
    if threads is None:
        return available_threads()
    if type(threads) is not int or not 1 <= threads <= 1024:
        raise UsageError(f"threads is {threads!r}; give a whole number from 1 to 1024, or None for all that are free")
    return threads
