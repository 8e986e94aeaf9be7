"""Run a probe in a fresh process, and read when it reached each stage and how much memory it had then."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dra_runtime.errors import UsageError

MEMORY = ("peak_mb", "resident_mb", "anonymous_mb")


@dataclass(frozen=True)
class Probe:
    """A program to run: a module of dra_bench.probes and its arguments."""

    name: str  #: what tables call it
    module: str
    arguments: tuple[str | int | Path, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of a probe: when it was reached, and the memory of its process then, in MB (1e6 bytes).

    ``peak_mb`` is the most that was ever resident (VmHWM), ``resident_mb`` what is now (VmRSS), both with mapped files;
    ``anonymous_mb`` is what is resident without them (RssAnon).
    """

    name: str
    ms: float  #: since the process was started
    memory: Mapping[str, float]


def run_probe(probe: Probe) -> tuple[Stage, ...]:
    """Run a probe and return its stages.

    UsageError with its last line of stderr when it fails.
    """
    command = [sys.executable, "-m", f"dra_bench.probes.{probe.module}", *map(str, probe.arguments)]
    start = time.monotonic_ns()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise UsageError(f"the measured process {probe.name!r} failed: {reason}")
    return tuple(
        Stage(mark["stage"], (mark["ns"] - start) / 1e6, {k: mark[k] for k in MEMORY})
        for mark in json.loads(done.stdout.splitlines()[-1])
    )


def run_probes(probes: Sequence[Probe], repetitions: int) -> Iterable[tuple[str, tuple[Stage, ...]]]:
    """Run all probes in turns, in an order drawn anew each time, and yield the name and the stages of each."""
    order = random.Random(0)  # noqa: S311 - the same order in every run, nothing secret
    for _ in range(repetitions):
        for probe in order.sample(list(probes), len(probes)):
            yield probe.name, run_probe(probe)


def summary(runs: Sequence[Sequence[Stage]]) -> list[dict[str, Any]]:
    """Return each stage's medians over the runs, with the least and the most.

    ``ms`` is when it was reached, ``own_ms`` how long it took itself.
    """
    rows = []
    for i, stage in enumerate(runs[0]):
        reached = [run[i].ms for run in runs]
        own = [run[i].ms - (run[i - 1].ms if i else 0) for run in runs]
        memory = {k: _middle([run[i].memory[k] for run in runs]) for k in MEMORY}
        rows.append({"stage": stage.name, "ms": _middle(reached), "own_ms": _middle(own), **memory, "runs": len(runs)})
    return rows


def raw(runs: Sequence[Sequence[Stage]]) -> list[list[dict[str, Any]]]:
    """Return every stage of every run in plain values."""
    return [[{"stage": s.name, "ms": round(s.ms, 2), **s.memory} for s in run] for run in runs]


def _middle(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [0, 50, 100])
    return {"median": round(float(middle), 2), "least": round(float(low), 2), "most": round(float(high), 2)}
