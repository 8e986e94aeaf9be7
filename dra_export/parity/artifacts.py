"""What runs a bundle's graphs: the bundle itself, its half graphs rounded as hardware rounds them, and its engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dra_export.parity.limits import LIMITS, Limits, limits_of
from dra_runtime.backends.engines import ENGINES
from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu
from dra_runtime.encoder import Encoder
from dra_runtime.engine_file import EngineSidecar, check_host, check_plan_bytes, read_sidecar, rebuild_command
from dra_runtime.engine_host import Host, this_host
from dra_runtime.errors import EngineError, EngineMismatchError
from dra_runtime.sessions import ONNXRUNTIME_CPU, GpuOptions, Session

EMULATED = "half emulated"
WHOLE = ("image_encoder", "text_encoder", "compositor")  #: without these, no query is answered


@dataclass(frozen=True)
class Artifact:
    """One way to run a bundle; ``graphs`` are those that it has."""

    name: str  #: "" for the bundle itself
    precision: str
    backend: str
    bundle: Encoder  #: opened, for its manifest and tokenizer; none of its graphs is
    graphs: tuple[str, ...]
    open_session: Callable[[str], Session]
    limits: Limits

    def open(self, *graphs: str) -> Encoder:
        """Return an encoder that holds these graphs alone, until it is dropped: all at once may not fit into memory."""
        sessions = {graph: self.open_session(graph) for graph in graphs}
        return Encoder(self.bundle.bundle, self.backend, self.bundle.threads, self.bundle.tokenizer, sessions)

    @property
    def answers_queries(self) -> bool:
        """Tell whether it has all graphs that a query needs."""
        return all(graph in self.graphs for graph in WHOLE)


@dataclass(frozen=True)
class Engines:
    """The engines of a bundle: those that run here, by the name of their folder, and why others don't."""

    usable: Mapping[str, Mapping[Path, EngineSidecar]]
    not_run: tuple[str, ...]  #: a line each: this host lacks something
    broken: tuple[str, ...]  #: a line each: the file isn't what it says


def bundle_artifact(encoder: Encoder) -> Artifact:
    """Return the bundle as its users run it."""
    bundle = encoder.bundle

    def open_session(graph: str) -> Session:
        return Encoder(bundle, encoder.backend, encoder.threads, encoder.tokenizer).session(graph)

    manifest = bundle.manifest
    return Artifact(
        "", manifest.precision, encoder.backend, encoder, tuple(manifest.graphs), open_session, limits_of(manifest)
    )


def emulated_artifact(encoder: Encoder) -> Artifact | None:
    """Return the bundle with every half value rounded, where its backend doesn't round; None where there's no need."""
    manifest = encoder.bundle.manifest
    if manifest.precision != "fp16" or encoder.backend != ONNXRUNTIME_CPU:
        return None

    def open_session(graph: str) -> Session:
        spec = manifest.graphs[graph]
        with tempfile.TemporaryDirectory(prefix="dra-verify-") as folder:
            path = Path(folder) / spec.file
            _write_emulation(encoder.bundle.file(spec.file), path)
            return open_onnxruntime_cpu(path, spec, encoder.threads)

    return Artifact(
        EMULATED, "fp16", encoder.backend, encoder, tuple(manifest.graphs), open_session, limits_of(manifest)
    )


def _write_emulation(half: Path, path: Path) -> None:
    import onnx

    from dra_export.half.emulation import emulation_from_half

    onnx.save(emulation_from_half(onnx.load(str(half))), path)


def engine_artifact(encoder: Encoder, key: str, plans: Mapping[Path, EngineSidecar]) -> Artifact:
    """Return the engines of one folder, having opened one to see that this host can.

    Raises
    ------
    BackendError
        Something is missing here to run them.
    EngineError
        A plan can't be opened.
    """
    from dra_runtime.backends.tensorrt import open_tensorrt

    by_graph = {sidecar.graph: plan for plan, sidecar in plans.items()}

    def open_session(graph: str) -> Session:
        return open_tensorrt(by_graph[graph], GpuOptions(contexts=1))

    first = next(iter(plans.values()))
    limits = LIMITS.get(first.precision) or limits_of(encoder.bundle.manifest)
    open_session(first.graph)
    return Artifact(f"{ENGINES}/{key}", first.precision, first.library, encoder, tuple(by_graph), open_session, limits)


def engines_of(encoder: Encoder, host: Host | None = None) -> Engines:
    """Look through a bundle's engines: which can run on ``host`` (default: this machine), and why the others can't."""
    usable: dict[str, dict[Path, EngineSidecar]] = {}
    not_run, broken = [], []
    plans = sorted((encoder.bundle.path / ENGINES).glob("*/*.plan"))
    host = (host or this_host()) if plans else host
    for plan in plans:
        assert host is not None
        try:
            sidecar = read_sidecar(plan)
            check_plan_bytes(plan, sidecar)
            if sidecar.bundle_id != encoder.bundle_id:
                raise EngineError(
                    f"{plan}: built from bundle {sidecar.bundle_id[:12]}, not from {encoder.bundle_id[:12]}; build it "
                    f"again: {rebuild_command(plan, sidecar)}"
                )
            check_host(plan, sidecar, host)
            usable.setdefault(plan.parent.name, {})[plan] = sidecar
        except EngineMismatchError as error:
            not_run.append(str(error))
        except EngineError as error:
            broken.append(str(error))
    return Engines(usable, _shortened(not_run), tuple(broken))


def _shortened(lines: list[str]) -> tuple[str, ...]:
    """Return one line for all plans of a folder of which the same is said, and the command that rebuilds them all."""
    folders: dict[str, int] = {}
    for line in lines:
        plan, _, reason = line.partition(": ")
        same = f"{Path(plan).parent}: {reason.replace(f'--graph {Path(plan).stem} ', '')}"
        folders[same] = folders.get(same, 0) + 1
    return tuple(f"{line} ({count} plan{'s' if count > 1 else ''})" for line, count in folders.items())
