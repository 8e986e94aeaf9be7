"""Make a graph half precision and keep it right: measure on real inputs, and widen the float32 islands until it is.

The ladder: the islands that every model gets; float32 for every value that comes near half's largest number; and where
the vectors still differ too much, bisection with real activations finds the nodes that cause it, and they become
float32. What was done is said in `HalfGraph.repairs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from dra_export.half.convert import (
    HALF_MAX,
    Islands,
    first_islands,
    group_islands,
    half_from_float,
    half_share,
)
from dra_export.half.emulation import emulation_from_half
from dra_export.half.headroom import Inputs, largest_activations
from dra_export.onnx_from_model import ExportError
from dra_export.onnx_graph import consumers_of
from dra_export.onnx_session import open_model

LEAST_TIMES = 4.0  #: headroom: other images may excite a value a few times as much as those that were measured
LEAST_COSINE = 0.9995  #: on the measured pairs; verify asks for 0.999 on many more
LEAST_SHARE = 0.8  #: of half tensors; a graph with less did not come out as half precision
_BLOCK = 4  #: nodes that bisection doesn't split any more
_ROUNDS = 12

Outputs = list[npt.NDArray[np.float32]]


@dataclass
class HalfGraph:
    """A graph in half precision and what it took."""

    model: onnx.ModelProto
    islands: Islands
    largest: float  #: the largest absolute value that is held in half, on the measured inputs
    tensor: str  #: and which one it is
    min_cosine: float  #: the smallest between emulated half and float32, over the measured inputs and all outputs
    repairs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest, rounded so that another machine's rounding gives the same ones."""
        return {
            "half_share": round(half_share(self.model), 3),
            "headroom": {
                "largest": float(f"{self.largest:.3g}"),
                "tensor": self.tensor,
                "times": float(f"{HALF_MAX / max(self.largest, 1e-30):.3g}"),
            },
            "islands": group_islands(self.islands),
            "repairs": self.repairs,
        }


def half_from_real_inputs(name: str, model: onnx.ModelProto, batches: Sequence[Inputs]) -> HalfGraph:
    """Convert a float32 graph, checked on real inputs by emulation (`dra_export.half.emulation`).

    Raises
    ------
    ExportError
        Its vectors can't be kept, or not with at least `LEAST_SHARE` of its tensors in half.
    """
    islands, repairs = first_islands(model), list[str]()
    largest = largest_activations(model, batches)
    _leave_headroom(model, largest, islands, repairs)
    reference = _run(model, batches)
    for _ in range(_ROUNDS):
        half = half_from_float(model, islands)
        cosines = _cosines(_run(emulation_from_half(half), batches), reference)
        if cosines.min() >= LEAST_COSINE:
            break
        worst = int(cosines.argmin())
        guilty = _guilty_nodes(model, islands, [batches[worst]], [reference[worst]])
        islands |= dict.fromkeys(guilty, "found by bisection")
        repairs.append(f"cosine {cosines.min():.5f}: {', '.join(guilty)} made float32, found by bisection")
    else:
        raise ExportError(
            f"{name} can't be half precision: after {_ROUNDS} repairs its cosine with float32 is "
            f"{cosines.min():.5f}, expected at least {LEAST_COSINE}; export it with --precision fp32"
        )
    share = half_share(half)
    if share < LEAST_SHARE:
        raise ExportError(
            f"{name} came out with {share:.0%} of its tensors in half, expected at least {LEAST_SHARE:.0%} "
            f"({'; '.join(repairs) or 'nothing was repaired'}); export it with --precision fp32"
        )
    held = _held_in_half(model, islands, largest)
    tensor = max(held, key=lambda value: held[value])
    return HalfGraph(half, islands, held[tensor], tensor, float(cosines.min()), repairs)


def _leave_headroom(model: onnx.ModelProto, largest: dict[str, float], islands: Islands, repairs: list[str]) -> None:
    """Keep every value float32 that half may not hold: the node that gives it, and all that take it."""
    consumers = consumers_of(model.graph)
    producers = {name: node for node in model.graph.node for name in node.output}
    for tensor, value in largest.items():
        if value * LEAST_TIMES <= HALF_MAX:
            continue
        around = [*([producers[tensor]] if tensor in producers else []), *consumers[tensor]]
        names = [node.name for node in around if node.name not in islands]
        islands |= dict.fromkeys(names, f"activations up to {value:.3g}")
        if names:
            repairs.append(f"{tensor} reaches {value:.3g}, beyond half's safe range: {', '.join(names)} made float32")


def _held_in_half(model: onnx.ModelProto, islands: Islands, largest: dict[str, float]) -> dict[str, float]:
    names = {name for node in model.graph.node if node.name not in islands for name in (*node.input, *node.output)}
    return {tensor: value for tensor, value in largest.items() if tensor in names} or {"": 0.0}


def _guilty_nodes(
    model: onnx.ModelProto, islands: Islands, batches: Sequence[Inputs], reference: Sequence[Outputs]
) -> list[str]:
    """Return a few nodes whose half precision alone spoils the vectors, or the worst few where none does alone."""

    def cosine(nodes: Sequence[str]) -> float:
        """Measure with only ``nodes`` in half."""
        others = {node.name: "not under test" for node in model.graph.node if node.name not in nodes}
        half = half_from_float(model, {**others, **islands})
        return float(_cosines(_run(emulation_from_half(half), batches), reference).min())

    suspects = [node.name for node in model.graph.node if node.name not in islands]
    while len(suspects) > _BLOCK:
        middle = len(suspects) // 2
        suspects = min((suspects[:middle], suspects[middle:]), key=cosine)
    return suspects


def _run(model: onnx.ModelProto, batches: Sequence[Inputs]) -> list[Outputs]:
    session = open_model(model)
    return [session.run(None, inputs) for inputs in batches]


def _cosines(found: Sequence[Outputs], reference: Sequence[Outputs]) -> npt.NDArray[np.float64]:
    """Return the smallest cosine of each batch, over its rows and outputs; NaN and infinity count as -1."""
    smallest = []
    for ours, theirs in zip(found, reference, strict=True):
        rows = []
        for a, b in zip(ours, theirs, strict=True):
            x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                rows.append((x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)))
        cosines = np.concatenate(rows)
        smallest.append(np.where(np.isfinite(cosines), cosines, -1.0).min())
    return np.array(smallest)
