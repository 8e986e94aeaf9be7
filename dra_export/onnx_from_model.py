"""Trace a model's graphs to ONNX and check each file before anybody else sees it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.compose
import torch

from dra_export.graphs import BATCH, LENGTH, Graph
from dra_runtime.errors import DraError

OPSET = 20
# Traced with sizes that occur nowhere else in the models, and not 1, which the tracer would take for a constant.
TRACE_BATCH, TRACE_LENGTH = 3, 11


class ExportError(DraError):
    """A graph that came out wrong: a fixed axis, an invalid file, a missing input."""


def write_onnx(graph: Graph, path: Path) -> None:
    """Trace ``graph`` in float32 and write it to ``path``, checked by `check_onnx`."""
    axes = {
        BATCH: torch.export.Dim(BATCH, min=1, max=4096),
        LENGTH: torch.export.Dim(LENGTH, min=2, max=graph.max_length),
    }
    dynamic_shapes = tuple(
        {i: axes[axis] for i, axis in enumerate(shape) if isinstance(axis, str)} for shape in graph.inputs.values()
    )
    with _quiet():
        program = torch.onnx.export(
            graph.module.eval(),
            graph.example(TRACE_BATCH, TRACE_LENGTH),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    _forget_origins(path)
    check_onnx(path, graph.inputs, graph.outputs)


def write_query_onnx(parts: Mapping[str, Path], graph: Graph, path: Path) -> None:
    """Join image encoder, text encoder and compositor into ``path``, the whole query as one graph.

    Joined rather than traced again: it is faster and holds the very weights of the parts.
    """
    image, text, compositor = (
        onnx.compose.add_prefix(onnx.load(parts[name]), f"{name}/")
        for name in ("image_encoder", "text_encoder", "compositor")
    )
    model = onnx.compose.merge_models(
        image,
        compositor,
        io_map=[("image_encoder/image_features", "compositor/image_features")],
        outputs=["compositor/query"],
    )
    model = onnx.compose.merge_models(
        text, model, io_map=[("text_encoder/text_features", "compositor/text_features")], outputs=["compositor/query"]
    )
    _rename(model, {"image_encoder/image": "image", "text_encoder/tokens": "tokens", "compositor/query": "query"})
    _order_inputs(model, list(graph.inputs))
    onnx.save(model, path)
    check_onnx(path, graph.inputs, graph.outputs)


def check_onnx(path: Path, inputs: Mapping[str, tuple[int | str, ...]], outputs: tuple[str, ...]) -> None:
    """Raise ExportError unless the file is valid ONNX with the promised names and symbolic axes."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error
    model = onnx.load(str(path), load_external_data=False)
    found = {value.name: shape_of(value) for value in model.graph.input}
    if found != dict(inputs):
        raise ExportError(f"{path.name} takes {found}, expected {dict(inputs)}; an axis that should vary was fixed")
    for value in model.graph.output:
        if shape_of(value)[:1] != (BATCH,):
            raise ExportError(f"{path.name} gives {value.name} {shape_of(value)}; its first axis must be {BATCH!r}")
    if tuple(value.name for value in model.graph.output) != outputs:
        raise ExportError(f"{path.name} gives {[v.name for v in model.graph.output]}, expected {list(outputs)}")


def shape_of(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    """Return a graph input's or output's shape: numbers, and names for the symbolic axes."""
    return tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)


def _forget_origins(path: Path) -> None:
    """Take out what the exporter notes of our source: stack traces, with the folders and lines of this machine.

    With them a bundle's identity would change with the place of the installation, and with a comment in our code.
    """
    model = onnx.load(str(path))
    for part in (model, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for noted in (*model.graph.node, *model.graph.initializer, *values, *model.functions):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    path.write_bytes(model.SerializeToString(deterministic=True))


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        value.name = names.get(value.name, value.name)
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = axis.dim_param.rsplit("/", 1)[-1]
    for node in model.graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name)


def _order_inputs(model: onnx.ModelProto, order: list[str]) -> None:
    inputs = sorted(model.graph.input, key=lambda value: order.index(value.name))
    del model.graph.input[:]
    model.graph.input.extend(inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's advice about its own internals; its errors are exceptions."""
    names = ["torch.onnx", "onnxscript", "onnx_ir"]
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
