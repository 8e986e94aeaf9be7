"""Every family of image towers: features and tokens as open_clip and timm compute them, and the known token counts."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from dra_runtime.errors import CheckpointError, UsageError
from dra_runtime.preprocess import Preprocess
from dra_train.backbones import model_config, untrained_model
from dra_train.model import DRA, DRAConfig, map_channels

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}


def built(vision: dict[str, Any], **clip: Any) -> DRA:
    """Build a small model whose weights are all alive, none of them still zero."""
    config = DRAConfig(
        {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT, **clip}, Preprocess(vision["image_size"])
    )
    model = untrained_model(config, seed=5)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def images(model: DRA) -> Tensor:
    size = model.preprocess.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


VITS = {
    "class token": {},
    "average": {"pool_type": "avg"},
    "average, norm after pooling": {"pool_type": "avg", "final_ln_after_pool": True},
    "class token, norm after pooling": {"final_ln_after_pool": True},
    "no norm before": {"no_ln_pre": True},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "layer scale": {"ls_init_value": 0.1},
}


@pytest.mark.parametrize("name", VITS)
def test_a_vits_features_and_patch_tokens_are_open_clips(name: str) -> None:
    model = built({**VIT, **VITS[name]})
    whole = open_clip.model.CustomTextCLIP(32, {**VIT, **VITS[name], "output_tokens": True}, TEXT).visual.eval()
    whole.load_state_dict(model.visual.state_dict())
    with torch.inference_mode():
        frozen = model.image_trunk(images(model))
        pooled, tokens = whole(images(model))
    torch.testing.assert_close(frozen.pooled, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen.feature_map, tokens, rtol=1e-5, atol=1e-5)
    assert frozen.feature_map.shape == (2, 16, 64)


@pytest.mark.parametrize(
    "vision",
    [{"attentional_pool": True}, {"attentional_pool": "parallel"}, {"pool_type": "none"}],
)
def test_vits_without_a_token_a_patch_are_refused(vision: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="keeps no token a patch, which TAC needs; use pool_type tok or avg"):
        built({**VIT, **vision})


# timm's own test models are whole architectures in a few thousand weights; Swin is the smallest there is.
TIMM = {
    "test_convnext": (25, 64),
    "test_resnet": (25, 96),
    "test_vit": (100, 64),  # one class token
    "test_vit3": (100, 96),
}


SLOW = ("test_convnext", "test_vit3", "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_timm_towers_give_timms_own_features_and_maps(name: str) -> None:
    model = untrained_model(model_config(f"timm/{name}", tac_layers=1), seed=3)
    trunk = model.visual.trunk
    batch = images(model)
    with torch.inference_mode():
        frozen = model.image_trunk(batch)
        last = trunk.forward_intermediates(batch, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True)[-1]
        features = model.encode_image(batch)[0]
        torch.testing.assert_close(features, model.visual(batch), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(frozen.pooled, trunk(batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen.feature_map, last.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    tokens, channels = TIMM.get(name, (49, 768))
    assert frozen.feature_map.shape == (2, tokens, channels)
    assert map_channels(model.visual) == channels
    assert features.shape == (2, 512)


COUNTS = {
    "RN50": (49, 2048, 1024),
    "RN50x4": (81, 2560, 640),
    "ViT-B-32": (49, 768, 512),
    "ViT-B-16": (196, 768, 512),
    "ViT-L-14": (256, 1024, 768),
    "RN50x4-quickgelu": (81, 2560, 640),
    "ViT-L-14-quickgelu": (256, 1024, 768),
    "timm/convnext_tiny": (49, 768, 512),
    "timm/swin_tiny_patch4_window7_224": (49, 768, 512),
    "timm/vit_small_patch16_dinov3": (256, 384, 512),  # one class and four register tokens in front
    "timm/vit_base_patch16_siglip_224": (196, 768, 512),  # no class token, attention pooling behind the patches
    "timm/deit_tiny_distilled_patch16_224": (196, 192, 512),  # two class tokens
    "timm/mixer_s32_224": (49, 512, 512),  # no tokens but patches, and no count of others
    "timm/maxvit_tiny_rw_224": (49, 512, 512),
}
FAST = ("RN50x4", "ViT-B-32", "timm/vit_small_patch16_dinov3")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in COUNTS])
def test_real_backbones_have_their_tokens(name: str) -> None:
    config = model_config(name)
    size = config.preprocess.image_size
    with torch.device("meta"), torch.inference_mode():
        model = DRA(config).eval()
        frozen = model.image_trunk(torch.zeros(1, 3, size, size))
        features = model.project_image(frozen.pooled)
    tokens, channels, dim = COUNTS[name]
    assert frozen.feature_map.shape == (1, tokens, channels)
    assert features.shape == (1, dim)
    assert map_channels(model.visual) == channels


def activations(model: nn.Module) -> set[str]:
    return {type(m).__name__ for m in model.modules() if isinstance(m, nn.GELU | QuickGELU)}


def test_quickgelu_variants_have_quickgelu() -> None:
    with torch.device("meta"):
        assert activations(DRA(model_config("ViT-B-32", tac_layers=0))) == {"GELU"}
        assert activations(DRA(model_config("ViT-B-32-quickgelu", tac_layers=0))) == {"QuickGELU"}
        assert activations(DRA(model_config("RN50x4-quickgelu", tac_layers=0)).text) == {"QuickGELU"}


def test_colours_are_those_that_all_published_weights_agree_on() -> None:
    assert model_config("RN50x4").preprocess == Preprocess(288)
    assert model_config("ViT-L-14").preprocess == Preprocess(224)  # one of its many was trained with other colours
    half = (0.5, 0.5, 0.5)
    assert model_config("PE-Core-B-16").preprocess == Preprocess(224, mean=half, std=half)


def test_timm_towers_bring_their_size_and_colours() -> None:
    config = model_config("timm/convnext_tiny")
    assert config.preprocess == Preprocess(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert config.backbone == "timm/convnext_tiny"
    assert config.clip["text_cfg"]["layers"] == 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("RN50x5", "backbone 'RN50x5' is unknown; use demo, .* or timm/NAME for one of timm's image towers"),
        ("timm/convnex_tiny", "timm has no image tower 'convnex_tiny'; did you mean timm/convnext_tiny"),
        ("timm/????", "timm has no image tower '.*'; see timm.list_models"),
        ("timm/mobilenetv3_large_100", "can't be the image tower: open_clip's adapter fails on it"),
        ("timm/pit_ti_224", "its 1 tokens of width 256 aren't one a patch"),  # only the class token comes out
        ("timm/volo_d1_224", "its 197 tokens of width 384 aren't one a patch"),  # it doesn't count its class token
    ],
)
def test_names_that_cannot_serve_are_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        model_config(name)
    assert "\n" not in str(caught.value)
