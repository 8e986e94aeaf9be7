"""Where TAC looks: the restated attention is the model's own, and its decompositions add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image, ImageFont
from torch import nn

from dra_runtime.errors import CheckpointError
from dra_train.attention import PairAttention, pair_attention, text_agreement, token_grid
from dra_train.attention_picture import CELL, _wrapped, draw_attention, seen_pixels
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main
from dra_train.features import load_images, text_features
from dra_train.model import DRA

TEXT = "make it red"


def model_with(backbone: str = "tiny-vit", layers: int = 3, heads: int = 1, share: bool = True) -> DRA:
    options = {"tac_layers": layers, "tac_heads": heads, "share_layers": share}
    model = untrained_model(model_config(backbone, **options), seed=1)
    with torch.no_grad():  # sharp weights and large biases, or any mistake in them would hide behind an even attention
        for stream in model.tac.streams:
            for attention in stream:
                attention.q.weight.mul_(60)
                for linear in (attention.q, attention.k, attention.v, attention.out):
                    linear.bias.normal_(std=0.3)
    return model


def pictures(model: DRA, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    size = model.preprocess.image_size
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    first, second = F.interpolate(noise, size=(size, size), mode="nearest")
    return first, second


def reference_weights(model: DRA, stream: int, query: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    """Return PyTorch's own multi-head attention weights for every layer, from the same linear layers."""
    dim, result = query.shape[-1], []
    attentions = model.tac.streams[stream]
    for layer in range(model.config.tac_layers):
        own = attentions[layer % len(attentions)]
        theirs = nn.MultiheadAttention(dim, own.heads, batch_first=True)
        theirs.in_proj_weight.data = torch.cat([own.q.weight, own.k.weight, own.v.weight])
        theirs.in_proj_bias.data = torch.cat([own.q.bias, own.k.bias, own.v.bias])
        theirs.out_proj.load_state_dict(own.out.state_dict())
        out, weights = theirs(query[None], other[None], other[None], average_attn_weights=True)
        result.append(weights[0].detach())
        other = out[0].detach()
    return result


@pytest.mark.parametrize(("heads", "share"), [(1, True), (1, False), (4, True)])
def test_weights_are_pytorchs_own_and_lie_where_they_should(heads: int, share: bool) -> None:
    model = model_with(heads=heads, share=share)
    r, t = pictures(model)
    pair = pair_attention(model, r, t, TEXT)
    with torch.no_grad():
        tokens = model.encode_image(torch.stack([r, t]))[1]
    assert tokens is not None
    with_class = [torch.cat([model.tac.class_token[None], x]).detach() for x in tokens]
    for stream, (asking, other) in enumerate((with_class, with_class[::-1])):
        expected = reference_weights(model, stream, asking, other)
        shown = pair.streams[stream]
        assert shown.asks == ("reference", "target")[stream]
        assert [look.over for look in shown.layers] == [("target", "reference")[stream], *[shown.asks] * 2]
        for look, weights in zip(shown.layers, expected, strict=True):
            assert look.patches.shape == (4, 4)
            np.testing.assert_allclose(look.patches.ravel(), weights[0, 1:], atol=1e-5)
            assert look.class_token == pytest.approx(weights[0, 0].item(), abs=1e-5)
        product = expected[2] @ expected[1] @ expected[0]
        np.testing.assert_allclose(shown.traced.patches.ravel(), product[0, 1:], atol=1e-5)
        assert shown.traced.class_token + shown.traced.patches.sum() == pytest.approx(1, abs=1e-5)
        assert expected[0][0].max() > 2 / 17  # the test's weights are uneven
    assert pair.exact == (heads == 1)


@pytest.mark.parametrize("backbone", ["tiny-resnet", "tiny-vit"])
@pytest.mark.parametrize(("layers", "heads", "share"), [(1, 1, True), (2, 2, False), (4, 1, True)])
def test_what_tokens_add_sums_to_the_models_own_agreement(backbone: str, layers: int, heads: int, share: bool) -> None:
    model = model_with(backbone, layers, heads, share)
    r, t = pictures(model)
    pair = pair_attention(model, r, t, TEXT)
    with torch.no_grad():
        tokens = model.encode_image(torch.stack([r, t]))[1]
        assert tokens is not None
        own = F.cosine_similarity(model.relate(tokens[:1], tokens[1:]), text_features(model, [TEXT])).item()
    parts = [s.agreement.patches.sum() + s.agreement.class_token + s.constant for s in pair.streams]
    assert pair.agreement == pytest.approx(own, abs=1e-5)
    assert sum(parts) == pytest.approx(own, abs=1e-5)
    assert text_agreement(model, r, t, ["other", TEXT])[1] == pytest.approx(own, abs=1e-5)


