"""Load a user's CLIP weights into a model, or say exactly what doesn't fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from dra_runtime.errors import CheckpointError
from dra_train.backbones import clip_signature, name_of_clip
from dra_train.model import DRA
from dra_train.weight_files import StoredWeights, read_weights

_NAMED = 10  #: of each kind of misfit, so many are named
# What stands beside the towers, and loads only where both the file and the model have it.
_PARTS = {
    "combiner.": "the Combiner",
    "tac.": "TAC",
    "token_projection.": "TAC's projection",
    "stage_projection.": "the projection of all stages",
}


def load_weights(model: DRA, path: Path) -> str:
    """Load both towers' weights from a file, in place and in float32, and say in a sentence what was loaded.

    From a checkpoint of dra-train the Combiner and TAC are loaded too, where the model has them. From a file of timm's
    the image tower alone. OpenAI's weights switch the model to QuickGELU, with which they were trained: they load
    without it as well, and answer worse.

    Raises
    ------
    CheckpointError
        The file can't be used, or its weights are those of another architecture; the message says which.
    """
    return fit_weights(model, read_weights(path), path)


def fit_weights(model: DRA, weights: StoredWeights, path: Path) -> str:
    """Load what `read_weights` read from ``path``; see `load_weights`."""
    tensors = dict(weights.tensors)
    wanted = {name: value for name, value in model.state_dict().items() if not name.startswith(tuple(_PARTS))}
    if isinstance(model.visual, TimmModel) and not any(name.startswith(("visual.", "text.")) for name in tensors):
        return _load_timm_trunk(model.visual, tensors, path)
    for part in _PARTS:
        ours = {name: value for name, value in model.state_dict().items() if name.startswith(part)}
        if ours and any(name.startswith(part) for name in tensors):
            wanted |= ours
        else:
            tensors = {name: value for name, value in tensors.items() if not name.startswith(part)}
    if problem := misfit(wanted, tensors):
        raise CheckpointError(f"{path}: {_wrong_architecture(model, weights)}{problem}")
    model.load_state_dict(tensors, strict=False)  # into float32, whatever they were; all but batch counters are there
    others = [kind for part, kind in _PARTS.items() if any(name.startswith(part) for name in wanted)]
    parts = ", ".join(["both towers", *others])
    return f"{path.name} is {weights.source}: {parts} loaded, {_settle_activation(model, weights)}"


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say which weights are missing, unexpected, or of another shape, the first ten of each; "" if all fit."""
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    said = [f"{len(names)} are {kind} ({_first(names)})" for kind, names in kinds if names]
    return f"its weights don't fit: {', '.join(said)}" if said else ""


def clip_from_shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read an architecture off the shapes of its weights, as OpenAI's own loader does; None if it is no CLIP.

    Heads leave no trace in the shapes: they are 64 wide in all of OpenAI's models.
    """
    try:
        text_width = tensors["text.ln_final.weight"].shape[0]
        context_length = tensors["text.positional_embedding"].shape[0]
        embed_dim = tensors["text.text_projection"].shape[1]
        vocab_size = tensors["text.token_embedding.weight"].shape[0]
        if "visual.layer1.0.conv1.weight" in tensors:
            grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
            layers: Any = [_count(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
            vision: dict[str, Any] = {
                "image_size": 32 * grid,
                "layers": layers,
                "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
                "patch_size": None,
            }
        else:
            width, _, patch, _ = tensors["visual.conv1.weight"].shape
            grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)
            layers = _count(tensors, "visual.transformer.resblocks.")
            vision = {"image_size": patch * grid, "layers": layers, "width": width, "patch_size": patch}
    except (KeyError, ValueError, IndexError):
        return None
    if text_width % 64 or vision["width"] % (2 if vision["patch_size"] is None else 64):
        return None  # heads would not be 64 wide
    text = {
        "context_length": context_length,
        "vocab_size": vocab_size,
        "width": text_width,
        "heads": text_width // 64,
        "layers": _count(tensors, "text.transformer.resblocks."),
    }
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text}


def _wrong_architecture(model: DRA, weights: StoredWeights) -> str:
    """Name the backbone that the weights are of, where they show it and the model is another; ends in "; "."""
    clip = weights.clip or clip_from_shapes(weights.tensors)
    if clip is None:
        return "" if _is_clip(weights.tensors) else "it holds no CLIP; "
    name = weights.backbone or name_of_clip(clip)
    signature = clip_signature(clip)
    if name in (None, "custom", model.config.backbone) or signature == clip_signature(model.config.clip):
        return ""
    return f"these weights are of {name}, the model is {model.config.backbone}; use --backbone {name}; "


def _is_clip(tensors: Mapping[str, Tensor]) -> bool:
    return all(any(name.startswith(tower) for name in tensors) for tower in ("visual.", "text."))


def _settle_activation(model: DRA, weights: StoredWeights) -> str:
    has = bool(model.config.clip.get("quick_gelu", False))
    if weights.quick_gelu is None:
        chosen = "QuickGELU" if has else "GELU"
        return (
            f"{chosen} as the backbone says: the file doesn't tell, and weights of OpenAI, DFN or MetaCLIP need one "
            "whose name ends in -quickgelu"
        )
    if weights.quick_gelu != has:
        set_quick_gelu(model, weights.quick_gelu)
    return "with QuickGELU, as they were trained" if weights.quick_gelu else "with GELU, as they were trained"


def set_quick_gelu(model: DRA, quick: bool) -> None:
    """Change the activation of open_clip's transformers in place, and the configuration with it."""
    for module in model.modules():
        if isinstance(module, nn.Sequential) and isinstance(getattr(module, "gelu", None), nn.GELU | QuickGELU):
            module.gelu = QuickGELU() if quick else nn.GELU()
    name = model.config.backbone
    other = name.removesuffix("-quickgelu") + ("-quickgelu" if quick else "")
    clip = {**model.config.clip, "quick_gelu": quick}
    model.config = replace(model.config, clip=clip, backbone=other if other in open_clip.list_models() else name)


def _load_timm_trunk(visual: TimmModel, tensors: Mapping[str, Tensor], path: Path) -> str:
    """Load a file of timm's into the image tower; its classifier, which the tower hasn't, is left out."""
    classifier = visual.trunk.pretrained_cfg.get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([classifier] if isinstance(classifier, str) else classifier))
    wanted = visual.trunk.state_dict()
    kept = {k: v for k, v in tensors.items() if k in wanted or not (prefixes and k.startswith(prefixes))}
    if problem := misfit(wanted, kept):
        name = visual.trunk.pretrained_cfg.get("architecture", "its image tower")
        raise CheckpointError(f"{path}: as weights of timm's {name} (no CLIP): {problem}")
    visual.trunk.load_state_dict(kept, strict=False)
    return f"{path.name} is an image tower of timm's: loaded; the text tower starts from nothing"


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)})


def _first(names: list[str]) -> str:
    return ", ".join(" ".join(name.split())[:120] for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
