"""An image tower in INT8: calibrated, with its most sensitive blocks in float32 as far as recall asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from dra_export.int8.calibrate import Extremes, extremes_of
from dra_export.int8.dynamic import dynamic_int8
from dra_export.int8.graph import Block, blocks_of
from dra_export.int8.measure import Array, cosines, image_features
from dra_export.int8.session import open_session
from dra_export.int8.static import Ranges, quantized_tensors, static_int8
from dra_runtime.console import progress
from dra_runtime.preprocess import Preprocess

# The range of a tensor from its extremes on every image: the share of images whose extremes it holds.
METHODS = {"largest": 1.0, "99 % of images": 0.99, "90 % of images": 0.9}


@dataclass(frozen=True)
class Tower:
    """What is needed to quantise an image tower in any of its blocks; without blocks it is quantised dynamically."""

    model: onnx.ModelProto
    blocks: tuple[Block, ...]
    ranges: Ranges
    method: str  #: how the ranges were found: a key of `METHODS`, or "dynamic"
    tried: dict[str, float]  #: mean cosine of image_features with float32's, by method

    def int8(self, float32_blocks: Sequence[Block] = ()) -> onnx.ModelProto:
        """Return the tower in INT8 with some blocks in float32."""
        if not self.blocks:
            return dynamic_int8(self.model)
        return static_int8(self.model, self.ranges, _outputs([b for b in self.blocks if b not in float32_blocks]))


def calibrated_tower(
    model: onnx.ModelProto, calibration: Sequence[Path], probes: Sequence[Path], preprocess: Preprocess, threads: int
) -> Tower:
    """Find the ranges of a convolutional tower's activations on images.

    The method is the one whose image_features are nearest to float32's on ``probes``, other images. A tower that
    multiplies matrices rather than maps (a vision transformer) has no ranges.
    """
    blocks = blocks_of(model.graph)
    if _count(model, ("Conv",)) <= _count(model, ("MatMul", "Gemm")):
        return Tower(model, (), {}, "dynamic", {})
    extremes = extremes_of(model, quantized_tensors(model.graph), calibration, preprocess, threads)
    reference = _features(model, probes, preprocess, threads)
    tried = {}
    for method, share in METHODS.items():
        int8 = static_int8(model, ranges_of(extremes, share), _outputs(blocks))
        tried[method] = cosines(_features(int8, probes, preprocess, threads), reference)["mean"]
    best = max(tried, key=lambda method: tried[method])
    return Tower(model, blocks, ranges_of(extremes, METHODS[best]), best, tried)


def ranges_of(extremes: Extremes, share: float) -> Ranges:
    """Return ranges that hold the extremes of this share of the images, from 0 to 1."""
    low = np.quantile(extremes.low, 1 - share, axis=0)
    high = np.quantile(extremes.high, share, axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(extremes.names, low, high, strict=True)}


def by_sensitivity(
    tower: Tower, probes: Sequence[Path], preprocess: Preprocess, threads: int
) -> list[tuple[Block, float]]:
    """Order the blocks by what each alone in INT8 takes from the mean cosine of image_features, worst first."""
    reference = _features(tower.model, probes, preprocess, threads)
    losses = []
    with progress(len(tower.blocks), "INT8: sensitive blocks") as advance:
        for block in tower.blocks:
            alone = static_int8(tower.model, tower.ranges, block.outputs)
            mean = cosines(_features(alone, probes, preprocess, threads), reference)["mean"]
            losses.append((block, round(1 - mean, 6)))
            advance(1)
    return sorted(losses, key=lambda pair: -pair[1])


def _features(model: onnx.ModelProto, images: Sequence[Path], preprocess: Preprocess, threads: int) -> Array:
    session = open_session(model.SerializeToString(), threads)
    return image_features(session, images, preprocess, threads, "INT8: probing images")


def _outputs(blocks: Sequence[Block]) -> list[str]:
    return [output for block in blocks for output in block.outputs]


def _count(model: onnx.ModelProto, kinds: Sequence[str]) -> int:
    constants = {tensor.name for tensor in model.graph.initializer}
    return sum(node.op_type in kinds and node.input[1] in constants for node in model.graph.node)
