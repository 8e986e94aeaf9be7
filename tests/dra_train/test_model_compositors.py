"""TAC, Combiner and augmentation against plain loops written from the method's description."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dra_runtime.errors import CheckpointError
from dra_train.backbones import model_config, untrained_model
from dra_train.model import DRA, Combiner, DRAConfig, TwinAttentionCompositor

Matrix = np.ndarray


def weight(linear: nn.Module) -> tuple[Matrix, Matrix]:
    assert isinstance(linear, nn.Linear)
    return linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()


def apply(linear: nn.Module, x: Matrix) -> Matrix:
    w, b = weight(linear)
    return x @ w.T + b


def attend(attention: nn.Module, heads: int, query: Matrix, other: Matrix) -> Matrix:
    """One example, one head and one query row at a time: softmax(q k / sqrt(d)) v."""
    q, k, v = (apply(getattr(attention, part), x) for part, x in (("q", query), ("k", other), ("v", other)))
    size = q.shape[1] // heads
    out = np.zeros_like(q)
    for head, row in itertools.product(range(heads), range(len(q))):
        at = slice(head * size, (head + 1) * size)
        logits = np.array([q[row, at] @ k[column, at] / math.sqrt(size) for column in range(len(k))])
        shares = np.exp(logits - logits.max())
        out[row, at] = (shares / shares.sum()) @ v[:, at]
    return apply(attention.out, out)


def relation(tac: TwinAttentionCompositor, heads: int, reference: Matrix, candidate: Matrix) -> Matrix:
    """F_v of one pair, every row of every layer computed."""
    class_token = tac.class_token.detach().double().numpy()[None]
    r, t = np.concatenate([class_token, reference]), np.concatenate([class_token, candidate])

    def stream(which: int, query: Matrix, other: Matrix) -> Matrix:
        layers = tac.streams[which if len(tac.streams) == 2 else 0]
        for layer in range(tac.layers):
            other = attend(layers[layer if len(layers) > 1 else 0], heads, query, other)
        return other[0]

    return (stream(0, r, t) + stream(1, t, r)) / 2


@pytest.mark.parametrize("share_streams", [False, True])
@pytest.mark.parametrize("share_layers", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_tac_equals_the_plain_loop(layers: int, heads: int, share_layers: bool, share_streams: bool) -> None:
    torch.manual_seed(layers)
    tac = TwinAttentionCompositor(8, layers, heads, share_layers, share_streams)
    for parameter in tac.parameters():
        nn.init.normal_(parameter, std=0.6)  # far from the start, so that attention is far from uniform
    reference, candidate = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    got = tac(reference, candidate).detach().numpy()
    for i in range(3):
        expected = relation(tac, heads, reference[i].double().numpy(), candidate[i].double().numpy())
        np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-5)


def test_layers_that_are_not_shared_have_weights_of_their_own() -> None:
    def count(**options: bool) -> int:
        return sum(p.numel() for p in TwinAttentionCompositor(8, 3, 1, **options).parameters())

    attention = 4 * (8 * 8 + 8)
    assert count(share_layers=True, share_streams=True) == 8 + attention
    assert count(share_layers=True, share_streams=False) == 8 + 2 * attention
    assert count(share_layers=False, share_streams=True) == 8 + 3 * attention
    assert count(share_layers=False, share_streams=False) == 8 + 6 * attention


def test_sharing_streams_makes_the_relation_symmetric() -> None:
    torch.manual_seed(0)
    r, t = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    symmetric = TwinAttentionCompositor(8, 4, 1, share_layers=True, share_streams=True)
    torch.testing.assert_close(symmetric(r, t), symmetric(t, r))
    twin = TwinAttentionCompositor(8, 4, 1, share_layers=True, share_streams=False)
    assert (twin(r, t) - twin(t, r)).abs().max() > 1e-3


def test_relation_is_the_same_at_every_call_and_in_any_batch() -> None:
    model = untrained_model(model_config("tiny-resnet"))
    r, t = torch.randn(4, 4, 32), torch.randn(4, 4, 32)
    with torch.inference_mode():
        first, second = model.relate(r, t), model.relate(r, t)
        assert torch.equal(first, second)
        torch.testing.assert_close(model.relate(r[2:3], t[2:3])[0], first[2])


def test_relation_does_not_depend_on_the_order_of_the_patches() -> None:
    """No positions enter TAC: attention sums over them. An order that matters means a scrambled axis."""
    model = untrained_model(model_config("tiny-resnet"))
    r, t = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        torch.testing.assert_close(model.relate(r[:, order], t[:, order]), model.relate(r, t))
        assert (model.relate(r.flip(-1), t) - model.relate(r, t)).abs().max() > 1e-4


def test_paper_size_compositors_have_their_parameters() -> None:
    with torch.device("meta"):
        model = DRA(model_config("RN50x4"))

    def count(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    attention = 4 * (640 * 640 + 640)
    assert count(model.tac, model.token_projection) == 640 + 2560 * 640 + 640 + 2 * attention  # 4.9 M
    assert count(model.tac, model.token_projection) / 1e6 == pytest.approx(4.9, abs=0.05)
    projections = 2 * (640 * 2560 + 2560)
    hidden = 2 * (5120 * 5120 + 5120)
    assert count(model.combiner) == projections + hidden + (5120 * 640 + 640) + (5120 + 1)  # 59 M
    assert count(model.combiner) / 1e6 == pytest.approx(59, abs=0.5)


def composed(combiner: Combiner, image: Matrix, text: Matrix) -> Matrix:
    a = np.maximum(apply(combiner.text_projection, text), 0)
    b = np.maximum(apply(combiner.image_projection, image), 0)
    z = np.concatenate([a, b])
    v = apply(combiner.output, np.maximum(apply(combiner.hidden, z), 0))
    logit = apply(combiner.mixture[3], np.maximum(apply(combiner.mixture[0], z), 0))
    share = 1 / (1 + np.exp(-logit))
    query = v + share * text + (1 - share) * image
    return query / np.sqrt((query**2).sum())


def test_combiner_equals_its_formula() -> None:
    torch.manual_seed(1)
    combiner = Combiner(6, 10, 14, dropout=0.5).eval()
    for parameter in combiner.parameters():
        nn.init.normal_(parameter, std=0.5)
    image, text = 3 * torch.randn(4, 6), torch.randn(4, 6)
    queries = combiner(image, text).detach().numpy()
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)
    for i in range(4):
        expected = composed(combiner, image[i].double().numpy(), text[i].double().numpy())
        np.testing.assert_allclose(queries[i], expected, rtol=1e-4, atol=1e-6)


def test_combiner_wants_raw_features() -> None:
    """A gallery of unit vectors can't serve as the reference: the length carries information."""
    model = untrained_model(model_config("tiny-resnet"))
    image, text = 5 * torch.randn(3, 32), torch.randn(3, 32)
    with torch.inference_mode():
        difference = model.compose(image, text) - model.compose(nn.functional.normalize(image, dim=-1), text)
    assert difference.abs().max() > 0.05


