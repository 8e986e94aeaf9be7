"""Every family of image towers exports, and its graph agrees with PyTorch at batch sizes that it wasn't traced with."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from dra_export.graphs import Graph, graphs_of
from dra_export.onnx_from_model import write_onnx
from dra_runtime.preprocess import Preprocess
from dra_train.backbones import model_config, untrained_model
from dra_train.model import DRA, DRAConfig
from dra_train.weights import set_quick_gelu

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def timm_model(name: str) -> DRA:
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    return untrained_model(
        DRAConfig({"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}, Preprocess(160)), seed=3
    )


def quick(model: DRA) -> DRA:
    set_quick_gelu(model, True)
    return model


FAMILIES = {
    "resnet": lambda: untrained_model(model_config("tiny-resnet"), seed=3),
    "resnet, all stages": lambda: untrained_model(model_config("tiny-resnet", image_stages="all"), seed=3),
    "vit": lambda: untrained_model(model_config("tiny-vit"), seed=3),
    "vit, QuickGELU": lambda: quick(untrained_model(model_config("tiny-vit"), seed=3)),
    "timm cnn": lambda: timm_model("test_efficientnet"),
    "timm vit": lambda: timm_model("test_vit"),
    "timm convnext": lambda: timm_model("test_convnext"),
    "timm swin": lambda: untrained_model(model_config("timm/swin_tiny_patch4_window7_224", tac_layers=1), seed=3),
}
FAST = (
    "resnet, all stages",
    "vit, QuickGELU",
    "timm cnn",
    "timm vit",
)  # the others' graphs are in tiny_bundle, or the same operators


def graph_of(model: DRA, name: str) -> Graph:
    return next(graph for graph in graphs_of(model) if graph.name == name)


def assert_agrees(graph: Graph, path: Path, batches: tuple[int, ...]) -> None:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in batches:
        inputs = graph.example(batch, 5, seed=batch)
        with torch.inference_mode():
            outputs = graph.module(*inputs)
        expected = outputs if isinstance(outputs, tuple) else (outputs,)
        named = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        for got, wanted in zip(session.run(None, named), expected, strict=True):
            scale = float(wanted.std())
            np.testing.assert_allclose(got / scale, wanted.numpy() / scale, rtol=0, atol=1e-4)
            assert (
                batch == 1 or (wanted - wanted.mean(dim=0)).std() > 0.02 * scale
            )  # the pictures differ, or all passes


@pytest.mark.parametrize("family", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in FAMILIES])
def test_image_encoders_of_every_family_agree_with_pytorch(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    graph = graph_of(model, "image_encoder")
    assert graph.outputs == ("image_features", "image_tokens")
    write_onnx(graph, tmp_path / "image_encoder.onnx")
    assert_agrees(graph, tmp_path / "image_encoder.onnx", (1, 2, 7))


def test_the_sum_as_compositor_agrees_with_its_formula(tmp_path: Path) -> None:
    model = untrained_model(model_config("tiny-vit", compositor="sum", tac_layers=0))
    graph = graph_of(model, "compositor")
    write_onnx(graph, tmp_path / "compositor.onnx")
    session = ort.InferenceSession(str(tmp_path / "compositor.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 7):
        image, text = (value.numpy() for value in graph.example(batch, 5))
        expected = (image + text) / np.linalg.norm(image + text, axis=1, keepdims=True)
        found = session.run(None, {"image_features": image, "text_features": text})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
