"""An engine's two files: NAME.plan, exactly what TensorRT gave, and NAME.plan.json, the sidecar that describes it.

`docs/engines.md` is the format. TensorRT is never imported here: whether a plan can run is told from the sidecar, the
plan's bytes and the host, before anybody tries to open it.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import replace
from pathlib import Path

from dra_runtime.engine_host import TENSORRT, Gpu, Host, this_host
from dra_runtime.engine_sidecar import (
    MAX_SIDECAR,
    BuildOptions,
    EngineSidecar,
    Inspected,
    Island,
    Profile,
    Proof,
    Target,
    sidecar_from_json,
    sidecar_to_dict,
)
from dra_runtime.errors import EngineFormatError, EngineIntegrityError, EngineMismatchError
from dra_runtime.files import write_json
from dra_runtime.manifest import MANIFEST
from dra_runtime.regular_file import open_regular, read_regular, size_of

__all__ = [
    "BuildOptions",
    "EngineSidecar",
    "Inspected",
    "Island",
    "Profile",
    "Proof",
    "Target",
    "check_host",
    "check_plan",
    "check_plan_bytes",
    "read_sidecar",
    "rebuild_command",
    "runs_on",
    "sidecar_from_json",
    "sidecar_path",
    "sidecar_to_dict",
    "with_plan",
    "write_sidecar",
]

LEAST_PORTABLE = (8, 0)  #: compute capability from which portable engines run
RTX_TARGETS = {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"}  #: those that TensorRT-RTX 1.7 can be asked for


def sidecar_path(plan: Path) -> Path:
    """Return the path of a plan's sidecar."""
    return plan.with_name(f"{plan.name}.json")


def read_sidecar(plan: Path) -> EngineSidecar:
    """Read and check the sidecar of a plan; the plan itself isn't opened.

    Raises
    ------
    EngineFormatError
        There is none, or it breaks the format.
    """
    path = sidecar_path(plan)
    try:
        text = read_regular(path, MAX_SIDECAR)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise EngineFormatError(
            f"{path}: the plan's sidecar can't be read ({getattr(error, 'strerror', None) or error}); build the engine "
            f"again: {_command(plan)}"
        ) from error
    try:
        sidecar = sidecar_from_json(text)
        if sidecar.plan != plan.name:
            raise EngineFormatError(f"plan.file has {sidecar.plan!r}; expected {plan.name!r}")
    except EngineFormatError as error:
        raise EngineFormatError(f"{path}: {error}; build the engine again: {_command(plan)}") from error
    return sidecar


def write_sidecar(folder: Path, sidecar: EngineSidecar) -> None:
    """Write a sidecar beside its plan in ``folder``."""
    write_json(sidecar_path(folder / sidecar.plan), sidecar_to_dict(sidecar))


def check_plan(plan: Path, host: Host | None = None, bundle_id: str | None = None) -> EngineSidecar:
    """Check a plan against its sidecar and against a host, and return the sidecar.

    Parameters
    ----------
    plan
        The file NAME.plan.
    host
        Where it shall run; default: this machine.
    bundle_id
        The bundle that the engine must have been made from, if that matters.

    Raises
    ------
    EngineFormatError
        The sidecar is missing or breaks the format.
    EngineIntegrityError
        The plan is missing, or isn't the one that the sidecar names.
    EngineMismatchError
        It can't run on the host, or was made from another bundle. Each message ends with what to do, the command that
        rebuilds the engine wherever that helps.
    """
    sidecar = read_sidecar(plan)
    check_plan_bytes(plan, sidecar)
    if bundle_id is not None and sidecar.bundle_id != bundle_id:
        raise EngineMismatchError(
            f"{plan}: built from bundle {sidecar.bundle_id[:12]}, not from {bundle_id[:12]}; build it again: "
            f"{rebuild_command(plan, sidecar)}"
        )
    check_host(plan, sidecar, host or this_host())
    return sidecar


def check_plan_bytes(plan: Path, sidecar: EngineSidecar) -> None:
    """Raise EngineIntegrityError unless the plan is the very file that the sidecar names."""
    again = f"build it again: {rebuild_command(plan, sidecar)}"
    try:
        with open_regular(plan) as file:
            size = size_of(file)
            if size != sidecar.plan_size:
                raise EngineIntegrityError(f"{plan}: {size} bytes where its sidecar says {sidecar.plan_size}; {again}")
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineIntegrityError(f"{plan}: can't be read ({error.strerror or error}); {again}") from error
    if digest != sidecar.plan_sha256:
        raise EngineIntegrityError(
            f"{plan}: its SHA-256 starts with {digest[:12]} where its sidecar says {sidecar.plan_sha256[:12]}; {again}"
        )


