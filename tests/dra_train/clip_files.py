"""Small CLIPs with random weights, written as OpenAI, open_clip and CLIP4Cir publish theirs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import open_clip.model
import safetensors.torch
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from dra_runtime.preprocess import Preprocess
from dra_train.backbones import _enliven_batch_norms
from dra_train.model import DRA, DRAConfig

DIM = 32
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"image_size": 64, "layers": (1, 1, 1, 1), "width": 8, "patch_size": None},
    "vit": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
}


def clip_config(tower: str, **options: Any) -> DRAConfig:
    """Return the configuration of a model that the small CLIP's weights fit."""
    clip = {"embed_dim": DIM, "vision_cfg": VISION[tower], "text_cfg": TEXT}
    return DRAConfig(clip=clip, preprocess=Preprocess(64), **options)


def openai_clip(tower: str) -> nn.Module:
    """Make a CLIP as OpenAI has them: QuickGELU, matrices in half precision, the three sizes beside the weights."""
    torch.manual_seed(4)
    clip = open_clip.model.CLIP(DIM, VISION[tower], TEXT, quick_gelu=True).eval()
    for parameter in clip.parameters():
        if parameter.ndim == 1:  # norms and biases, which start as ones and zeros; in them a mix-up must show as well
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    if isinstance(clip.visual, ModifiedResNet):
        _enliven_batch_norms(clip.visual)  # a fresh one gives all pictures the same features
    for name, size in (("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)):
        if hasattr(clip, name):
            delattr(clip, name)
        clip.register_buffer(name, torch.tensor(size))
    return clip


def openai_tensors(tower: str) -> dict[str, Tensor]:
    """Return the state dict of `openai_clip`, its matrices in half precision."""
    tensors = openai_clip(tower).state_dict()
    return {name: value.half() if value.ndim > 1 else value for name, value in tensors.items()}


def reference(tensors: dict[str, Tensor], tower: str, quick_gelu: bool) -> nn.Module:
    """Rebuild the small CLIP from its weights by open_clip alone."""
    tensors = {k: v for k, v in tensors.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    clip = open_clip.model.CLIP(DIM, VISION[tower], TEXT, quick_gelu=quick_gelu).eval()
    clip.load_state_dict(tensors)
    return clip


def write_torchscript(path: Path, tower: str) -> None:
    """Write the archive that OpenAI publishes: a traced program with its weights."""
    clip = openai_clip(tower)
    example = (torch.zeros(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.int32))
    with warnings.catch_warnings():  # tracing warns about itself
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(clip, example, check_trace=False)
        for parameter in traced.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.half()
        torch.jit.save(traced, path)


def custom_text_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same weights in CustomTextCLIP's layout, by open_clip's own conversion."""
    sizes = ("input_resolution", "context_length", "vocab_size")
    return open_clip.model.convert_to_custom_text_state_dict({k: v for k, v in tensors.items() if k not in sizes})


def without_sizes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights without what tells OpenAI's from others."""
    return {k: v for k, v in tensors.items() if k not in ("input_resolution", "context_length", "vocab_size")}


def write(path: Path, layout: str, tower: str) -> None:
    """Write the small CLIP in one of `LAYOUTS`."""
    tensors = openai_tensors(tower)
    plain = without_sizes(tensors)
    if layout == "torchscript":
        write_torchscript(path, tower)
    elif layout == "openai":
        torch.save(tensors, path)
    elif layout == "legacy":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif layout == "training":
        state = {f"module.{name}": value for name, value in plain.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {0: {"step": 1}}}}, path)
    elif layout == "bin":
        torch.save(plain, path)
    elif layout == "safetensors":
        safetensors.torch.save_file({k: v.clone() for k, v in custom_text_tensors(plain).items()}, path)
    elif layout == "clip4cir":
        torch.save({"epoch": 12, "CLIP": plain}, path)
    else:
        assert layout == "own"
        model = DRA(clip_config(tower))
        loaded = {**model.state_dict(), **{k: v for k, v in custom_text_tensors(plain).items() if k != "logit_scale"}}
        config = model.config.to_dict()
        torch.save(
            {"format": "dra-checkpoint", "version": 1, "config": config, "model": loaded, "provenance": {}}, path
        )


#: every layout, with whether its weights must be run with QuickGELU
LAYOUTS = {
    "torchscript": True,
    "openai": True,
    "legacy": True,
    "clip4cir": True,
    "training": False,
    "bin": False,
    "safetensors": False,
    "own": False,
}


def combiner_tensors(dim: int = DIM, projection: int = 48, hidden: int = 80) -> dict[str, Tensor]:
    """Return a Combiner's weights under CLIP4Cir's names."""
    generator = torch.Generator().manual_seed(8)

    def layer(name: str, out: int, into: int) -> dict[str, Tensor]:
        weight = torch.randn(out, into, generator=generator) * into**-0.5
        return {f"{name}.weight": weight, f"{name}.bias": torch.randn(out, generator=generator) * 0.3}

    return {
        **layer("text_projection_layer", projection, dim),
        **layer("image_projection_layer", projection, dim),
        **layer("combiner_layer", hidden, 2 * projection),
        **layer("output_layer", dim, hidden),
        **layer("dynamic_scalar.0", hidden, 2 * projection),
        **layer("dynamic_scalar.3", 1, hidden),
    }
