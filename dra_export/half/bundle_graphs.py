"""Turn a bundle's float32 graphs, on disk, into half precision ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from dra_export.half.repair import half_from_real_inputs
from dra_export.onnx_from_model import check_onnx, shape_of
from dra_export.onnx_save import save_onnx
from dra_export.real_inputs import real_inputs
from dra_runtime.console import progress
from dra_train.data import Dataset
from dra_train.model import DRA


def halve_graphs(paths: Mapping[str, Path], model: DRA, dataset: Dataset) -> dict[str, Any]:
    """Replace the float32 graphs in ``paths`` (without the joined query) by half precision ones.

    Returns what provenance says of them: share of half, headroom, islands and repairs, graph by graph.

    Raises
    ------
    ExportError
        A graph can't be half precision, or came out invalid.
    """
    done = {}
    with progress(len(paths) + 1, "half precision") as advance:
        inputs = real_inputs(paths, model, dataset)
        advance(1)
        for name, path in paths.items():
            source = onnx.load(str(path))
            half = half_from_real_inputs(name, source, inputs[name])
            save_onnx(half.model, path)
            check_onnx(path, *_interface(source))
            done[name] = half.to_dict()
            advance(1)
    return {"checked_on": f"{dataset.name} / {dataset.split}", "graphs": done}


def _interface(model: onnx.ModelProto) -> tuple[dict[str, tuple[int | str, ...]], tuple[str, ...]]:
    return {value.name: shape_of(value) for value in model.graph.input}, tuple(v.name for v in model.graph.output)
