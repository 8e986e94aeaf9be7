"""The towers must be open_clip's: same features, whatever way our code walks through them."""

from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.model import CustomTextCLIP
from torch.nn.functional import normalize

from dra_runtime.errors import CheckpointError
from dra_runtime.preprocess import Preprocess
from dra_train.backbones import model_config, untrained_model
from dra_train.features import load_images
from dra_train.model import DRA, DRAConfig, map_channels
from dra_train.vocabulary import END_TOKEN

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
IMAGE_SIZE = 64

# timm's own test models: whole architectures in a few thousand weights.
TIMM = {
    "convolutional": {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear"},
    "head of its own": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": ""},
    "transformer": {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"},
    "mlp head": {"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "mlp"},
}


def config(name: str, **options: object) -> DRAConfig:
    """Return one of our small configurations, or one over a timm test model."""
    if name not in TIMM:
        return model_config(name, **options)
    vision = {**TIMM[name], "image_size": 160}
    clip = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}
    return DRAConfig(clip=clip, preprocess=Preprocess(image_size=160), **options)


def lively(name: str) -> DRA:
    """Build a model whose zero-initialised weights (layer scales, norms) are not zero, so that no fault hides."""
    model = untrained_model(config(name), seed=3)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def images(model: DRA, count: int = 3) -> torch.Tensor:
    size = model.preprocess.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", *TIMM])
def test_image_features_are_open_clips(name: str) -> None:
    model = lively(name)
    batch = images(model)
    with torch.inference_mode():
        features, tokens = model.encode_image(batch)
        expected = model.visual(batch)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3
    assert tokens is not None
    assert tokens.shape[0] == 3
    assert tokens.shape[2] == 32


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", "transformer"])
def test_text_features_are_open_clips(name: str) -> None:
    model = untrained_model(config(name), seed=3)
    texts = ["is red", "a woman with curly hair, cooking", "x", "", "!!! what?!", "word " * 100]
    tokens = open_clip.tokenize(texts)
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(tokens), model.text(tokens), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens.int()), model.text(tokens), rtol=1e-5, atol=1e-5)


def test_text_cut_after_its_end_token_changes_nothing() -> None:
    model = untrained_model(config("tiny-resnet"), seed=3)
    tokens = open_clip.tokenize(["make it shorter and green", "is red"])
    length = int((tokens[0] == END_TOKEN).nonzero()) + 1
    with torch.inference_mode():
        whole = normalize(model.encode_text(tokens), dim=-1)
        for cut in range(length, 78):
            cut_off = normalize(model.encode_text(tokens[:, :cut]), dim=-1)
            torch.testing.assert_close(cut_off, whole, rtol=0, atol=1e-6)
        shorter = normalize(model.encode_text(tokens[:, : length - 1]), dim=-1)
    assert (shorter[0] - whole[0]).abs().max() > 1e-4  # a cut into the text is another text


def test_first_end_token_is_where_a_text_is_pooled() -> None:
    model = untrained_model(config("tiny-resnet"), seed=3)
    tokens = torch.zeros(1, 77, dtype=torch.long)
    tokens[0, :5] = torch.tensor([49406, 320, END_TOKEN, 736, END_TOKEN])
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(tokens), model.encode_text(tokens[:, :3]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), model.text(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit", "convolutional", "transformer", "mlp head"])
def test_image_tokens_are_the_positions_of_the_feature_map(name: str) -> None:
    """Token i must be position i's channels; a ``view`` of (N, C, h, w) as (N, h * w, C) would mix the two."""
    model = lively(name)
    seen: dict[str, torch.Tensor] = {}
    visual = model.visual
    if name == "tiny-resnet":
        last = visual.layer4
    elif name == "tiny-vit":
        last = visual.ln_post
    else:
        last = None  # timm: forward_features is what a hook can't see
    if last is not None:
        last.register_forward_hook(lambda _module, _inputs, output: seen.update(map=output))
    batch = images(model)
    with torch.inference_mode():
        tokens = model.image_trunk(batch).feature_map
        if last is None:
            seen["map"] = visual.trunk.forward_features(batch)
    assert tokens.shape[2] == map_channels(visual)
    if seen["map"].ndim == 4:
        height, width = seen["map"].shape[2:]
        assert tokens.shape[1] == height * width
        for row in range(height):
            for column in range(width):
                torch.testing.assert_close(tokens[:, row * width + column], seen["map"][:, :, row, column])
    else:
        for position in range(tokens.shape[1]):  # one class token stands before the patches
            torch.testing.assert_close(tokens[:, position], seen["map"][:, 1 + position])


def test_channels_last_feature_maps_keep_their_positions() -> None:
    """Swin keeps (N, h, w, C) where the others keep (N, C, h, w)."""
    model = untrained_model(config("convolutional"))
    model.visual.trunk = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=96,
        window_size=3,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 1, 1),
        num_classes=0,
    ).eval()
    batch = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        tokens = model.image_trunk(batch).feature_map
        last = model.visual.trunk.forward_features(batch)
    assert last.shape == (1, 3, 3, 64)
    assert tokens.shape == (1, 9, 64)
    torch.testing.assert_close(tokens[0, 3 * 1 + 2], last[0, 1, 2])


