"""Build the engines of a bundle: BUNDLE/engines/<key>/NAME.plan with its sidecar, all of them or none."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dra_runtime
from dra_export.engine.proof import declared_islands, proof_of, require_half, require_half_layers
from dra_export.engine.tensorrt_api import (
    Fraction,
    Settings,
    inputs_of,
    inspect_engine,
    layers_of,
    network_from_onnx,
    opened_engine,
    plan_from_network,
    require_supported,
)
from dra_runtime.backends.engines import ENGINES
from dra_runtime.backends.tensorrt_library import Library
from dra_runtime.bundle import Bundle
from dra_runtime.console import progress
from dra_runtime.engine_file import (
    BuildOptions,
    EngineSidecar,
    Profile,
    Proof,
    Target,
    check_host,
    sidecar_path,
    with_plan,
    write_sidecar,
)
from dra_runtime.engine_host import TENSORRT, Host
from dra_runtime.errors import EngineError, EngineMismatchError, UsageError
from dra_runtime.files import write_bytes
from dra_runtime.manifest import GraphSpec
from dra_train.feature_cache import default_cache

USUAL_LENGTH = 16  #: tokens; most queries of a few words stay below
WIDE = 8  #: times the usual batch; what lies beyond gets a profile of its own
_PARSING = 0.3  # of the time that an engine takes, about


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    Batches from ``min_batch`` to ``max_batch`` run, ``opt_batch`` fastest. ``targets`` are names such as sm89, for
    TensorRT-RTX; without any its engines run from compute capability 8.0. ``workspace`` is the most memory (bytes) that
    a layer may use beside its tensors. ``timing_cache`` is a file with tensorrt's measurements; by default one is kept
    for every version and GPU.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    targets: tuple[str, ...] = ()
    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch <= 4096:
            found = f"{self.min_batch}, {self.opt_batch}, {self.max_batch}"
            raise UsageError(f"--min, --opt and --max are {found}; give rising batch sizes from 1 to 4096")


@dataclass(frozen=True)
class Engine:
    """A built engine: the plan (a buffer), what it computes in, and what tensorrt measured while building."""

    plan: Any
    proof: Proof
    timing_cache: bytes


def engine_from_onnx(
    library: Library,
    path: Path,
    profiles: tuple[Profile, ...],
    settings: Settings,
    half: bool,
    islands: Mapping[str, str] | None,
    told: Fraction,
) -> Engine:
    """Build an engine from an ONNX file.

    Parameters
    ----------
    library, settings
        What builds it, and how.
    profiles
        Shapes of all inputs, one profile a range.
    half
        Whether it must come out as half precision; checked before the time is spent.
    islands
        The nodes that stay float32 then, with their reasons; see `dra_export.engine.proof.proof_of`.
    told
        Is told how much is done.

    Raises
    ------
    EngineError
        The library can't read the file, or can't build it.
    PrecisionError
        ``half``, and it came out as float32.
    """
    network = network_from_onnx(library, path)
    told(_PARSING, "parsed")
    found, expected = sorted(inputs_of(network)), sorted(profiles[0])
    if found != expected:
        raise EngineError(f"{path}: takes {', '.join(found)}, expected {', '.join(expected)}; export the bundle again")
    proof = proof_of(layers_of(network), half, islands)
    if half:
        require_half(proof, path.stem)
    plan, timing_cache = plan_from_network(
        network, profiles, settings, lambda done, note: told(_PARSING + (1 - _PARSING) * done, note)
    )
    return Engine(plan, proof, timing_cache)


def build_engines(
    bundle: Bundle,
    library: Library,
    host: Host,
    options: EngineOptions,
    graphs: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[Path, EngineSidecar]:
    """Build a bundle's graphs (all without ``graphs``) and return the plans' paths with their sidecars.

    All are built under a temporary name and then renamed: whatever goes wrong, none is left, and engines that stood
    there stay as they were.

    Raises
    ------
    UsageError
        The bundle is INT8 or lacks a graph, the library lacks an option, engines stand there without ``overwrite``, or
        the folder can't be written.
    EngineError
        The library can't build a graph.
    PrecisionError
        A graph of an FP16 bundle came out as float32.
    """
    manifest = bundle.manifest
    if manifest.precision == "int8":
        raise UsageError(f"{bundle.path} is an INT8 bundle, made for CPUs; build engines from an fp16 or fp32 one")
    names = list(dict.fromkeys(graphs)) or list(manifest.graphs)
    if unknown := [name for name in names if name not in manifest.graphs]:
        raise UsageError(f"--graph has {unknown[0]!r}; {bundle.path} has {', '.join(manifest.graphs)}")
    timing_cache = _timing_cache(library, host, options)
    settings = _settings(options, timing_cache)
    require_supported(library, settings)
    out = bundle.path / ENGINES / engine_key(library, host, options)
    if not overwrite and any((out / f"{name}.plan").exists() for name in names):
        raise UsageError(f"{out} has engines already; replace them with --overwrite")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        built = []
        with _progress(bundle, names) as told:
            for name in names:
                report = told(name)
                sidecar, settings = _build(bundle, name, library, host, options, settings, work, report)
                report(1.0, "done")
                built.append(sidecar)
        _put_in_place(work, out)
        if timing_cache and settings.timing_cache:
            timing_cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(timing_cache, settings.timing_cache)
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error.strerror or error}; check the folder and the disk") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if work.parent.is_dir() and not any(work.parent.iterdir()):
            work.parent.rmdir()
    return {out / sidecar.plan: sidecar for sidecar in built}


def engine_key(library: Library, host: Host, options: EngineOptions) -> str:
    """Name the folder of engines: library, version, and where they run."""
    if library.name == TENSORRT:
        assert host.gpu is not None, "load_library has seen it"
        where = "cc80plus" if options.hardware_compatible else _plain(host.gpu.name)
    else:
        where = "-".join(options.targets) or "cc80plus"
    newer = "-version-compatible" if options.version_compatible else ""
    return f"{library.name}-{_plain(library.version)}-{where}{newer}"


def profiles_of(spec: GraphSpec, options: EngineOptions, context_length: int) -> tuple[Profile, ...]:
    """Return a graph's optimization profiles: batch 1, the usual range, and what lies far beyond the usual batch.

    A profile that covers everything is slow at its ends. Text lengths go from 2 to ``context_length`` in each.
    """
    least, usual, most = options.min_batch, options.opt_batch, options.max_batch
    batches = [(1, 1, 1)] if least == 1 < most else []
    batches.append((least, usual, min(most, WIDE * usual)))
    if most > WIDE * usual:
        batches.append((least, most, most))
    lengths = (min(2, context_length), min(USUAL_LENGTH, context_length), context_length)

    def shape(sizes: tuple[int | str, ...], batch: int, length: int) -> tuple[int, ...]:
        symbolic = {size: length for size in sizes if isinstance(size, str)} | {sizes[0]: batch}
        return tuple(size if isinstance(size, int) else symbolic[size] for size in sizes)

    return tuple(
        {
            tensor.name: (
                shape(tensor.shape, batch[0], lengths[0]),
                shape(tensor.shape, batch[1], lengths[1]),
                shape(tensor.shape, batch[2], lengths[2]),
            )
            for tensor in spec.inputs
        }
        for batch in batches
    )


def _build(
    bundle: Bundle,
    name: str,
    library: Library,
    host: Host,
    options: EngineOptions,
    settings: Settings,
    folder: Path,
    told: Fraction,
) -> tuple[EngineSidecar, Settings]:
    """Build one graph into ``folder``; return its sidecar, and the settings with what was measured."""
    manifest = bundle.manifest
    spec, half = manifest.graphs[name], manifest.precision == "fp16"
    profiles = profiles_of(spec, options, manifest.tokenizer.context_length)
    islands = declared_islands(manifest.provenance, name)
    engine = engine_from_onnx(library, bundle.file(spec.file), profiles, settings, half, islands, told)
    plan = folder / f"{name}.plan"
    with plan.open("wb") as file:
        file.write(engine.plan)
    sidecar = with_plan(
        EngineSidecar(
            graph=name,
            bundle_id=manifest.bundle_id,
            onnx_sha256=manifest.files[spec.file].sha256,
            plan=plan.name,
            plan_sha256="",
            plan_size=0,
            library=library.name,
            library_version=library.version,
            target=_target(library, host, options),
            precision=manifest.precision,
            proof=engine.proof,
            profiles=profiles,
            inputs=spec.inputs,
            outputs=spec.outputs,
            build=BuildOptions(options.min_batch, options.opt_batch, options.max_batch, options.workspace),
            versions={"dra-toolkit": dra_runtime.__version__, library.name: library.version},
        ),
        plan,
    )
    if _runs_here(plan, sidecar, host):
        opened, _keep = opened_engine(library, engine.plan, options.version_compatible)
        inspected = inspect_engine(library, opened)
        if half and inspected:
            require_half_layers(inspected, name)
        sidecar = replace(sidecar, proof=replace(sidecar.proof, inspected=inspected))
    write_sidecar(folder, sidecar)
    return sidecar, replace(settings, timing_cache=engine.timing_cache)


def _runs_here(plan: Path, sidecar: EngineSidecar, host: Host) -> bool:
    try:
        check_host(plan, sidecar, host)
    except EngineMismatchError:
        return False
    return True


def _target(library: Library, host: Host, options: EngineOptions) -> Target:
    if library.name == TENSORRT:
        assert host.gpu is not None, "load_library has seen it"
        where = host.gpu.compute_capability
        return Target(host.platform, (where,), host.gpu.name, options.hardware_compatible, options.version_compatible)
    return Target(host.platform, tuple(f"{name[2:-1]}.{name[-1]}" for name in options.targets), None)


def _settings(options: EngineOptions, timing_cache: Path | None) -> Settings:
    known = timing_cache.read_bytes() if timing_cache and timing_cache.is_file() else b""
    return Settings(options.targets, options.workspace, options.version_compatible, options.hardware_compatible, known)


def _timing_cache(library: Library, host: Host, options: EngineOptions) -> Path | None:
    if library.name == TENSORRT:
        assert host.gpu is not None, "load_library has seen it"
        name = f"{library.name}-{_plain(library.version)}-{_plain(host.gpu.name)}.timing"
        return options.timing_cache or default_cache() / "timing" / name
    if options.timing_cache:
        raise UsageError(f"{library.name} measures nothing while it builds; leave --timing-cache out")
    return None


def _put_in_place(work: Path, out: Path) -> None:
    """Rename what was built; where engines of other graphs stand, add to them."""
    if not out.exists():
        work.rename(out)
        return
    for plan in sorted(work.glob("*.plan")):
        plan.replace(out / plan.name)
        sidecar_path(plan).replace(sidecar_path(out / plan.name))


@contextmanager
def _progress(bundle: Bundle, names: Sequence[str]) -> Iterator[Callable[[str], Fraction]]:
    """Show a bar over the bytes of all graphs; yield what makes a graph's function to be told how much is done."""
    manifest = bundle.manifest
    sizes = {name: max(1, manifest.files[manifest.graphs[name].file].size // 1000) for name in names}
    with progress(sum(sizes.values()), "building engines") as advance:

        def of(name: str) -> Fraction:
            shown = 0

            def told(done: float, note: str) -> None:
                nonlocal shown
                now = int(sizes[name] * done)
                if now > shown:  # phases overlap; a bar doesn't go back
                    advance(now - shown, f"{name}: {note}")
                    shown = now

            return told

        yield of


def _plain(name: str) -> str:
    """Return a name as a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
