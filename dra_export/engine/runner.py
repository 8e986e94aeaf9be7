"""Run an engine on the GPU at hand, behind the runtime's `Session` protocol.

Written from the libraries' documentation for tensorrt 10.13, 11 and tensorrt_rtx, and so far never run: the machines
that it was written on have no GPU. `pytest -m gpu` runs it. For comparisons and measurements, not for services: calls
wait for one another.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dra_export.engine.tensorrt_api import Library, engine_from_plan, load_library
from dra_runtime.engine_file import EngineSidecar, Profile, check_plan
from dra_runtime.engine_host import this_host
from dra_runtime.errors import BackendError, EngineError, UsageError
from dra_runtime.sessions import Array, Session


def open_engine(plan: Path) -> Session:
    """Open the plan of an engine, once its sidecar, its bytes and this machine have been checked.

    Raises
    ------
    EngineError
        It can't run here; see `dra_runtime.engine_file.check_plan`.
    BackendError
        Its library can't be imported, or PyTorch sees no GPU.
    """
    host = this_host()
    sidecar = check_plan(plan, host)
    library = load_library(sidecar.library, host)
    if not torch.cuda.is_available():
        raise BackendError("PyTorch sees no GPU, and holds the engines' tensors there; install torch with CUDA")
    return _EngineSession(library, plan, sidecar)


def profile_for(profiles: tuple[Profile, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the first optimization profile that covers all shapes: the narrowest ones come first.

    Raises
    ------
    UsageError
        None does.
    """
    for index, profile in enumerate(profiles):
        ends = [(profile[name][0], shapes[name], profile[name][2]) for name in profile]
        if all(
            len(least) == len(shape) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))
            for least, shape, most in ends
        ):
            return index
    limits = {name: f"{profiles[-1][name][0]} to {profiles[-1][name][2]}" for name in profiles[-1]}
    raise UsageError(f"the engine was given {dict(shapes)}, and takes {limits}; build it with other --min and --max")


class _EngineSession:
    """An opened engine with one execution context for each profile; calls wait for one another."""

    def __init__(self, library: Library, plan: Path, sidecar: EngineSidecar) -> None:
        self._sidecar, self._name = sidecar, plan.name
        self._engine, self._keep = engine_from_plan(library, plan.read_bytes(), sidecar.target.version_compatible)
        self._stream = torch.cuda.Stream()
        self._contexts: dict[int, Any] = {}
        self._lock = threading.Lock()

    @property
    def backend(self) -> str:
        return self._sidecar.library

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {
            tensor.name: np.ascontiguousarray(inputs[tensor.name], tensor.dtype) for tensor in self._sidecar.inputs
        }
        index = profile_for(self._sidecar.profiles, {name: array.shape for name, array in arrays.items()})
        with self._lock, torch.cuda.stream(self._stream):
            context = self._context(index)
            held = {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}
            for name, tensor in held.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise BackendError(f"{self._name} refuses {tuple(tensor.shape)} as the shape of {name}")
            for output in self._sidecar.outputs:
                shape = tuple(context.get_tensor_shape(output.name))
                held[output.name] = torch.empty(shape, dtype=getattr(torch, output.dtype), device="cuda")
            for name, tensor in held.items():
                context.set_tensor_address(name, tensor.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise BackendError(f"{self._name} failed on {[array.shape for array in arrays.values()]}")
            self._stream.synchronize()
            return {output.name: held[output.name].cpu().numpy() for output in self._sidecar.outputs}

    def _context(self, profile: int) -> Any:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise EngineError(f"{self._name}: no memory for an execution context; build with a smaller --max")
            context.set_optimization_profile_async(profile, self._stream.cuda_stream)
            self._contexts[profile] = context
        return self._contexts[profile]
