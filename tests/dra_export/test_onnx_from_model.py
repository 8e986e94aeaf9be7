from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from dra_export.graphs import Graph, graphs_of
from dra_export.onnx_from_model import ExportError, check_onnx, write_onnx
from dra_train.backbones import model_config, untrained_model
from dra_train.model import DRA
from dra_train.vocabulary import clip_tokenizer


def run(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


@pytest.fixture(scope="module")
def vit() -> DRA:
    return untrained_model(model_config("tiny-vit"), seed=3)


@pytest.mark.parametrize(("batch", "length"), [(1, 2), (1, 77), (2, 9), (7, 33)])
def test_a_vit_model_gives_open_clips_features_at_any_batch_size_and_text_length(
    vit: DRA, tmp_path_factory: pytest.TempPathFactory, batch: int, length: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "vit_graphs"
    graphs = {graph.name: graph for graph in graphs_of(vit)}
    if not folder.exists():
        folder.mkdir()
        for name in ("image_encoder", "text_encoder"):
            write_onnx(graphs[name], folder / f"{name}.onnx")
    generator = torch.Generator().manual_seed(batch)
    pixels = torch.randn(batch, 3, 64, 64, generator=generator)
    tokens = torch.randint(1, 49406, (batch, length), generator=generator, dtype=torch.int32)
    tokens[:, -1] = 49407
    padded = torch.nn.functional.pad(tokens, (0, 77 - length))
    with torch.inference_mode():
        image, text = vit.visual(pixels).numpy(), vit.text(padded).numpy()
    np.testing.assert_allclose(run(folder / "image_encoder.onnx", image=pixels.numpy())[0], image, atol=1e-5)
    np.testing.assert_allclose(run(folder / "text_encoder.onnx", tokens=tokens.numpy())[0], text, atol=2e-5)


def test_what_stands_after_the_end_token_changes_nothing(tiny_bundle: Path) -> None:
    tokens = clip_tokenizer()(["in red", "a long dress with a belt and a flower on it"])
    length = int((tokens[0] != 0).sum())
    cut = run(tiny_bundle / "text_encoder.onnx", tokens=tokens[:1, :length])[0]
    noisy = tokens[:1].copy()
    noisy[:, length:] = 320
    np.testing.assert_allclose(run(tiny_bundle / "text_encoder.onnx", tokens=noisy)[0], cut, atol=1e-6)


def test_a_text_tower_of_another_length_keeps_its_own_limit(tmp_path: Path) -> None:
    config = model_config("tiny-vit")
    clip = {**config.clip, "text_cfg": {**config.clip["text_cfg"], "context_length": 32}}
    model = DRA(replace(config, clip=clip)).eval()
    graph = next(graph for graph in graphs_of(model) if graph.name == "text_encoder")
    write_onnx(graph, tmp_path / "text_encoder.onnx")
    tokens = graph.example(2, 32)[0]
    with torch.inference_mode():
        expected = model.text(tokens).numpy()
    np.testing.assert_allclose(run(tmp_path / "text_encoder.onnx", tokens=tokens.numpy())[0], expected, atol=2e-5)


def test_a_model_without_tac_has_no_reranker_and_no_tokens() -> None:
    graphs = {graph.name: graph for graph in graphs_of(untrained_model(model_config("tiny-vit", tac_layers=0)))}
    assert set(graphs) == {"image_encoder", "text_encoder", "compositor", "query"}
    assert graphs["image_encoder"].outputs == ("image_features",)


def test_a_trace_that_fixes_the_batch_is_refused(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.float().sum(dim=1, keepdim=True) + torch.zeros(len(tokens), 1)

    graph = Graph("text_encoder", Fixed(), {"tokens": ("batch", "length")}, ("text_features",))
    # Depending on its version, PyTorch refuses by itself or fixes the axis silently; neither may leave a graph behind.
    with pytest.raises((ExportError, torch.onnx.errors.OnnxExporterError)):
        write_onnx(graph, tmp_path / "text_encoder.onnx")


def graph_file(path: Path, shape: list[int | str], output: str = "y") -> Path:
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:]))
    model.ir_version = 10
    onnx.save(model, path)
    return path


def test_check_onnx_accepts_symbolic_and_refuses_fixed_axes_and_other_names(tmp_path: Path) -> None:
    check_onnx(graph_file(tmp_path / "good.onnx", ["batch", 4]), {"x": ("batch", 4)}, ("y",))
    with pytest.raises(ExportError, match="an axis that should vary was fixed"):
        check_onnx(graph_file(tmp_path / "fixed.onnx", [2, 4]), {"x": ("batch", 4)}, ("y",))
    with pytest.raises(ExportError, match="expected \\['query'\\]"):
        check_onnx(graph_file(tmp_path / "name.onnx", ["batch", 4]), {"x": ("batch", 4)}, ("query",))


def test_check_onnx_refuses_a_graph_whose_types_do_not_fit(tmp_path: Path) -> None:
    path = graph_file(tmp_path / "types.onnx", ["batch", 4])
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    with pytest.raises(ExportError, match="not valid ONNX"):
        check_onnx(path, {"x": ("batch", 4)}, ("y",))


def test_the_query_holds_the_weights_of_its_parts_and_none_that_it_does_not_use(tiny_bundle: Path) -> None:
    def weights(name: str) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in onnx.load(tiny_bundle / f"{name}.onnx").graph.initializer}

    query = weights("query")
    for part in ("image_encoder", "text_encoder", "compositor"):
        own = weights(part)
        found = {name.removeprefix(f"{part}/"): query[name] for name in query if name.startswith(f"{part}/")}
        assert {name: tensor.raw_data for name, tensor in found.items()} == {n: own[n].raw_data for n in found}
        unused = {name for name in own if name not in found}
        assert (len(unused) > 0) == (part == "image_encoder")  # what makes the image's tokens
    graph = onnx.load(tiny_bundle / "query.onnx").graph
    used = {name for node in graph.node for name in node.input}
    assert set(query) <= used
    assert [value.name for value in graph.input] == ["image", "tokens"]
