"""Choose the TensorRT engines of a bundle that a model repository gets, and refuse those that Triton couldn't serve."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import check_plan_bytes, read_sidecar, rebuild_command
from dra_runtime.engine_host import TENSORRT
from dra_runtime.errors import EngineMismatchError, UsageError


@dataclass(frozen=True)
class Engine:
    """A plan to be served, with its largest batch and the number of its optimization profiles."""

    plan: Path
    max_batch: int
    profiles: int


def engines_of(bundle: Bundle, graphs: Sequence[str], key: str | None) -> dict[str, Engine]:
    """Return the engine of every graph, from BUNDLE/engines/``key``; without a key from the only folder there.

    Whether they run on this machine isn't asked: the server may be another one.

    Raises
    ------
    UsageError
        There is no such folder, or several and no key, or a graph has no plan in it.
    EngineError
        A plan isn't what its sidecar says, was built by another library than TensorRT, from another bundle, or takes no
        single requests.
    """
    folder = _folder(bundle, key)
    engines = {}
    for graph in graphs:
        plan = folder / f"{graph}.plan"
        if not plan.is_file():
            raise UsageError(f"{folder} has no {plan.name}; build it with: {_build(bundle)} --graph {graph}")
        sidecar = read_sidecar(plan)
        check_plan_bytes(plan, sidecar)
        again = rebuild_command(plan, sidecar)
        if sidecar.library != TENSORRT:
            raise EngineMismatchError(
                f"{plan}: built with {sidecar.library}, and Triton's TensorRT backend opens {TENSORRT}'s plans alone; "
                f"build it with: {_build(bundle)}"
            )
        if sidecar.bundle_id != bundle.manifest.bundle_id:
            raise EngineMismatchError(
                f"{plan}: built from bundle {sidecar.bundle_id[:12]}, not from {bundle.manifest.bundle_id[:12]}; build "
                f"it again: {again}"
            )
        if sidecar.build.min_batch != 1:
            raise EngineMismatchError(
                f"{plan}: takes batches from {sidecar.build.min_batch}, and a server gets single requests; build it "
                f"with --min 1"
            )
        engines[graph] = Engine(plan, sidecar.build.max_batch, len(sidecar.profiles))
    return engines


def _folder(bundle: Bundle, key: str | None) -> Path:
    parent = bundle.path / "engines"
    names = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    if not names:
        raise UsageError(f"{parent} holds no engines; build them with: {_build(bundle)}")
    if key is None and len(names) > 1:
        raise UsageError(f"{parent} has engines for several targets; choose one with --engines: {', '.join(names)}")
    if key is not None and key not in names:
        raise UsageError(f"{parent} has no {key!r}; it has {', '.join(names)}")
    return parent / (key or names[0])


def _build(bundle: Bundle) -> str:
    return f"dra-export engine {shlex.quote(str(bundle.path))} --backend {TENSORRT}"
