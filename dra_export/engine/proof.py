"""Proof of precision: what a parsed network computes in, tensor by tensor, and why what isn't half is float32.

In a strongly typed network the engine computes in the types that stand there, so the proof needs no GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dra_export.engine.tensorrt_api import Layer
from dra_runtime.engine_file import Inspected, Island, Proof
from dra_runtime.errors import PrecisionError

LEAST_HALF = 0.8  #: share of half among floating-point tensors outside the islands, and among products
UNDECLARED = "not declared by the bundle"

# They move or convert what others computed, or hold weights
_UNCOUNTED = {"CAST", "CONSTANT", "IDENTITY", "SHAPE", "SHUFFLE"}
_PRODUCTS = {"CONVOLUTION", "DECONVOLUTION", "EINSUM", "MATRIX_MULTIPLY"}
# Where a bundle doesn't say which nodes are islands, these are ones by their nature
_BY_NATURE = {"SOFTMAX": "softmax", "NORMALIZATION": "norm", "REDUCE": "reduction"}

PARTS = ("image_encoder", "text_encoder", "compositor")  #: of the graph query, and the prefixes of its nodes


def declared_islands(provenance: Mapping[str, Any], graph: str) -> dict[str, str] | None:
    """Return the float32 nodes that a bundle's fp16 conversion declares for a graph, with their reasons.

    None where the bundle declares nothing. The graph ``query`` has its parts' islands where it has none of its own.
    """
    graphs = provenance.get("fp16", {}).get("graphs", {})
    if graph in graphs:
        return {node: str(i["reason"]) for i in graphs[graph].get("islands", []) for node in i["nodes"]}
    if graph == "query" and all(part in graphs for part in PARTS):
        return {
            f"{part}/{node}": reason
            for part in PARTS
            for node, reason in (declared_islands(provenance, part) or {}).items()
        }
    return None


def proof_of(layers: Iterable[Layer], half: bool, declared: Mapping[str, str] | None = None) -> Proof:
    """Count what the layers of a network compute in.

    Parameters
    ----------
    layers
        All layers of the network.
    half
        Whether it shall be half; if not, everything would be an island, and none is listed.
    declared
        The nodes that stay float32 on purpose, with their reasons; None: softmax, norms and reductions.
    """
    halves = singles = half_products = single_products = 0
    islands: dict[tuple[str, str], list[str]] = {}
    for layer in layers:
        if layer.op in _UNCOUNTED:
            continue
        these_halves, these_singles = layer.dtypes.count("half"), layer.dtypes.count("float")
        halves, singles = halves + these_halves, singles + these_singles
        if layer.op in _PRODUCTS:
            half_products, single_products = half_products + these_halves, single_products + these_singles
        if these_singles and half:
            reason = (_BY_NATURE.get(layer.op) if declared is None else declared.get(layer.node)) or UNDECLARED
            islands.setdefault((layer.op, reason), []).extend([layer.name] * these_singles)
    return Proof(
        half_tensors=halves,
        float_tensors=singles,
        half_products=half_products,
        float_products=single_products,
        islands=tuple(Island(op, reason, tuple(names)) for (op, reason), names in sorted(islands.items())),
    )


def require_half(proof: Proof, graph: str) -> None:
    """Require that a network which was asked for in half came out as half.

    At least 80 % of the floating-point tensors outside the declared islands must be half, and of the products, islands
    or not: a network whose matrix products are float32 gains nothing.

    Raises
    ------
    PrecisionError
        It didn't.
    """
    undeclared = sum(len(island.layers) for island in proof.islands if island.reason == UNDECLARED)
    for what, half, single in (
        ("tensors outside its float32 islands", proof.half_tensors, undeclared),
        ("convolutions and matrix products", proof.half_products, proof.float_products),
    ):
        share = half / (half + single) if half + single else 1.0
        if share < LEAST_HALF or not proof.half_tensors:
            raise PrecisionError(
                f"{graph}: precision fp16 was asked for, and {share:.0%} of the {what} are half, expected at least "
                f"{LEAST_HALF:.0%}; no plan was written: convert the bundle again with dra-export onnx --precision fp16"
            )


def require_half_layers(inspected: Inspected, graph: str) -> None:
    """Raise PrecisionError if the built engine, as the inspector tells it, holds no half layer at all.

    A fused layer has one type for many tensors, so that shares of layers can't be judged more finely.
    """
    if not inspected.half:
        raise PrecisionError(
            f"{graph}: precision fp16 was asked for, and none of the engine's {inspected.single} floating-point layers "
            "is half; no plan was written: try another version of the library"
        )
