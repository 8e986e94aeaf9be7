"""A plain ONNX export in ONNX Runtime: what PyTorch's own exporter makes of the model, run as its guides show.

Nothing of dra_export or dra_runtime takes part: open_clip's towers and the Combiner are exported as they stand, with
every text padded to 77 tokens and only the batch dynamic.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from dra_bench.contenders.graphs import Graphs
from dra_bench.contenders.pytorch import image_tower, padding_tokenizer
from dra_train.model import DRA

PLAIN, DEFAULTS = "onnxruntime-plain", "onnxruntime-defaults"
BATCH = 2  #: traced with; the exporter would take 1 for a constant


def plain_onnx(model: DRA, folder: Path) -> dict[str, Path]:
    """Export image tower, text tower and Combiner with `torch.onnx.export`; returns their files in ``folder``."""
    size, dim, length = model.preprocess.image_size, model.config.dim, int(model.text.context_length)
    features = (torch.zeros(BATCH, dim), torch.zeros(BATCH, dim))  # one tensor for both would become one input
    parts: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "image": (_ImageTower(model).eval(), (torch.zeros(BATCH, 3, size, size),)),
        "text": (model.text, (torch.ones(BATCH, length, dtype=torch.int64),)),
        "compose": (model.combiner, features),
    }
    return {name: _exported(module, inputs, folder / f"{name}.onnx") for name, (module, inputs) in parts.items()}


def plain_graphs(model: DRA, files: Mapping[str, Path], threads: int) -> Graphs:
    """Open exported graphs on a number of threads, all other options left alone."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return _opened(
        model, files, options, PLAIN, "a plain export (torch.onnx.export, 77 tokens) in ONNX Runtime, as many threads"
    )


def default_graphs(model: DRA, files: Mapping[str, Path]) -> Graphs:
    """Open exported graphs with ONNX Runtime's own choice of threads, and of how they wait."""
    options = onnxruntime.SessionOptions()
    return _opened(model, files, options, DEFAULTS, "the plain export in ONNX Runtime with its default options")


class _ImageTower(nn.Module):
    """An image tower as one module, also where the feature comes from all stages."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return image_tower(self.model, image)


def _exported(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=4096)
    level = logging.getLogger("onnxscript").level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's advice about its own internals
        logging.getLogger("onnxscript").setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                module,
                inputs,
                path,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                external_data=False,
                verbose=False,
            )
        finally:
            logging.getLogger("onnxscript").setLevel(level)
    return path


def _opened(model: DRA, files: Mapping[str, Path], options: Any, name: str, about: str) -> Graphs:
    sessions = {
        part: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for part, path in files.items()
    }
    tokenizer = padding_tokenizer(model)

    def run(part: str, *arrays: Any) -> Any:
        session = sessions[part]
        names = [value.name for value in session.get_inputs()]
        return session.run(None, dict(zip(names, arrays, strict=True)))[0]

    return Graphs(
        name,
        about,
        lambda texts: tokenizer(list(texts)).numpy(),
        lambda pixels: run("image", pixels),
        lambda tokens: run("text", tokens),
        lambda image_features, text_features: run("compose", image_features, text_features),
    )
