"""Note when a process reaches a stage, and its memory; nothing is imported that the process doesn't have anyway."""

import json
import sys
import time

_FIELDS = {"VmHWM": "peak_mb", "VmRSS": "resident_mb", "RssAnon": "anonymous_mb"}
_marks: list[dict[str, object]] = []


def mark(stage: str) -> None:
    """Note that a stage is done."""
    now = time.monotonic_ns()
    _marks.append({"stage": stage, "ns": now, **memory()})


def memory() -> dict[str, float]:
    """Return this process's memory in MB (1e6 bytes), as Linux states it."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - pathlib is slow to import
        pairs = (line.partition(":")[::2] for line in file)
        return {_FIELDS[name]: round(int(value.split()[0]) * 1024 / 1e6, 2) for name, value in pairs if name in _FIELDS}


def report() -> None:
    """Print all stages, which must be the last line of the output."""
    sys.stdout.write(json.dumps(_marks) + "\n")
