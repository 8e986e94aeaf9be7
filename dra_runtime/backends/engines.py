"""Find the engines of a bundle that run here: BUNDLE/engines/KEY/NAME.plan, told from their sidecars alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import EngineSidecar, check_host, read_sidecar, rebuild_command
from dra_runtime.engine_host import Host, this_host
from dra_runtime.errors import BackendError, EngineError, EngineMismatchError

ENGINES = "engines"  #: the folder in a bundle
NOT_NEEDED = ("query",)  #: graphs that the encoder does without: it runs the parts


def engines_in(bundle: Bundle, library: str, host: Host | None = None) -> dict[str, Path]:
    """Return the plans of a bundle that ``library`` runs on ``host``, by the names of their graphs.

    They are those of one folder, which must hold all graphs that the encoder needs: the answers of one encoder come
    from one build. Where several do, engines made for the GPU at hand go before those that run on many. The plans
    aren't read: `dra_runtime.engine_file.check_plan` does that before one is opened.

    Raises
    ------
    BackendError
        There is no such folder. The line says why not, and how to build it.
    """
    host = host or this_host()
    if library not in host.libraries:
        raise BackendError(f"{library} isn't installed here; pip install 'dra-toolkit[{library}]'")
    build = f"dra-export engine {shlex.quote(str(bundle.path))} --backend {library}"
    fitting: list[Mapping[Path, EngineSidecar]] = []
    problems = []
    for folder in _folders(bundle.path / ENGINES):
        try:
            if engines := _engines_of(folder, bundle, library, host):
                fitting.append(engines)
        except EngineError as error:
            problems.append(str(error))
    if not fitting:
        missing = f"{bundle.path / ENGINES} holds no engines of {library}; build them: {build}"
        raise BackendError(problems[0] if problems else missing)
    best = min(fitting, key=lambda engines: not any(s.target.compute_capabilities for s in engines.values()))
    return {sidecar.graph: plan for plan, sidecar in best.items()}


def engine_of(bundle: Bundle, library: str, graph: str, host: Host | None = None) -> Path:
    """Return the plan of one graph, beside those that the encoder needs.

    Raises
    ------
    BackendError
        There is none that runs here.
    """
    engines = engines_in(bundle, library, host)
    if graph not in engines:
        beside = next(iter(engines.values()))
        raise BackendError(
            f"{beside.parent} has no engine of {graph}; build it: {_command_for(beside, graph, read_sidecar(beside))}"
        )
    return engines[graph]


def require_no_code(bundle: Bundle, library: str, host: Host | None = None) -> None:
    """Raise BackendError where an engine brings code of its own, as version-compatible ones do.

    Such a plan holds a part of TensorRT that is loaded and run. A bundle may come from elsewhere, so that is done only
    where somebody asks for the engine.
    """
    for plan in engines_in(bundle, library, host).values():
        if read_sidecar(plan).target.version_compatible:
            raise BackendError(f"{plan} brings code of its own; ask for it where you trust it: backend={library!r}")


def _folders(engines: Path) -> list[Path]:
    """Return the folders with engines; links lead out of the bundle and aren't followed."""
    if engines.is_symlink():
        return []
    return sorted(path for path in engines.glob("*") if path.is_dir() and not path.is_symlink())


def _engines_of(folder: Path, bundle: Bundle, library: str, host: Host) -> dict[Path, EngineSidecar]:
    """Return a folder's engines of this library, none if they are another's; EngineError unless all of them fit."""
    engines = {}
    for plan in sorted(folder.glob("*.plan")):
        sidecar = read_sidecar(plan)
        if sidecar.library != library:
            continue
        if sidecar.bundle_id != bundle.manifest.bundle_id:
            raise EngineMismatchError(
                f"{plan}: built from bundle {sidecar.bundle_id[:12]}, not from {bundle.manifest.bundle_id[:12]}; build "
                f"it again: {rebuild_command(plan, sidecar)}"
            )
        check_host(plan, sidecar, host)
        engines[plan] = sidecar
    if not engines:
        return {}
    there = {sidecar.graph for sidecar in engines.values()}
    for graph in bundle.manifest.graphs:
        if graph not in (*NOT_NEEDED, *there):
            plan, sidecar = next(iter(engines.items()))
            raise EngineMismatchError(
                f"{folder} has no engine of {graph}, and the encoder needs one of every graph but query; build it: "
                f"{_command_for(plan, graph, sidecar)}"
            )
    return engines


def _command_for(plan: Path, graph: str, beside: EngineSidecar) -> str:
    """Return the command that builds a graph's engine as the one beside it was built."""
    return rebuild_command(plan.with_name(f"{graph}.plan"), replace(beside, graph=graph))
