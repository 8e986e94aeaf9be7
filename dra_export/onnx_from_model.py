"""Trace a model's graphs to ONNX and check each file before anybody else sees it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch

from dra_export.graphs import BATCH, LENGTH, Graph
from dra_export.onnx_save import save_onnx
from dra_export.passes.dot_product import translations
from dra_export.passes.rewrite import rewritten
from dra_runtime.errors import DraError

# Chosen by scripts/compare_opsets.py: the first opset in which GELU is one operator. 18 and 19 write it out and are
# slower in ONNX Runtime, 21 to 23 are no faster beyond a few percent of the smallest graph, and TensorRT-RTX builds all
# six, in float32 and in half. The lowest of the good ones runs in most places.
OPSET = 20
# Traced with sizes that occur nowhere else in the models, and not 1, which the tracer would take for a constant.
TRACE_BATCH, TRACE_LENGTH = 3, 11

QUERY_PARTS = ("image_encoder", "text_encoder", "compositor")
TRACE_STEPS, JOIN_STEPS = 3, 5  #: how often `write_onnx` and `write_query_onnx` call ``step``
Step = Callable[[str], None]


class ExportError(DraError):
    """A graph that came out wrong: a fixed axis, an invalid file, a missing input."""


def no_step(note: str) -> None:
    """Show no progress."""


def write_onnx(graph: Graph, path: Path, step: Step = no_step, opset: int = OPSET) -> None:
    """Trace ``graph`` in float32, rewritten as `dra_export.passes` says, and write it to ``path``, checked.

    ``step`` is called `TRACE_STEPS` times, with what comes next.
    """
    axes = {
        BATCH: torch.export.Dim(BATCH, min=1, max=4096),
        LENGTH: torch.export.Dim(LENGTH, min=2, max=graph.max_length),
    }
    dynamic_shapes = tuple(
        {i: axes[axis] for i, axis in enumerate(shape) if isinstance(axis, str)} for shape in graph.inputs.values()
    )
    with _quiet():
        step("tracing")
        program = torch.onnx.export(
            rewritten(graph.module),
            graph.example(TRACE_BATCH, TRACE_LENGTH),
            dynamo=True,
            dynamic_shapes=dynamic_shapes,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            opset_version=opset,
            external_data=False,
            verbose=False,
            custom_translation_table=translations(),
        )
        assert program is not None
        step("writing")
        model = program.model_proto
    _forget_origins(model)
    save_onnx(model, path)
    del program, model
    step("checking")
    check_onnx(path, graph.inputs, graph.outputs)


def write_query_onnx(parts: Mapping[str, Path], graph: Graph, path: Path, step: Step = no_step) -> None:
    """Join image encoder, text encoder and compositor into ``path``, the whole query as one graph.

    Joined rather than traced again: it is faster and holds the very weights of the parts. Tensors meet by the names
    of the parts' inputs and outputs; all other names get the part's in front. ``step`` is called `JOIN_STEPS` times.
    """
    joined = onnx.ModelProto(ir_version=1, graph=onnx.GraphProto(name="query"))
    for name in QUERY_PARTS:
        step(name)
        _append(joined, onnx.load(str(parts[name])), name)
    for values in (joined.graph.input, joined.graph.output):
        kept = {value.name: value for value in values}
        wanted = [kept[name] for name in (graph.inputs if values is joined.graph.input else graph.outputs)]
        del values[:]
        values.extend(wanted)
    _remove_unused(joined.graph)
    step("writing")
    save_onnx(joined, path)
    del joined
    step("checking")
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


def _forget_origins(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes of our source: stack traces, with the folders and lines of this machine.

    With them a bundle's identity would change with the place of the installation, and with a comment in our code.
    """
    for part in (model, model.graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for noted in (*model.graph.node, *model.graph.initializer, *values, *model.functions):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")


def _append(joined: onnx.ModelProto, part: onnx.ModelProto, name: str) -> None:
    """Move the nodes and weights of ``part`` into ``joined``, names behind ``name/`` but at the part's ends."""
    graph = part.graph
    ends = {value.name for value in (*graph.input, *graph.output)} | {""}  # an optional input may be left out
    assert not part.functions
    assert not graph.sparse_initializer
    for node in graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute)
        node.name = f"{name}/{node.name}"
        for names in (node.input, node.output):
            names[:] = [x if x in ends else f"{name}/{x}" for x in names]
    for values in (graph.initializer, graph.value_info):
        for value in values:
            value.name = f"{name}/{value.name}"
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = f"{name}/{annotation.tensor_name}"
    joined.ir_version = max(joined.ir_version, part.ir_version)
    versions = {opset.domain: opset.version for opset in joined.opset_import}
    for opset in part.opset_import:
        assert versions.get(opset.domain, opset.version) == opset.version
    joined.opset_import.extend(opset for opset in part.opset_import if opset.domain not in versions)
    joined.graph.MergeFrom(
        onnx.GraphProto(node=graph.node, value_info=graph.value_info, input=graph.input, output=graph.output)
    )
    joined.graph.initializer.extend(graph.initializer)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and weights that no output depends on, such as what computes the image's tokens."""
    needed = {value.name for value in graph.output}
    for i in reversed(range(len(graph.node))):
        if needed.intersection(graph.node[i].output):
            needed.update(graph.node[i].input)
        else:
            del graph.node[i]
    for values in (graph.initializer, graph.value_info):
        for i in reversed(range(len(values))):
            if values[i].name not in needed:
                del values[i]


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
