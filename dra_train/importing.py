"""Make checkpoints from what others published: a plain CLIP, or CLIP4Cir's fine-tuned CLIP and Combiner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dra_runtime.errors import CheckpointError, UsageError
from dra_runtime.preprocess import Preprocess
from dra_train.backbones import model_config, name_of_clip
from dra_train.model import DRA, DRAConfig
from dra_train.weight_files import StoredWeights, read_combiner, read_weights, sha256_of
from dra_train.weights import clip_from_shapes, fit_weights, misfit

NO_PADDING = 1e9  #: a pad_ratio that no image reaches: the smallest refusal for elongated images comes long before
TARGET_PAD = 1.25  #: CLIP4Cir's, the ratio of all its published models

# Ours by CLIP4Cir's name; its dynamic_scalar has parameters at places 0 and 3, as our mixture.
_COMBINER = {
    "text_projection_layer": "text_projection",
    "image_projection_layer": "image_projection",
    "combiner_layer": "hidden",
    "output_layer": "output",
    "dynamic_scalar.0": "mixture.0",
    "dynamic_scalar.3": "mixture.3",
}


@dataclass(frozen=True)
class Imported:
    """A model made from others' files."""

    model: DRA
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]  #: what was found and chosen, a sentence each


def import_clip(
    clip: Path, combiner: Path | None = None, backbone: str | None = None, pad_ratio: float | None = None
) -> Imported:
    """Make a model, without TAC, from files of weights.

    Parameters
    ----------
    clip
        A CLIP's weights; see `dra_train.weight_files.read_weights`.
    combiner
        CLIP4Cir's Combiner; without it the query is the sum of the features.
    backbone
        What the weights are of; by default it is read off them.
    pad_ratio
        TargetPad's ratio. By default CLIP4Cir's 1.25 for CLIP4Cir's files, and no padding for a plain CLIP.

    Raises
    ------
    CheckpointError
        A file can't be used, or the two don't fit each other.
    UsageError
        The backbone can't be recognised, or is unknown.
    """
    weights = read_weights(clip)
    if weights.clip is not None:
        raise UsageError(f"{clip} is a checkpoint of dra-train already; evaluate or export it as it is")
    found = read_combiner(combiner) if combiner else None
    options: dict[str, Any] = {"tac_layers": 0, "compositor": "sum"}
    if found is not None:
        options = {"tac_layers": 0, "compositor": "combiner", **_combiner_sizes(found)}
    config = model_config(backbone, **options) if backbone else _recognised(clip, weights, options)
    published = found is not None or weights.source.startswith("CLIP4Cir")
    ratio = pad_ratio or (TARGET_PAD if published else NO_PADDING)
    config = replace(config, preprocess=replace(config.preprocess, pad_ratio=ratio))
    model = DRA(config).eval()
    padding = "no padding" if ratio >= NO_PADDING else f"padded to a ratio of {ratio:g}"
    notes = [fit_weights(model, weights, clip), f"images: {padding}, {config.preprocess.image_size} pixels"]
    if config.backbone == "custom":
        notes.append("no model of open_clip's has these sizes: heads 64 wide assumed, as in all of OpenAI's")
    files = {"clip": _named(clip)}
    if combiner and found is not None:
        _load_combiner(model, found, combiner)
        files["combiner"] = _named(combiner)
        notes.append(f"{combiner.name}: CLIP4Cir's Combiner")
    else:
        notes.append("query: the sum of image and text features")
    provenance = {"made_by": "dra-train import", "backbone": model.config.backbone, "files": files}
    return Imported(model, provenance, tuple(notes))


def _recognised(path: Path, weights: StoredWeights, options: Mapping[str, Any]) -> DRAConfig:
    """Return the configuration that the weights' shapes tell, of a known backbone where there is one."""
    clip = clip_from_shapes(weights.tensors)
    if clip is None:
        raise UsageError(f"{path}: its backbone can't be read off its weights; name it with --backbone")
    if name := name_of_clip(clip):
        return model_config(name, **options)
    return DRAConfig(clip=clip, preprocess=Preprocess(clip["vision_cfg"]["image_size"]), **options)


def _combiner_sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    sizes = {"combiner_projection": "text_projection_layer.bias", "combiner_hidden": "combiner_layer.bias"}
    return {option: len(tensors[name]) for option, name in sizes.items() if name in tensors and tensors[name].ndim}


def _load_combiner(model: DRA, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = {
        f"{theirs}.{kind}": model.combiner.state_dict()[f"{ours}.{kind}"]
        for theirs, ours in _COMBINER.items()
        for kind in ("weight", "bias")
    }
    if problem := misfit(wanted, tensors):
        width = tensors["text_projection_layer.weight"].shape[-1] if "text_projection_layer.weight" in tensors else "?"
        dim = model.config.dim
        if width != dim:
            problem = f"this Combiner takes features of width {width}, the CLIP gives {dim}: they don't belong together"
        raise CheckpointError(f"{path}: {problem}")
    model.combiner.load_state_dict({_ours(name): value for name, value in tensors.items()})


def _ours(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{_COMBINER[layer]}.{kind}"


def _named(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": sha256_of(path)}
