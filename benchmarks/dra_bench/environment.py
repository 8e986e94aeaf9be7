"""What a measurement was made on: the machine and the versions, without any name or path of it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from dra_bench.clocks import clocks
from dra_runtime.threads import available_threads

BUSY = 5.0  #: percent of all cores used by other programs, above which latencies are too long to be quoted


def environment(threads: int, command: str) -> dict[str, Any]:
    """Describe this machine, its clocks and temperatures right now, and its software, in plain values.

    What can't be read is None.

    Parameters
    ----------
    threads
        How many threads each backend was given.
    command
        The command line to show, file names without their folders.
    """
    return {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable_cores": available_threads(),
        "threads": threads,
        "memory_gib": memory_gib(),
        **clocks(),
        "os": f"{system_name()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "open_clip": version("open_clip_torch"),
        "numpy": np.__version__,
        "dra_toolkit": version("dra-toolkit"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": command,
    }


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def memory_gib() -> float | None:
    """Return the machine's memory in GiB, None where the system doesn't say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


@dataclass(frozen=True)
class CpuClock:
    """Seconds of processor time since some start, summed over all cores."""

    machine: float  #: of all programs
    own: float  #: of this process and those it started and waited for
    wall: float


def cpu_clock(stat: Path = Path("/proc/stat")) -> CpuClock | None:
    """Read the processor time that the machine, and this process with its children, have used; None outside Linux."""
    try:
        fields = [int(n) for n in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    except (OSError, ValueError, IndexError):
        return None
    ticks = user + nice + system + irq + softirq + steal
    spent = os.times()
    own = spent.user + spent.system + spent.children_user + spent.children_system
    return CpuClock(
        ticks / os.sysconf("SC_CLK_TCK"),
        own,
        time.monotonic(),
    )


def used_by_others(before: CpuClock | None, after: CpuClock | None) -> float | None:
    """Return the share of all cores that other programs used in between, in percent; None where unknown."""
    if before is None or after is None or after.wall <= before.wall:
        return None
    others = (after.machine - before.machine) - (after.own - before.own)
    return round(100 * min(max(others / (after.wall - before.wall) / (os.cpu_count() or 1), 0), 1), 1)


def system_name() -> str:
    """Return the operating system as people call it."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
