"""What a measurement was made on: the machine and the versions, without any name or path of it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from dra_runtime.threads import available_threads


def environment(threads: int, command: str) -> dict[str, Any]:
    """Describe this machine and its software in plain values.

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
        "os": f"{system_name()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "open_clip": version("open_clip_torch"),
        "numpy": np.__version__,
        "dra_toolkit": version("dra-toolkit"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "load_before": busy(),
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


def busy() -> float | None:
    """Return the load average of the last minute, None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def system_name() -> str:
    """Return the operating system as people call it."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
