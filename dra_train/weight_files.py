"""Read weights out of the files that OpenAI, open_clip, timm, CLIP4Cir and this toolkit write, whatever their layout.

Nothing in a file is run: pickles are read with ``weights_only=True``, TorchScript archives without their program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dra_runtime.errors import CheckpointError
from dra_train.torchscript_archive import is_torchscript, tensors_from_torchscript

_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "attn_mask")
# OpenAI's archives carry these beside the weights; nobody else's files do.
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")
_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_LAYOUTS = "OpenAI's and open_clip's CLIP files, CLIP4Cir's fine-tuned ones and checkpoints of dra-train can be read"


@dataclass(frozen=True)
class StoredWeights:
    """Weights as they lie in a file, under the names of a DRA model: ``visual.…``, ``text.…``, ``combiner.…``."""

    tensors: Mapping[str, Tensor]  #: of any floating type; views into the file where it could be mapped
    source: str  #: what kind of file it is, for people
    quick_gelu: bool | None  #: whether they were trained with QuickGELU; None where the file doesn't tell
    clip: Mapping[str, Any] | None = None  #: open_clip's configuration of them, where the file names it
    backbone: str | None = None  #: that configuration's name


def read_weights(path: Path) -> StoredWeights:
    """Read a file of CLIP weights, or of a timm image tower (names as in timm, in no layout of CLIP's).

    CheckpointError says in one line why a file can't be used.
    """
    content, source = read_tensors(path)
    if content.get("format") == "dra-checkpoint":
        return _own_weights(path, content)
    quick_gelu: bool | None = None
    if isinstance(content.get("CLIP"), Mapping):
        # CLIP4Cir fine-tunes OpenAI's models with OpenAI's code, which knows no other activation.
        content, source, quick_gelu = content["CLIP"], "CLIP4Cir's fine-tuned CLIP", True
    elif "Combiner" in content:
        raise CheckpointError(f"{path} holds CLIP4Cir's Combiner, not a CLIP; give its CLIP, and this as --combiner")
    else:
        content = next((content[k] for k in ("state_dict", "model") if isinstance(content.get(k), Mapping)), content)
    tensors = _without_wrappers({str(name): value for name, value in content.items()})
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no weights by name, but {_some(tensors)}; {_LAYOUTS}")
    if any(name.startswith(("vision_model.", "text_model.")) for name in tensors):
        raise CheckpointError(f"{path} is in Hugging Face transformers' layout; give the same model's open_clip file")
    if all(name in tensors for name in _OPENAI_SIZES):
        quick_gelu, source = True, f"OpenAI's CLIP, {source}"
    elif quick_gelu is None:
        quick_gelu = _quick_gelu_beside(path)
    if "token_embedding.weight" in tensors:  # CLIP's layout: the text tower stands at the top
        tensors = {f"text.{name}" if name.startswith(_TEXT) else name: value for name, value in tensors.items()}
    derived = (*_OPENAI_SIZES, "logit_scale", "logit_bias")
    kept = {k: v for k, v in tensors.items() if k not in derived and not k.endswith("attn_mask")}
    return StoredWeights(kept, source, quick_gelu)


def read_combiner(path: Path) -> dict[str, Tensor]:
    """Read the Combiner out of CLIP4Cir's file, under CLIP4Cir's names; CheckpointError if it holds none."""
    content, _ = read_tensors(path)
    combiner = content.get("Combiner", content)
    tensors = _without_wrappers(dict(combiner)) if isinstance(combiner, Mapping) else {}
    if "combiner_layer.weight" not in tensors or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise CheckpointError(f"{path} holds no Combiner of CLIP4Cir's but {_some(content)}; expected a key 'Combiner'")
    return tensors


def read_tensors(path: Path) -> tuple[dict[str, Any], str]:
    """Read a file of any of the formats into plain values and tensors, and say which format it was.

    CheckpointError says that it is missing, damaged, or asks for code to be run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} doesn't exist or is no file; expected weights")
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[4:] == b"\0\0\0\0{":  # eight bytes of length, then JSON
            return dict(safetensors.torch.load_file(path)), "a safetensors file"
        if is_torchscript(path):
            return dict(tensors_from_torchscript(path)), "a TorchScript archive"
        # Only the newer, zipped form can be mapped; then an optimizer beside the weights is never read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=start[:2] == b"PK")
    except Exception as error:  # damaged files fail in every way there is
        reason = " ".join(str(error).split()).split(". ")[0][:120] or type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as weights: damaged, or it asks for code to be run ({reason})"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name; {_LAYOUTS}")
    return {str(name): value for name, value in content.items()}, "a state dict"


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quick_gelu_beside(path: Path) -> bool | None:
    """Ask the configuration that comes beside open_clip's weights when they are downloaded; None if there is none."""
    config = path.with_name("open_clip_config.json")
    if not path.name.startswith("open_clip_") or not config.is_file():  # another file's weights may lie here as well
        return None
    try:
        return bool(json.loads(config.read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu", False))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _own_weights(path: Path, content: Mapping[str, Any]) -> StoredWeights:
    try:
        config = content["config"]
        clip, backbone, tensors = dict(config["clip"]), str(config["backbone"]), dict(content["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged checkpoint of dra-train: {type(error).__name__} {error}") from error
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} is a damaged checkpoint of dra-train: its weights are no tensors")
    return StoredWeights(tensors, "a checkpoint of dra-train", bool(clip.get("quick_gelu", False)), clip, backbone)


def _without_wrappers(tensors: dict[str, Any]) -> dict[str, Any]:
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def _some(content: Mapping[str, Any]) -> str:
    return ", ".join(" ".join(str(name).split())[:60] for name in list(content)[:5]) or "nothing"
