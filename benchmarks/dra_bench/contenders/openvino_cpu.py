"""OpenVINO on a CPU, on a bundle's own graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_bench.contenders.graphs import Graphs
from dra_runtime.bundle import Bundle
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError

OPENVINO = "openvino"


def openvino_graphs(encoder: Encoder, threads: int) -> Graphs:
    """Read the graphs of a float32 bundle into OpenVINO, on a number of threads and for the least latency.

    Images have one size, so the image encoder is compiled for each batch when it first comes, which is faster in
    OpenVINO than one model for all batches. Texts are cut to their length, as dra_runtime cuts them: they have many, so
    the text encoder's shapes stay dynamic. Not safe to share between threads.

    Raises
    ------
    BackendError
        OpenVINO isn't installed, or can't read a graph.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"openvino can't be imported ({error}); pip install openvino") from error
    core = openvino.Core()
    bundle = encoder.bundle
    try:
        image = _Graph(core, bundle, "image_encoder", threads, fixed=True)
        # OpenVINO 2026.4 crashes the process on some text encoders, small ones, when it compiles them for one shape
        text = _Graph(core, bundle, "text_encoder", threads, fixed=False)
        compositor = _Graph(core, bundle, "compositor", threads, fixed=False)
    except RuntimeError as error:  # OpenVINO's errors are such
        raise BackendError(f"OpenVINO can't read {bundle.path.name}: {str(error).strip().splitlines()[0]}") from error

    def tokens(texts: Sequence[str]) -> npt.NDArray[np.int32]:
        rows = encoder.tokenize(texts)
        padded = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for padded_row, row in zip(padded, rows, strict=True):
            padded_row[: len(row)] = row
        return padded

    return Graphs(
        OPENVINO,
        "OpenVINO on the float32 bundle's graphs, latency hint, texts cut",
        tokens,
        lambda pixels: image.run({"image": pixels})["image_features"],
        lambda rows: text.run({"tokens": rows})["text_features"],
        lambda image_features, text_features: compositor.run(
            {"image_features": image_features, "text_features": text_features}
        )["query"],
        encoder.image_input,
    )


class _Graph:
    """A graph in OpenVINO: one model for all shapes of its inputs, or with ``fixed`` one for each that comes."""

    def __init__(self, core: Any, bundle: Bundle, name: str, threads: int, fixed: bool) -> None:
        spec = bundle.manifest.graphs[name]
        self._core, self._model, self._fixed = core, core.read_model(bundle.file(spec.file)), fixed
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        shapes = tuple(array.shape for array in inputs.values()) if self._fixed else ()
        if shapes not in self._compiled:
            model = self._model.clone()
            if self._fixed:
                model.reshape({name: list(array.shape) for name, array in inputs.items()})
            self._compiled[shapes] = self._core.compile_model(model, "CPU", self._options)
        outputs = self._compiled[shapes](dict(inputs))
        return {name: outputs[name] for name in self._outputs}