def test_tokens_follow_a_permutation_of_the_map() -> None:
    model = lively("tiny-resnet")
    feature_map = torch.randn(2, 4, map_channels(model.visual))
    order = torch.tensor([2, 0, 3, 1])
    with torch.inference_mode():
        torch.testing.assert_close(
            model.project_tokens(feature_map[:, order]), model.project_tokens(feature_map)[:, order]
        )


@pytest.mark.parametrize(
    "text",
    [
        {**TEXT, "no_causal_mask": True},
        {**TEXT, "embed_cls": True},
        {**TEXT, "pool_type": "last"},
        {**TEXT, "pool_type": "eos"},  # its end token is 2 unless the config says otherwise
        {**TEXT, "vocab_size": 49410},  # the end token is no longer the largest id
        {**TEXT, "proj_type": "none"},
    ],
)
def test_text_towers_that_are_not_clips_are_refused(text: dict[str, object]) -> None:
    clip = {**model_config("tiny-resnet").clip, "text_cfg": text}
    with pytest.raises(CheckpointError, match="text tower must be CLIP's"):
        DRA(DRAConfig(clip=clip, preprocess=Preprocess(image_size=IMAGE_SIZE)))


def test_text_tower_that_names_clips_end_token_is_accepted() -> None:
    clip = {**model_config("tiny-resnet").clip, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": END_TOKEN}}
    model = DRA(DRAConfig(clip=clip, preprocess=Preprocess(image_size=IMAGE_SIZE))).eval()
    tokens = open_clip.tokenize(["is red"])
    with torch.inference_mode():
        torch.testing.assert_close(model.encode_text(tokens), model.text(tokens), rtol=1e-5, atol=1e-5)


def test_paper_size_towers_have_rn50x4s_parameters() -> None:
    """178.3 M in all: 87.1 M image, 91.2 M text (the figures of open_clip's model profile for RN50x4)."""
    with torch.device("meta"):
        model = DRA(model_config("RN50x4"))
        whole = CustomTextCLIP(**open_clip.get_model_config("RN50x4"))

    def millions(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    assert millions(model.visual) == pytest.approx(87.1, abs=0.05)
    assert millions(model.text) == pytest.approx(91.2, abs=0.05)
    assert millions(model.visual) + millions(model.text) == pytest.approx(millions(whole), abs=0.001)
    assert map_channels(model.visual) == 2560
    assert model.preprocess.image_size == 288


@pytest.mark.parametrize("name", ["tiny-resnet", "tiny-vit"])
def test_untrained_models_tell_real_pictures_apart(name: str, emoji_images: tuple[Path, ...]) -> None:
    """Otherwise every comparison of an exported image encoder with PyTorch would pass, whatever it computes."""
    model = untrained_model(model_config(name))
    with torch.inference_mode():
        features, tokens = model.encode_image(load_images(model, emoji_images))
        relations = model.relate(tokens, tokens.roll(1, 0))
    for vectors in (features, tokens.flatten(1), relations):
        cosines = normalize(vectors, dim=-1) @ normalize(vectors, dim=-1).T
        assert cosines[~torch.eye(len(vectors), dtype=torch.bool)].median() < 0.999
        assert vectors.norm(dim=1).max() < 1000