def test_traced_weights_rebuild_the_relation_exactly_with_one_head() -> None:
    """The claim of docs/attention.md: a stream's output is the traced mixture of the other image's tokens."""
    model = model_with(layers=3)
    r, t = pictures(model)
    pair = pair_attention(model, r, t, TEXT)
    with torch.no_grad():
        tokens = model.encode_image(torch.stack([r, t]))[1]
        assert tokens is not None
        mixtures = []
        for stream, image in zip(pair.streams, (tokens[1], tokens[0]), strict=True):
            own = model.tac.streams[len(mixtures)][0]
            look = stream.traced
            mixture = torch.from_numpy(look.patches.ravel()) @ image + look.class_token * model.tac.class_token
            for _ in range(3):  # the linear maps of three layers, in which no position mixes with another
                mixture = own.out(own.v(mixture))
            mixtures.append(mixture)
        rebuilt = (mixtures[0] + mixtures[1]) / 2
        torch.testing.assert_close(rebuilt, model.relate(tokens[:1], tokens[1:])[0], atol=1e-5, rtol=1e-4)


def test_a_patch_that_alone_differs_is_found_where_it_lies() -> None:
    """Positions, not only sums: the one patch that carries the answer lights up in its own row and column."""
    model = model_with(layers=1)
    plain = torch.zeros(3, 64, 64)
    marked = plain.clone()
    marked[:, 16:32, 48:64] = torch.tensor([3.0, -3.0, 3.0])[:, None, None]  # row 1, column 3 of 4 x 4
    with torch.no_grad():  # patches as they are, without the blocks that would mix them
        model.visual.transformer.resblocks = nn.ModuleList()
        model.visual.positional_embedding.zero_()
    pair = pair_attention(model, plain, marked, TEXT)
    over_target = pair.streams[0].layers[0].patches
    distance = np.abs(over_target - np.median(over_target))
    assert np.unravel_index(distance.argmax(), distance.shape) == (1, 3)
    assert pair.streams[1].layers[0].patches.std() < 1e-6  # the reference is the same everywhere


def test_grid_is_square_or_what_the_tower_says(tiny_checkpoint: Path) -> None:
    resnet = load_checkpoint(tiny_checkpoint).model
    assert token_grid(resnet, 81) == (9, 9)
    with pytest.raises(CheckpointError, match="15 tokens an image form no grid"):
        token_grid(resnet, 15)
    vit = untrained_model(model_config("tiny-vit"))
    vit.visual.grid_size = (3, 5)
    assert token_grid(vit, 15) == (3, 5)
    assert token_grid(vit, 16) == (4, 4)


def test_a_model_without_tac_is_refused() -> None:
    model = untrained_model(model_config("tiny-resnet", tac_layers=0))
    with pytest.raises(CheckpointError, match="no vision compositor"):
        pair_attention(model, *pictures(model), TEXT)


def test_pixels_are_those_the_model_saw(tmp_path: Path) -> None:
    """A wide picture is padded above and below; what is drawn is the padded picture."""
    model = untrained_model(model_config("tiny-resnet"))
    Image.new("RGB", (200, 50), (250, 40, 90)).save(tmp_path / "wide.png")
    seen = seen_pixels(load_images(model, [tmp_path / "wide.png"])[0].numpy(), model.preprocess)
    assert seen.shape == (64, 64, 3)
    np.testing.assert_allclose(seen[32, 32], (250, 40, 90), atol=0.6)
    np.testing.assert_allclose(seen[0, 32], (0, 0, 0), atol=0.6)  # TargetPad's margin