def test_combiner_drops_out_only_in_training() -> None:
    torch.manual_seed(1)
    combiner = Combiner(6, 10, 14, dropout=0.5)
    image, text = torch.randn(2, 6), torch.randn(2, 6)
    assert not torch.equal(combiner(image, text), combiner(image, text))
    combiner.eval()
    assert torch.equal(combiner(image, text), combiner(image, text))


def vectors() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return 4 * torch.randn(3, 32), 0.01 * torch.randn(3, 32)


def test_augmentation_sum_is_literal() -> None:
    text, relation_features = vectors()
    model = untrained_model(model_config("tiny-resnet", augmentation="sum"))
    torch.testing.assert_close(model.augment(text, relation_features), text + relation_features)


def test_augmentation_scaled_brings_the_relation_to_the_texts_length() -> None:
    text, relation_features = vectors()
    model = untrained_model(model_config("tiny-resnet", augmentation="scaled"))
    added = model.augment(text, relation_features) - text
    torch.testing.assert_close(added.norm(dim=1), text.norm(dim=1))
    torch.testing.assert_close(
        nn.functional.cosine_similarity(added, relation_features, dim=1), torch.ones(3), rtol=0, atol=1e-5
    )


def test_compositor_sum_is_the_normalised_sum_and_has_no_weights() -> None:
    model = untrained_model(model_config("tiny-resnet", compositor="sum", tac_layers=0))
    image, text = vectors()
    query = model.compose(image, text).numpy()
    for i in range(3):
        expected = (image[i] + text[i]).double().numpy()
        np.testing.assert_allclose(query[i], expected / np.sqrt((expected**2).sum()), rtol=1e-5, atol=1e-6)
    assert not any("combiner" in name for name in model.state_dict())


def test_model_without_tac_has_neither_tokens_nor_relations() -> None:
    model = untrained_model(model_config("tiny-resnet", tac_layers=0))
    features, tokens = model.encode_image(torch.zeros(1, 3, 64, 64))
    assert tokens is None
    assert features.shape == (1, 32)
    assert not model.has_tac
    assert not any("tac" in name or "token_projection" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": "product"}, "'product' is unknown; use 'sum' or 'scaled'"),
        ({"compositor": "mean"}, "'mean' is unknown; use combiner or sum"),
        ({"tac_heads": 3}, "3 heads don't fit width 32"),
        ({"tac_layers": -1}, "-1 TAC layers"),
        ({"tac_heads": 0}, "0 heads"),
    ],
)
def test_options_that_make_no_model_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_config("tiny-resnet", **options)


def test_configuration_travels_as_plain_values() -> None:
    config = model_config("tiny-vit", tac_layers=2, tac_heads=4, share_streams=True, augmentation="sum", dropout=0.1)
    assert DRAConfig.from_dict(config.to_dict()) == config
    with pytest.raises(CheckpointError, match="surprise"):
        DRAConfig.from_dict({**config.to_dict(), "surprise": 1})
    with pytest.raises(CheckpointError, match="preprocess"):
        DRAConfig.from_dict({"clip": config.clip})
