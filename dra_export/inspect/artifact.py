"""Say what an artifact is, where it comes from, what was proved of it and where it runs, as plain values."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dra_export.inspect.kind import BUNDLE, CHECKPOINT, GALLERY, ONNX, kind_of
from dra_runtime.bundle import Bundle
from dra_runtime.engine_file import (
    check_host,
    check_plan_bytes,
    read_sidecar,
    rebuild_command,
    runs_on,
    sidecar_to_dict,
)
from dra_runtime.engine_host import Host, this_host
from dra_runtime.errors import BundleError, CheckpointError, EngineError, UsageError
from dra_runtime.gallery_file import bundle_of, read_gallery
from dra_runtime.manifest import MANIFEST, GraphSpec, manifest_to_dict
from dra_runtime.sessions import ONNXRUNTIME_CPU

SHOWN_IDS = 3


def describe(path: Path, host: Host | None = None) -> dict[str, Any]:
    """Describe a checkpoint, bundle, ONNX file, plan or gallery.

    No GPU and no TensorRT is needed, and PyTorch only for a checkpoint. ``host`` is where a plan shall run; default:
    this machine.

    Raises
    ------
    DraError
        It is none of them, or a damaged one.
    """
    kind = kind_of(path)
    size = sum(f.stat().st_size for f in path.iterdir() if f.is_file()) if path.is_dir() else path.stat().st_size
    values = {"kind": kind, "path": str(path), "size": size}
    if kind == CHECKPOINT:
        return values | _checkpoint(path)
    if kind == BUNDLE:
        return values | _bundle(path, host)
    if kind == ONNX:
        from dra_export.inspect.onnx_file import describe_onnx

        return values | describe_onnx(path) | {"bundle": _bundle_around(path), "runs": backends()}
    return values | (_gallery(path) if kind == GALLERY else describe_plan(path, host or this_host()))


def backends() -> dict[str, str | None]:
    """Return the backends that run ONNX graphs with their installed versions, None where one isn't."""
    if importlib.util.find_spec("onnxruntime") is None:
        return {ONNXRUNTIME_CPU: None}
    try:
        return {ONNXRUNTIME_CPU: metadata.version("onnxruntime")}
    except metadata.PackageNotFoundError:  # onnxruntime-gpu and others bring the module under another name
        return {ONNXRUNTIME_CPU: "installed"}


def describe_plan(path: Path, host: Host) -> dict[str, Any]:
    """Describe an engine from its sidecar: whether its file is the one, and whether it runs on ``host``."""
    sidecar = read_sidecar(path)
    problem = ""
    try:
        check_plan_bytes(path, sidecar)
        check_host(path, sidecar, host)
    except EngineError as error:
        problem = str(error).removeprefix(f"{path}: ")
    return {
        "sidecar": sidecar_to_dict(sidecar),
        "runs_on": runs_on(sidecar),
        "runs_here": not problem,
        "why_not": problem,
        "rebuild": rebuild_command(path, sidecar, host),
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what torch raises on files of other programs isn't documented
        raise CheckpointError(
            f"{path}: can't be read as a checkpoint of dra-train; if it holds another program's weights: dra-train "
            f"import {path}"
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found == "dra-train-state":
        beside = path.with_name("ckpt.pt")
        raise UsageError(
            f"{path}: no artifact: a run's unfinished state, which dra-train fit goes on from; did you mean {beside}?"
        )
    if found != "dra-checkpoint":
        raise CheckpointError(
            f"{path}: no checkpoint of dra-train; if it holds another program's weights: dra-train import {path}"
        )
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(content.get(k), dict) for k in ("config", "provenance")):
        raise CheckpointError(f"{path}: a damaged checkpoint; train or import it again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "version": content.get("version"),
        "sha256": digest,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "weights": sorted({str(t.dtype).removeprefix("torch.") for t in weights.values() if t.is_floating_point()}),
        "config": content["config"],
        "provenance": content["provenance"],
    }


def _bundle(path: Path, host: Host | None) -> dict[str, Any]:
    bundle = Bundle.open(path, integrity="size")
    values = manifest_to_dict(bundle.manifest)
    graphs = {
        name: {**_spec(graph), "size": bundle.manifest.files[graph.file].size}
        for name, graph in bundle.manifest.graphs.items()
    }
    kept = ("schema_version", "bundle_id", "precision", "preprocess", "tokenizer", "embedding", "provenance", "parity")
    return {
        **{key: values[key] for key in kept},
        "graphs": graphs,
        "runs": backends(),
        "engines": _engines(path, host),
    }


def _engines(path: Path, host: Host | None) -> list[dict[str, Any]]:
    plans = sorted((path / "engines").glob("*/*.plan"))
    host = (host or this_host()) if plans else host
    found = []
    for plan in plans:
        assert host is not None
        name = plan.relative_to(path / "engines").as_posix()
        try:
            sidecar = read_sidecar(plan)
        except EngineError as error:
            found.append({"name": name, "runs_on": "", "runs_here": False, "why_not": str(error)})
            continue
        problem = ""
        try:  # not the plan's hash: a bundle holds gigabytes of them, and `inspect PLAN` compares it
            if sidecar.bundle_id != Bundle.open(path, integrity="size").manifest.bundle_id:
                raise EngineError(
                    f"{plan}: built from another bundle; build it again: {rebuild_command(plan, sidecar)}"
                )
            check_host(plan, sidecar, host)
        except EngineError as error:
            problem = str(error).removeprefix(f"{plan}: ")
        found.append({"name": name, "runs_on": runs_on(sidecar), "runs_here": not problem, "why_not": problem})
    return found


def _gallery(path: Path) -> dict[str, Any]:
    header, vectors = read_gallery(path, integrity="size")
    place = bundle_of(path)
    try:
        there = "there" if Bundle.open(place, integrity="size").manifest.bundle_id == header.bundle_id else "another"
    except BundleError:
        there = "missing"
    return {
        "images": header.count,
        "dim": header.dim,
        "storage": header.storage,
        "index": None if header.index is None else dataclasses.asdict(header.index),
        "tokens": header.tokens,
        "metadata": list(header.keys),
        "ids": list(vectors.ids[:SHOWN_IDS]),
        "bundle_id": header.bundle_id,
        "bundle": str(place),
        "bundle_found": there,
    }


def _bundle_around(path: Path) -> Mapping[str, str] | None:
    """Return the bundle whose graph a file is, if there is one."""
    if not (path.parent / MANIFEST).is_file():
        return None
    try:
        manifest = Bundle.open(path.parent, integrity="size").manifest
    except BundleError:
        return None
    graphs = [name for name, graph in manifest.graphs.items() if graph.file == path.name]
    if not graphs:
        return None
    return {"graph": graphs[0], "precision": manifest.precision, "bundle_id": manifest.bundle_id}


def _spec(graph: GraphSpec) -> dict[str, Any]:
    return {
        side: [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors]
        for side, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs))
    }
