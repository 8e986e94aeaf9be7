"""Time on the GPU, told apart from the wall's: when a stream copied, and when it computed between.

The runtime's sessions make every CUDA call through a module that they are given. `WatchedCuda` stands in its place and
marks each copy with two CUDA events on the copy's own stream; what lies between the last copy to the GPU and the first
one back is computing. Marks would become a part of a captured CUDA graph, so a watched session runs without graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dra_runtime.backends.cuda_memory import call, quietly


@dataclass(frozen=True)
class DeviceTime:
    """What one call took on the GPU, in milliseconds, and what it copied, in bytes."""

    compute_ms: float
    to_gpu_ms: float
    to_host_ms: float
    to_gpu_bytes: int
    to_host_bytes: int


@dataclass(frozen=True)
class _Copy:
    """A copy: which way, how much, and the events around it."""

    to_gpu: bool
    size: int
    before: Any
    after: Any


class WatchedCuda:
    """CUDA's runtime module, with a mark before and after every copy. For one thread and one stream at a time."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._copies: list[_Copy] = []

    def __getattr__(self, name: str) -> Any:
        """Return everything else as it is."""
        return getattr(self._cuda, name)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> Any:
        """Copy between two events."""
        before = self._mark(stream)
        result = self._cuda.cudaMemcpyAsync(target, source, size, kind, stream)
        to_gpu = kind == self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copies.append(_Copy(to_gpu, size, before, self._mark(stream)))
        return result

    def take(self) -> DeviceTime:
        """Return what the calls since the last `take` did, once their stream has been waited for.

        BackendError where CUDA can't tell the times.
        """
        copies, self._copies = self._copies, []
        try:
            to_gpu, to_host = ([c for c in copies if c.to_gpu is way] for way in (True, False))
            compute = 0.0
            if to_gpu and to_host:
                compute = self._between(to_gpu[-1].after, to_host[0].before)
            return DeviceTime(
                compute,
                sum(self._between(c.before, c.after) for c in to_gpu),
                sum(self._between(c.before, c.after) for c in to_host),
                sum(c.size for c in to_gpu),
                sum(c.size for c in to_host),
            )
        finally:
            for copy in copies:
                quietly(self._cuda, "cudaEventDestroy", copy.before)
                quietly(self._cuda, "cudaEventDestroy", copy.after)

    def _mark(self, stream: Any) -> Any:
        event = call(self._cuda, "cudaEventCreate")
        call(self._cuda, "cudaEventRecord", event, stream)
        return event

    def _between(self, first: Any, second: Any) -> float:
        return float(call(self._cuda, "cudaEventElapsedTime", first, second))
