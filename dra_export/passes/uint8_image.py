"""The image encoder takes uint8 pixels and normalises them itself, in float32: a quarter of the bytes travels to it.

The last pass: it stands in front of a graph of any precision, so that nothing before it needs to know of it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dra_export.onnx_save import save_onnx
from dra_runtime.preprocess import Preprocess

INPUT = "image"
_NORMALISED = "image_normalised"


def take_uint8(path: Path, preprocess: Preprocess) -> None:
    """Put the normalisation of ``preprocess`` in front of the image encoder in ``path``, in place.

    (pixels / 255 - mean) / std is computed as one product and one difference; it agrees with the preprocessing to
    float32's rounding.
    """
    model = onnx.load(str(path))
    graph = model.graph
    image = next(value for value in graph.input if value.name == INPUT)
    assert image.type.tensor_type.elem_type == TensorProto.FLOAT
    for node in graph.node:
        node.input[:] = [_NORMALISED if name == INPUT else name for name in node.input]
    mean, std = (np.array(values, np.float64).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    names = ("image_scale", "image_shift")
    graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name)
        for name, value in zip(names, (1 / (255 * std), mean / std), strict=True)
    )
    nodes = [
        helper.make_node("Cast", [INPUT], ["image_float"], "image_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["image_float", names[0]], ["image_scaled"], "image_scale"),
        helper.make_node("Sub", ["image_scaled", names[1]], [_NORMALISED], "image_shift"),
    ]
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    image.type.tensor_type.elem_type = TensorProto.UINT8
    save_onnx(model, path)