def check_host(plan: Path, sidecar: EngineSidecar, host: Host) -> None:
    """Raise EngineMismatchError unless an engine can run on ``host``: platform, library, version, GPU."""
    target, library, command = sidecar.target, sidecar.library, rebuild_command(plan, sidecar, host)
    installed = host.libraries.get(library)
    if installed is None:
        raise EngineMismatchError(
            f"{plan}: needs {library} {sidecar.library_version}, which isn't installed here; "
            f"pip install 'dra-toolkit[{library}]', and for another version: {command}"
        )
    if not _version_fits(sidecar, installed):
        raise EngineMismatchError(
            f"{plan}: built with {library} {sidecar.library_version}, here is {installed}; build it again: {command}"
        )
    if library == TENSORRT and target.platform != host.platform:  # TensorRT-RTX's plans run on Linux and Windows alike
        raise EngineMismatchError(f"{plan}: built for {target.platform}, here is {host.platform}; on it run: {command}")
    if host.gpu is None:
        raise EngineMismatchError(
            f"{plan}: runs on {runs_on(sidecar)}, and no CUDA GPU is here; on the machine that has one, run: {command}"
        )
    if not _gpu_fits(sidecar, host.gpu):
        raise EngineMismatchError(
            f"{plan}: built for {runs_on(sidecar)}, here is {host.gpu.name} (compute capability "
            f"{host.gpu.compute_capability}); build it again: {command}"
        )


def runs_on(sidecar: EngineSidecar) -> str:
    """Say in words which GPUs an engine runs on."""
    target = sidecar.target
    if _is_portable(sidecar):
        return "any GPU of compute capability 8.0 or newer"
    if target.gpu is not None:
        return f"{target.gpu} (compute capability {', '.join(target.compute_capabilities)})"
    return f"a GPU of compute capability {' or '.join(target.compute_capabilities)}"


def rebuild_command(plan: Path, sidecar: EngineSidecar, host: Host | None = None) -> str:
    """Return the command that builds an engine again with the same options; for the GPU of ``host``, where given."""
    target, build = sidecar.target, sidecar.build
    parts = [f"--backend {sidecar.library}", f"--graph {sidecar.graph}"]
    if (build.min_batch, build.opt_batch, build.max_batch) != (1, 8, 64):
        parts.append(f"--min {build.min_batch} --opt {build.opt_batch} --max {build.max_batch}")
    if sidecar.library != TENSORRT and target.compute_capabilities:
        wanted = target.compute_capabilities
        if host and host.gpu and not _gpu_fits(sidecar, host.gpu):
            wanted = tuple(RTX_TARGETS & {host.gpu.compute_capability})  # others run what is built without a target
        if wanted:
            parts.append("--target " + ",".join(f"sm{capability.replace('.', '')}" for capability in wanted))
    if build.workspace is not None:
        parts.append(f"--workspace {build.workspace // 2**20}")
    parts += ["--version-compatible"] * target.version_compatible
    parts += ["--hardware-compatible"] * target.hardware_compatible
    return _command(plan, " ".join(parts))


def with_plan(sidecar: EngineSidecar, plan: Path) -> EngineSidecar:
    """Return a sidecar that names ``plan`` as it lies on the disk."""
    with plan.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return replace(sidecar, plan=plan.name, plan_sha256=digest, plan_size=plan.stat().st_size)


def _is_portable(sidecar: EngineSidecar) -> bool:
    target = sidecar.target
    return target.hardware_compatible or (sidecar.library != TENSORRT and not target.compute_capabilities)


def _gpu_fits(sidecar: EngineSidecar, gpu: Gpu) -> bool:
    target = sidecar.target
    if _is_portable(sidecar):
        return tuple(int(part) for part in gpu.compute_capability.split(".")) >= LEAST_PORTABLE
    return gpu.compute_capability in target.compute_capabilities and target.gpu in (None, gpu.name)


def _version_fits(sidecar: EngineSidecar, installed: str) -> bool:
    """Tell whether a library opens plans of the sidecar's version: that very one, or a newer one where allowed."""
    built, here = _numbers(sidecar.library_version), _numbers(installed)
    return here >= built if sidecar.target.version_compatible else here == built


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's first four numbers; packages add words such as .post1, libraries don't."""
    return tuple(int(part) for part in re.findall(r"(?:^|\.)([0-9]+)", version)[:4])


def _command(plan: Path, options: str = "") -> str:
    folders = plan.resolve().parents  # BUNDLE/engines/<key>/NAME.plan
    known = len(folders) > 2 and (folders[2] / MANIFEST).is_file()
    bundle = shlex.quote(str(folders[2])) if known else "BUNDLE"
    return " ".join(part for part in ("dra-export engine", bundle, options, "--overwrite") if part)
