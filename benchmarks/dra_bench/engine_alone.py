"""A TensorRT plan alone: what its sidecar says, inputs made from its profiles, and its times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dra_bench.device_time import DeviceTime, WatchedCuda
from dra_bench.figures import milliseconds, percent
from dra_bench.timing import Cell, Timings, percentiles_ms
from dra_runtime.console import table
from dra_runtime.engine_file import EngineSidecar, check_host, check_plan_bytes, read_sidecar, runs_on
from dra_runtime.engine_host import Host
from dra_runtime.engine_sidecar import Profile
from dra_runtime.errors import BackendError
from dra_runtime.manifest import TensorSpec
from dra_runtime.sessions import Array, Session

Inputs = Mapping[str, Array]

START, END = 49_406, 49_407  #: CLIP's tokens around a text; the tower pools at the largest
DEVICE_WARMUP = 3  #: calls of each shape before those that are timed on the GPU


@dataclass(frozen=True)
class Shot:
    """Inputs of one shape."""

    batch: int
    text_tokens: int | None
    inputs: Inputs


def checked_engine(plan: Path, host: Host) -> EngineSidecar:
    """Check a plan as far as this machine can, and return its sidecar.

    Raises
    ------
    EngineError
        The sidecar is missing or broken, the plan isn't the one that it names, or it can't run on this GPU.
    BackendError
        No GPU is here; the line says what was checked all the same.
    """
    sidecar = read_sidecar(plan)
    check_plan_bytes(plan, sidecar)
    if host.gpu is None:
        made = f"{sidecar.graph} by {sidecar.library} {sidecar.library_version}, {precision(sidecar)}"
        raise BackendError(
            f"{plan.name} can't be timed: no CUDA GPU is here. Checked from its sidecar: the format, "
            f"{sidecar.plan_size} bytes with the SHA-256 that it names, {made}, for {runs_on(sidecar)}; run it there"
        )
    check_host(plan, sidecar, host)
    return sidecar


def precision(sidecar: EngineSidecar) -> str:
    """Say in words what an engine computes in, as was read back when it was built."""
    proof = sidecar.proof
    return f"{sidecar.precision} with {percent(100 * proof.half_share)} % of the tensors half"


def shots(sidecar: EngineSidecar, seed: int = 0) -> list[Shot]:
    """Make inputs for the smallest, the usual and the largest shapes of every profile, each shape once."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[tuple[int, ...], ...], Shot] = {}
    for profile in sidecar.profiles:
        for end in range(3):
            shapes = tuple(profile[tensor.name][end] for tensor in sidecar.inputs)
            if shapes not in found:
                found[shapes] = _shot(sidecar.inputs, profile, end, rng)
    return sorted(found.values(), key=lambda shot: (shot.batch, shot.text_tokens or 0))


def engine_cells(sidecar: EngineSidecar, session: Session, made: Sequence[Shot]) -> list[Cell]:
    """List what is timed by the wall clock: from numpy inputs to numpy outputs, copies to and from the GPU included."""
    return [
        Cell(sidecar.library, sidecar.graph, shot.batch, shot.text_tokens, partial(session.run, shot.inputs))
        for shot in made
    ]


def device_times(session: Session, watched: WatchedCuda, made: Sequence[Shot], samples: int) -> list[list[DeviceTime]]:
    """Run every shape some times in a session that `WatchedCuda` watches; returns what each call took on the GPU."""
    found: list[list[DeviceTime]] = []
    for shot in made:
        for _ in range(DEVICE_WARMUP):
            session.run(shot.inputs)
            watched.take()
        times = []
        for _ in range(samples):
            session.run(shot.inputs)
            times.append(watched.take())
        found.append(times)
    return found


def engine_rows(timings: Timings, on_device: Sequence[Sequence[DeviceTime]]) -> list[dict[str, Any]]:
    """Turn the times of the wall and of the GPU into rows of plain values, one a shape."""
    return [
        {
            "backend": cell.backend,
            "part": cell.part,
            "batch": cell.batch,
            "text_tokens": cell.text_tokens,
            **percentiles_ms(samples),
            "samples": len(samples),
            "device": _device(times),
        }
        for cell, samples, times in zip(timings.cells, timings.samples_ns.T, on_device, strict=True)
    ]


def described(plan: Path, sidecar: EngineSidecar) -> dict[str, Any]:
    """Say in plain values which engine was timed."""
    return {
        "file": plan.name,
        "graph": sidecar.graph,
        "bundle_id": sidecar.bundle_id,
        "plan_sha256": sidecar.plan_sha256,
        "plan_mb": round(sidecar.plan_size / 1e6, 1),
        "library": sidecar.library,
        "library_version": sidecar.library_version,
        "precision": sidecar.precision,
        "half_share": sidecar.proof.half_share,
        "runs_on": runs_on(sidecar),
        "build": asdict(sidecar.build),
    }


ENGINE_HEADER = (
    "batch",
    "tokens",
    *("p50 ms", "p90 ms", "p99 ms", "IQR ms", "samples"),
    *("computing ms", "to GPU ms", "to host ms", "copied MB"),
)


def engine_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Lay the rows out for people: the wall's times, then the GPU's medians."""
    return table(ENGINE_HEADER, (_cells(row) for row in rows))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    device = row["device"]
    return (
        str(row["batch"]),
        "" if row["text_tokens"] is None else str(row["text_tokens"]),
        *(milliseconds(row[key]) for key in ("p50_ms", "p90_ms", "p99_ms", "iqr_ms")),
        str(row["samples"]),
        *(milliseconds(device[key]) for key in ("compute_ms", "to_gpu_ms", "to_host_ms")),
        f"{(device['to_gpu_bytes'] + device['to_host_bytes']) / 1e6:.2f}",
    )


def _device(times: Sequence[DeviceTime]) -> dict[str, Any]:
    """Return medians of the times; the bytes are the same in every call."""
    keys = ("compute_ms", "to_gpu_ms", "to_host_ms")
    return {
        **{key: round(float(np.median([getattr(t, key) for t in times])), 4) for key in keys},
        "to_gpu_bytes": times[0].to_gpu_bytes,
        "to_host_bytes": times[0].to_host_bytes,
        "samples": len(times),
    }


def _shot(tensors: Sequence[TensorSpec], profile: Profile, end: int, rng: np.random.Generator) -> Shot:
    inputs: dict[str, Array] = {}
    length = None
    for tensor in tensors:
        shape = profile[tensor.name][end]
        if tensor.dtype == "int32":
            inputs[tensor.name], length = _tokens(shape, rng), shape[1]
        elif tensor.dtype == "uint8":
            inputs[tensor.name] = rng.integers(0, 256, shape, np.uint8)
        else:
            inputs[tensor.name] = rng.standard_normal(shape, np.float32)
    return Shot(int(profile[tensors[0].name][end][0]), length, inputs)


def _tokens(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return rows of a start token, some words' and an end token, (N, length) int32."""
    tokens = rng.integers(1, START, shape, np.int32)
    tokens[:, 0], tokens[:, -1] = START, END
    return tokens
