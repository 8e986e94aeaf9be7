"""Memory and streams on the first GPU, by cuda-python. Every CUDA call of ours goes through `call`."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import BackendError

Bytes = npt.NDArray[np.uint8]


def load_cuda(extra: str) -> Any:
    """Import cuda-python's CUDA runtime and make the first GPU the calling thread's own.

    It is the first that CUDA shows: CUDA_VISIBLE_DEVICES chooses.

    Raises
    ------
    BackendError
        It isn't installed, or CUDA can't use the GPU.
    """
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendError(f"cuda-python can't be imported ({error}); pip install 'dra-toolkit[{extra}]'") from error
    use_first_gpu(cuda)
    return cuda


def use_first_gpu(cuda: Any) -> None:
    """Make the first GPU the calling thread's own: what it allocates and launches lands there."""
    call(cuda, "cudaSetDevice", 0)


def call(cuda: Any, name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its result, None where it has none.

    Raises
    ------
    BackendError
        CUDA reports an error.
    """
    code, *results = getattr(cuda, name)(*arguments)
    if int(code):
        _, text = cuda.cudaGetErrorString(code)
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        raise BackendError(f"{name} failed: {text} (CUDA error {int(code)}); {_advice(text)}")
    return results[0] if results else None


class Resources:
    """What was taken from CUDA, to be given back together. Not for several threads at once."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._held: list[tuple[str, Any]] = []  # the function that gives it back, and what it takes

    def stream(self) -> Any:
        """Make a stream that doesn't wait for CUDA's default stream, on which other libraries may work."""
        return self._keep("cudaStreamDestroy", call(self._cuda, "cudaStreamCreateWithFlags", _NON_BLOCKING))

    def device(self, size: int) -> int:
        """Return the address of ``size`` bytes on the GPU."""
        return int(self._keep("cudaFree", call(self._cuda, "cudaMalloc", max(1, size))))

    def pinned(self, size: int) -> Bytes:
        """Return ``size`` bytes of page-locked memory of the host, from which copies run without waiting.

        The array is gone when this is released.
        """
        address = self._keep("cudaFreeHost", call(self._cuda, "cudaHostAlloc", max(1, size), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    def executable(self, graph: Any) -> Any:
        """Make a captured CUDA graph executable; the graph itself is destroyed."""
        try:
            executable = call(self._cuda, "cudaGraphInstantiate", graph, 0)
        finally:
            quietly(self._cuda, "cudaGraphDestroy", graph)
        return self._keep("cudaGraphExecDestroy", executable)

    def release(self) -> None:
        """Give everything back, the last first; errors are passed over: at the end of a process CUDA may be gone."""
        while self._held:
            quietly(self._cuda, *self._held.pop())

    def _keep(self, given_back_by: str, handle: Any) -> Any:
        self._held.append((given_back_by, handle))
        return handle


def quietly(cuda: Any, name: str, *arguments: Any) -> None:
    """Call a function of the CUDA runtime where nobody could act on its error."""
    with contextlib.suppress(BackendError):
        call(cuda, name, *arguments)


_NON_BLOCKING = 1  # cudaStreamNonBlocking


def _advice(text: str) -> str:
    if "out of memory" in text:
        return "use fewer contexts, or build the engine with a smaller --max"
    if "driver" in text:
        return "install a newer NVIDIA driver, or the cuda-python of the driver's version"
    return "check the GPU with nvidia-smi"
