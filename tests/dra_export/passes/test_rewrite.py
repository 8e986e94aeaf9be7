"""Every rewriting gives what PyTorch and open_clip give, at 1e-5 of the outputs' spread, for any batch and length."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from dra_export.graphs import Graph, graphs_of
from dra_export.onnx_from_model import write_onnx
from dra_export.passes.attention import PlainAttention, write_out_attention
from dra_export.passes.attention_pool import SingleQueryPool, pool_with_single_query
from dra_export.passes.end_token import EndTokenText
from dra_export.passes.relation import MergedAttention, merge_relation
from dra_export.passes.rewrite import rewritten
from dra_train.backbones import model_config, untrained_model
from dra_train.model import DRA, TwinAttentionCompositor

BATCHES = (1, 2, 7)
LENGTHS = (2, 3, 12, 40, 77)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 0
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.std()))


def enlivened(module: nn.Module, seed: int = 0) -> None:
    """Give every bias a value: fresh ones are zero, and an error in them would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    module.eval()


@pytest.fixture(scope="module")
def resnet() -> DRA:
    model = untrained_model(model_config("tiny-resnet"), seed=3)
    enlivened(model.text)
    enlivened(model.visual.attnpool)
    return model


def tokens_of(batch: int, length: int) -> Tensor:
    """Return texts whose end token stands at another place in each, with a second one behind it in some."""
    tokens = torch.randint(1, 49406, (batch, length), generator=torch.Generator().manual_seed(length)).int()
    for i, row in enumerate(tokens):
        row[-1] = 49407
        row[max(1, length - 1 - 5 * i)] = 49407
    return tokens


@pytest.mark.parametrize("masked", [False, True])
@torch.inference_mode()
def test_plain_attention_is_pytorchs(masked: bool) -> None:
    torch.manual_seed(1)
    reference = nn.MultiheadAttention(48, 4, batch_first=True)
    enlivened(reference)
    holder = nn.Sequential(copy.deepcopy(reference))
    write_out_attention(holder)
    plain = holder[0]
    assert isinstance(plain, PlainAttention)
    for batch in BATCHES:
        for length in LENGTHS:
            x = torch.randn(batch, length, 48)
            mask = torch.full((length, length), -torch.inf).triu(1) if masked else None
            assert_close(plain(x, x, x, attn_mask=mask)[0], reference(x, x, x, attn_mask=mask)[0])


@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": False},
        {"batch_first": True, "kdim": 24, "vdim": 24},
        {"batch_first": True, "add_bias_kv": True},
        {"batch_first": True, "add_zero_attn": True},
        {"batch_first": True, "bias": False},
    ],
)
def test_attention_of_another_kind_stays_pytorchs(options: dict[str, object]) -> None:
    holder = nn.Sequential(nn.MultiheadAttention(48, 4, **options))
    write_out_attention(holder)
    assert type(holder[0]) is nn.MultiheadAttention


@torch.inference_mode()
def test_pooling_with_a_single_query_is_open_clips(resnet: DRA) -> None:
    visual = copy.deepcopy(resnet.visual)
    pool_with_single_query(visual)
    assert isinstance(visual.attnpool, SingleQueryPool)
    width = visual.attnpool.query.in_features
    for batch in BATCHES:
        feature_map = torch.randn(batch, width, 2, 2)
        assert_close(visual.attnpool(feature_map), resnet.visual.attnpool(feature_map))


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    ("layers", "share_layers", "share_streams"), [(1, True, False), (4, True, False), (3, False, True)]
)
@torch.inference_mode()
def test_a_merged_relation_is_the_models(heads: int, layers: int, share_layers: bool, share_streams: bool) -> None:
    torch.manual_seed(2)
    tac = TwinAttentionCompositor(24, layers, heads, share_layers, share_streams)
    enlivened(tac)
    merged = copy.deepcopy(tac)
    merge_relation(merged)
    kinds = [isinstance(module, MergedAttention) for module in merged.modules()]
    assert any(kinds) == (heads == 1)
    for batch in BATCHES:
        pair = torch.randn(batch, 9, 24), torch.randn(batch, 9, 24)
        assert_close(merged(*pair), tac(*pair))


@torch.inference_mode()
def test_the_row_of_the_end_token_is_open_clips(resnet: DRA) -> None:
    graph = next(graph for graph in graphs_of(resnet) if graph.name == "text_encoder")
    text = rewritten(graph.module)
    assert isinstance(text, EndTokenText)
    for batch in BATCHES:
        for length in LENGTHS:
            tokens = tokens_of(batch, length)
            assert_close(text(tokens), resnet.encode_text(tokens))
            single = tokens.where((tokens == 49407).cumsum(dim=1) <= 1, 0)  # open_clip's own sees one end token
            assert_close(text(tokens), resnet.text(nn.functional.pad(single, (0, 77 - length))))


def test_the_model_itself_stays_as_it_was_and_its_weights_are_not_copied(resnet: DRA) -> None:
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    graph = next(graph for graph in graphs_of(resnet) if graph.name == "image_encoder")
    module = rewritten(graph.module)
    assert {name: type(part) for name, part in resnet.visual.named_children()}["attnpool"] is not SingleQueryPool
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert any(weight is resnet.visual.conv1.weight for weight in module.parameters())


def test_graphs_hold_no_batch_norm_and_read_shapes_only_of_their_inputs(tiny_bundle: Path) -> None:
    operators = {
        path.stem: [node.op_type for node in onnx.load(path).graph.node] for path in tiny_bundle.glob("*.onnx")
    }
    assert not any("BatchNormalization" in found for found in operators.values())
    # of the tokens' two axes, and of the batch to which the class token or the last norm is widened
    assert {name: found.count("Shape") for name, found in operators.items()} == {
        "image_encoder": 0,
        "text_encoder": 2,
        "compositor": 1,
        "reranker": 1,
        "query": 3,
    }


@pytest.mark.parametrize("masked", [False, True])
def test_dot_product_attention_is_translated_as_pytorch_computes_it(masked: bool, tmp_path: Path) -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = torch.arange(3.0)[None] if masked else None
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    shape = ("batch", 2, 3, 8)
    graph = Graph("attend", Attend(), {"q": shape, "k": shape, "v": shape}, ("y",))
    write_onnx(graph, tmp_path / "attend.onnx")
    assert "Shape" not in [node.op_type for node in onnx.load(tmp_path / "attend.onnx").graph.node]
    session = ort.InferenceSession(str(tmp_path / "attend.onnx"), providers=["CPUExecutionProvider"])
    for batch in BATCHES:
        q, k, v = graph.example(batch, 0, seed=batch)
        found = session.run(None, {"q": q.numpy(), "k": k.numpy(), "v": v.numpy()})[0]
        # the formula, in float64
        scores = q.double() @ k.double().mT / np.sqrt(8) + (torch.arange(3.0)[None] if masked else 0)
        assert_close(torch.from_numpy(found), (scores.softmax(dim=-1) @ v.double()).float())
