"""Write a model repository for NVIDIA's Triton Inference Server from a bundle: complete, or not at all.

    composed_query    image bytes and text -> query: dra_runtime's preprocessing and tokenizer, then the models below
    image_encoder, text_encoder, compositor, reranker    the bundle's graphs, in the backend that was asked for

Each folder holds all that its model needs, so that it can be moved, and loaded from where servers load models.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from dra_export.triton.config import ANY, ModelConfig, Tensor, Warmup, config_text
from dra_export.triton.engines import Engine, engines_of
from dra_export.triton.warmup import Sample, warmup_files, warmup_samples
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import replace_folder
from dra_runtime.manifest import MANIFEST, GraphSpec, TensorSpec
from dra_runtime.selfcheck import require_selfcheck
from dra_runtime.sessions import ONNXRUNTIME_CPU

PYTHON, ONNXRUNTIME, TENSORRT = BACKENDS = ("python", "onnxruntime", "tensorrt")
GRAPHS = ("image_encoder", "text_encoder", "compositor", "reranker")
MAX_BATCH = 16
COMPOSED_QUERY = "composed_query"
CONFIG = "config.pbtxt"
VERSION = "1"  #: of every model; a server that finds a higher one beside it takes that


@dataclass(frozen=True)
class RepositoryOptions:
    """How the models are served.

    ``max_batch`` None: 16, or what the engines take. ``engines``: the folder below BUNDLE/engines, for TensorRT.
    """

    backend: str = PYTHON
    instances: int = 1
    max_batch: int | None = None
    engines: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise UsageError(f"the backend is {self.backend!r}; give one of {', '.join(BACKENDS)}")
        if self.engines is not None and self.backend != TENSORRT:
            raise UsageError(f"engines are for the backend tensorrt, not for {self.backend}; leave --engines out")
        for name, value in (("instances", self.instances), ("max_batch", self.max_batch)):
            if value is not None and not 1 <= value <= 4096:
                raise UsageError(f"{name} is {value}; give a number from 1 to 4096")


@dataclass(frozen=True)
class Served:
    """One model of a repository."""

    name: str
    backend: str
    max_batch: int
    size: int  #: bytes of its files


def write_repository(
    bundle: Path, out: Path, options: RepositoryOptions | None = None, overwrite: bool = False
) -> list[Served]:
    """Write a model repository at ``out``; the bundle has to pass its selftest first.

    Raises
    ------
    UsageError
        ``out`` exists: as something else than a model repository of ours, or without ``overwrite``; it can't be
        written; the options don't fit the bundle's engines.
    BundleError, SelfCheckError
        The bundle can't be used, or doesn't reproduce PyTorch's vectors here.
    EngineError
        An engine can't be served.
    """
    _check_target(out, overwrite)
    encoder = Encoder.open(bundle, ONNXRUNTIME_CPU)
    require_selfcheck(encoder)
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        served = _fill(work, encoder, options or RepositoryOptions())
        replace_folder(work, out)
    except OSError as error:
        raise UsageError(f"{out} can't be written: {error.strerror or error}; choose another place with -o") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return served


def _fill(folder: Path, encoder: Encoder, options: RepositoryOptions) -> list[Served]:
    bundle = encoder.bundle
    manifest = bundle.manifest
    graphs = [name for name in GRAPHS if name in manifest.graphs]
    engines = engines_of(bundle, graphs, options.engines) if options.backend == TENSORRT else {}
    max_batch = _max_batch(options.max_batch, engines)
    samples = warmup_samples(encoder)
    front = _python_model(
        COMPOSED_QUERY,
        (Tensor("image", "bytes", (1,)), Tensor("text", "bytes", (1,))),
        (Tensor("query", "float32", (manifest.dim,)),),
    )
    parts = [_graph_model(name, manifest.graphs[name], options.backend, engines.get(name)) for name in graphs]
    served = []
    for model in (front, *parts):
        version = folder / model.name / VERSION
        version.mkdir(parents=True)
        shutil.copyfile(bundle.path / MANIFEST, version / MANIFEST)
        if model.backend == PYTHON:
            template = files("dra_export.triton.models").joinpath("model.py")
            (version / "model.py").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
        if model is front:
            shutil.copyfile(bundle.file(manifest.tokenizer.merges), version / manifest.tokenizer.merges)
        elif engine := engines.get(model.name):
            shutil.copyfile(engine.plan, version / "model.plan")
        else:
            shutil.copyfile(bundle.file(manifest.graphs[model.name].file), version / "model.onnx")
        # The front has none: it asks the other models, which may still be loading.
        warmups = _write_warmups(folder / model.name, samples[model.name], max_batch) if model is not front else ()
        config = replace(model, max_batch=max_batch, instances=options.instances, warmups=warmups)
        (folder / model.name / CONFIG).write_text(config_text(config), encoding="utf-8")
        served.append(Served(model.name, model.backend, max_batch, _size(folder / model.name)))
    return served


def _max_batch(wanted: int | None, engines: Mapping[str, Engine]) -> int:
    """Return the largest batch: 16 unless asked otherwise, and no more than every engine takes."""
    most = min((engine.max_batch for engine in engines.values()), default=None)
    if most is None:
        return wanted or MAX_BATCH
    if wanted is not None and wanted > most:
        raise UsageError(f"max_batch is {wanted}, and the engines take at most {most}; build them with --max {wanted}")
    return wanted or min(MAX_BATCH, most)


def _python_model(name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> ModelConfig:
    return ModelConfig(name, PYTHON, inputs, outputs, parameters={"model": name})


def _graph_model(name: str, spec: GraphSpec, backend: str, engine: Engine | None) -> ModelConfig:
    inputs, outputs = (tuple(map(_tensor, specs)) for specs in (spec.inputs, spec.outputs))
    if backend == PYTHON:
        return _python_model(name, inputs, outputs)
    profiles = tuple(range(engine.profiles)) if engine else ()
    return ModelConfig(name, backend, inputs, outputs, gpu=True, profiles=profiles)


def _tensor(spec: TensorSpec) -> Tensor:
    """Return a graph's input or output as Triton sees it: without its batch."""
    return Tensor(spec.name, spec.dtype, tuple(ANY if isinstance(size, str) else size for size in spec.shape[1:]))


def _write_warmups(folder: Path, samples: tuple[Sample, Sample], max_batch: int) -> tuple[Warmup, ...]:
    warmups, contents = warmup_files(samples, max_batch)
    (folder / "warmup").mkdir()
    for name, content in contents.items():
        (folder / "warmup" / name).write_bytes(content)
    return warmups


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not (out / COMPOSED_QUERY / CONFIG).is_file():
        raise UsageError(f"{out} exists and is no model repository of dra-export triton; choose another place with -o")
    if not overwrite:
        raise UsageError(f"{out} exists; choose another place with -o, or replace it with --overwrite")
