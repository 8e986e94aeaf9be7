"""Write a bundle from a checkpoint: complete and compared with PyTorch, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dra_export.graphs import graphs_of
from dra_export.onnx_from_model import (
    JOIN_STEPS,
    OPSET,
    TRACE_STEPS,
    Step,
    shape_of,
    write_onnx,
    write_query_onnx,
)
from dra_export.passes.uint8_image import take_uint8
from dra_export.selftest import make_selftest
from dra_runtime.bundle import Bundle, FileEntry, GraphSpec, Manifest, TensorSpec, TokenizerSpec, bundle_id_of
from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import replace_folder, write_json
from dra_runtime.manifest import MANIFEST, SELFTEST, manifest_to_dict, schema_version_of
from dra_runtime.selfcheck import require_selfcheck
from dra_runtime.sessions import ONNXRUNTIME_CPU
from dra_train.checkpoint import Checkpoint
from dra_train.model import DRA
from dra_train.vocabulary import clip_tokenizer

MERGES = "merges.txt"
_DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT32: "int32", onnx.TensorProto.UINT8: "uint8"}


Lower = Callable[[Mapping[str, Path], DRA], dict[str, Any]]  #: float32 graphs on disk -> lower precision, in place


def write_bundle(
    checkpoint: Checkpoint,
    out: Path,
    overwrite: bool = False,
    precision: str = "fp32",
    lower: Lower | None = None,
    image_input: str = "float32",
) -> Bundle:
    """Export a checkpoint to a bundle at ``out``.

    The bundle is made under a temporary name, has to pass its own selftest from disk, and is then renamed. The same
    checkpoint and library versions give the same bundle_id.

    Parameters
    ----------
    checkpoint, out, overwrite
        What is exported, where to, and whether a bundle that stands there is replaced.
    precision, lower
        ``"fp32"``, or the precision that ``lower`` brings the float32 graphs to: it gets their paths, without the
        joined query's, and the model, and returns what the provenance says of it
        (`dra_export.half.bundle_graphs.halve_graphs`, `dra_export.int8.bundle_graphs.quantize_graphs`).
    image_input
        What the image encoder takes: preprocessed ``"float32"`` pixels, or ``"uint8"`` ones that it normalises itself.

    Raises
    ------
    UsageError
        ``out`` exists: as something else than a bundle, or without ``overwrite``; or it can't be written.
    ExportError
        A graph came out wrong.
    SelfCheckError
        The graphs on disk don't reproduce PyTorch's vectors.
    """
    check_target(out, overwrite)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        _fill(work, checkpoint, precision, lower, image_input)
        require_selfcheck(Encoder.open(work, ONNXRUNTIME_CPU))
        replace_folder(work, out)
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error.strerror or error}; choose another place with -o") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Bundle.open(out, integrity="size")


def record_parity(bundle: Bundle, parity: dict[str, Any]) -> Bundle:
    """Write what `verify` measured into the bundle's manifest; its identity stays."""
    manifest = replace(bundle.manifest, parity=parity)
    _write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)


def _fill(folder: Path, checkpoint: Checkpoint, precision: str, lower: Lower | None, image_input: str) -> None:
    model = checkpoint.model
    graphs = graphs_of(model)
    paths = {graph.name: folder / f"{graph.name}.onnx" for graph in graphs}
    parts = {name: path for name, path in paths.items() if name != "query"}
    with progress(1 + TRACE_STEPS * len(parts), "exporting graphs") as advance:
        for graph in graphs:
            if graph.name in parts:
                write_onnx(graph, parts[graph.name], _noted(advance, graph.name))
        advance(1)
    details = {precision: _plain(lower(parts, model))} if lower else {}
    if image_input == "uint8":
        take_uint8(parts["image_encoder"], model.preprocess)
    with progress(3 + JOIN_STEPS, "joining and checking") as advance:
        query = next(graph for graph in graphs if graph.name == "query")
        write_query_onnx(parts, query, paths["query"], _noted(advance, "query"))
        advance(1, "selftest")
        tokenizer = clip_tokenizer(model.text.context_length)
        (folder / MERGES).write_text("".join(f"{merge}\n" for merge in tokenizer.merges), encoding="utf-8")
        np.savez(folder / SELFTEST, allow_pickle=False, **make_selftest(model))
        advance(1, "hashes")
        specs = {name: _graph_spec(path) for name, path in paths.items()}
        files = {path.name: _file_entry(path) for path in sorted(folder.iterdir())}
        advance(1)
    manifest = Manifest(
        bundle_id="",
        precision=precision,
        files=files,
        graphs=specs,
        schema_version=schema_version_of(specs),
        preprocess=model.preprocess,
        tokenizer=TokenizerSpec(
            MERGES, tokenizer.context_length, tokenizer.vocab_size, tokenizer.start_token, tokenizer.end_token
        ),
        dim=model.config.dim,
        provenance={
            "checkpoint": {"sha256": checkpoint.sha256, "provenance": _plain(checkpoint.provenance)},
            "model": _plain(model.config.to_dict()),
            "opset": OPSET,
            "versions": {name: version(name) for name in ("dra-toolkit", "torch", "onnx", "onnxscript")},
            **details,
        },
    )
    _write_manifest(folder, replace(manifest, bundle_id=bundle_id_of(manifest)))


def _noted(advance: Callable[..., None], name: str) -> Step:
    """Return what advances a bar by a step and says what comes next."""
    return lambda note: advance(1, f"{name}: {note}")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_json(folder / MANIFEST, manifest_to_dict(manifest))


def _graph_spec(path: Path) -> GraphSpec:
    graph = onnx.load(str(path)).graph

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(v.name, _DTYPES[v.type.tensor_type.elem_type], shape_of(v)) for v in values)

    return GraphSpec(path.name, specs(graph.input), specs(graph.output))


def _file_entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _plain(values: Any) -> Any:
    """Return ``values`` as JSON would read them back: tuples as lists, so that hashes agree."""
    return json.loads(json.dumps(values))


def check_target(out: Path, overwrite: bool) -> None:
    """Raise UsageError if ``out`` exists and isn't a bundle, or one that may not be replaced."""
    if not out.exists():
        return
    if not (out / MANIFEST).is_file():
        raise UsageError(f"{out} exists and is no bundle; choose another place with -o")
    if not overwrite:
        raise UsageError(f"{out} exists; choose another place with -o, or replace it with --overwrite")