def drawn(pair: PairAttention, text: str = TEXT) -> np.ndarray:
    grey = np.full((64, 64, 3), 128, dtype=np.float32)
    return np.asarray(draw_attention(pair, grey, grey, text, ("a.webp", "b.webp"))).astype(int)


def test_the_brightest_cell_of_a_panel_is_the_strongest_patch_also_on_a_grid_that_is_not_square() -> None:
    model = model_with(layers=1)
    pair = pair_attention(model, *pictures(model), TEXT)
    patches = np.zeros((3, 5), dtype=np.float32)
    patches[2, 1] = 0.9
    stream = pair.streams[0]
    marked = replace(stream, layers=(replace(stream.layers[0], patches=patches),))
    canvas = drawn(replace(pair, streams=(marked, pair.streams[1])))
    orange = (canvas[..., 0] - canvas[..., 2] > 120) & (canvas[..., 1] < 140)
    ys, xs = np.nonzero(orange[: canvas.shape[0] // 2, 20 + CELL : 20 + 2 * CELL + 20])  # the first stream's first map
    assert abs(ys.max() - ys.min() - CELL / 3) < 6
    assert abs(xs.max() - xs.min() - CELL / 5) < 6
    assert CELL / 5 - 3 <= xs.min() - 14 <= CELL / 5 + 3


@pytest.mark.parametrize("text", ["", "a" * 10_000, "word " * 3000, "красный 红色 👩🏽 \n\t x", "x"])
def test_any_text_is_drawn_inside_the_picture(text: str) -> None:
    pair = pair_attention(model := model_with(layers=1), *pictures(model), TEXT)
    canvas = drawn(pair, text)
    assert (canvas[:, -10:] == 255).all()  # the margin stays free
    lines = _wrapped(text, 300, 19, lines=2)
    assert 1 <= len(lines) <= 2
    assert all(ImageFont.load_default(19).getlength(line) <= 300 for line in lines)


def test_command_draws_and_prints(tiny_checkpoint: Path, emoji_images: tuple[Path, ...], tmp_path: Path) -> None:
    pair = ["--reference", str(emoji_images[0]), "--target", str(emoji_images[1]), "--text", TEXT]
    output = tmp_path / "map.png"
    result = CliRunner().invoke(main, ["attention", str(tiny_checkpoint), *pair, "-o", str(output), "--other", "blue"])
    assert result.exit_code == 0, result.output
    assert "agreement with the text: cos(F_v, F_c) = " in result.stdout
    assert "| blue " in result.stdout
    with Image.open(output) as image:
        assert image.width == 40 + 7 * CELL + 6 * 14  # two images' column, four layers, traced, agreement
    result = CliRunner().invoke(main, ["attention", str(tiny_checkpoint), *pair, "--json", "--other", "blue"])
    values = json.loads(result.stdout)
    assert values["text"] == TEXT
    assert values["traced_is_exact"] is True
    assert [len(s["layers"]) for s in values["streams"]] == [4, 4]
    assert np.array(values["streams"][1]["traced"]["patches"]).shape == (2, 2)
    assert values["other_texts"][0]["text"] == "blue"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["-o", "map.gif"], "can't be written as a picture"),
        (["-o", "no/such/folder/map.png"], "folder of that file doesn't exist"),
        (["--json", "--target", "missing.webp"], "missing.webp"),
    ],
)
def test_command_refuses_in_one_line(
    tiny_checkpoint: Path, emoji_images: tuple[Path, ...], arguments: list[str], message: str
) -> None:
    pair = ["--reference", str(emoji_images[0]), "--target", str(emoji_images[1]), "--text", TEXT]
    result = CliRunner().invoke(main, ["attention", str(tiny_checkpoint), *pair, *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_command_refuses_a_checkpoint_without_tac(emoji_images: tuple[Path, ...], tmp_path: Path) -> None:
    model = untrained_model(model_config("tiny-resnet", tac_layers=0))
    save_checkpoint(tmp_path / "plain.pt", model, {})
    pair = ["--reference", str(emoji_images[0]), "--target", str(emoji_images[1]), "--text", TEXT]
    result = CliRunner().invoke(main, ["attention", str(tmp_path / "plain.pt"), *pair, "--json"])
    assert (result.exit_code, "no vision compositor" in result.stderr) == (2, True)
