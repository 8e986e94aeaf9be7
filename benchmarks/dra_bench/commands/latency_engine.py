"""dra-bench latency --engine: a TensorRT plan alone, told from its sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dra_bench.clocks import clocks_after
from dra_bench.commands.common import shown_command, timed_in_turns
from dra_bench.device_time import WatchedCuda
from dra_bench.engine_alone import (
    checked_engine,
    described,
    device_times,
    engine_cells,
    engine_rows,
    engine_table,
    precision,
    shots,
)
from dra_bench.environment import environment
from dra_bench.latency import raw_milliseconds
from dra_runtime.backends.tensorrt import open_tensorrt
from dra_runtime.engine_host import Host, this_host
from dra_runtime.sessions import GpuOptions
from dra_runtime.threads import available_threads

LEAST_SAMPLES = 20


def time_engine(
    plan: Path, samples: int | None, seconds: float, host: Host | None = None
) -> tuple[dict[str, Any], str]:
    """Time a plan on the GPU of this machine.

    The wall's times are those of the runtime's session, with CUDA graphs. What the GPU itself does is timed in a second
    session without them.

    Returns
    -------
    dict, str
        The result in plain values, and the same for people.

    Raises
    ------
    EngineError, BackendError
        The plan can't be timed here; the line says why, and what was checked.
    """
    host = host or this_host()
    sidecar = checked_engine(plan, host)
    made = shots(sidecar)
    surroundings = environment(available_threads(), shown_command())
    session = open_tensorrt(plan, GpuOptions(contexts=1), host)
    timings, others = timed_in_turns(engine_cells(sidecar, session, made), samples, seconds, "engine", LEAST_SAMPLES)
    watched: list[WatchedCuda] = []

    def watch(cuda: Any) -> WatchedCuda:
        watched.append(WatchedCuda(cuda))
        return watched[0]

    bare = open_tensorrt(plan, GpuOptions(contexts=1, graphs=0), host, watch)
    rows = engine_rows(timings, device_times(bare, watched[0], made, len(timings.samples_ns)))
    result = {
        "engine": described(plan, sidecar),
        "rows": rows,
        "environment": {**surroundings, **clocks_after(), "used_by_others_percent": others},
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady, "restless_calls": timings.restless},
        "raw_ms": raw_milliseconds(timings),
    }
    title = f"{sidecar.graph}, {sidecar.library} {sidecar.library_version}, {precision(sidecar)}"
    where = f"on {host.gpu.name}" if host.gpu else ""
    note = "Computing and copies are the GPU's own medians, by CUDA events, in a session without CUDA graphs."
    return result, "\n\n".join([f"{title} {where}", engine_table(rows), click.wrap_text(note, 120)])
