"""Run the towers over a data set's images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dra_runtime.console import progress
from dra_runtime.preprocess import open_image
from dra_train.model import DRA, FrozenFeatures
from dra_train.vocabulary import clip_tokenizer

BATCH = 16  #: small enough that activations stay in the cache


@torch.no_grad()  # no inference mode: training saves these for its backward pass
def trunk_features(model: DRA, paths: Sequence[Path], label: str = "image features") -> FrozenFeatures:
    """Run the frozen part of the image tower over images: pooled (N, P) float32, feature_map (N, T, C) half."""
    pooled, maps = [], []
    with progress(len(paths), label) as advance:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            frozen = model.image_trunk(load_images(model, batch))
            pooled.append(frozen.pooled)
            maps.append(frozen.feature_map.half())  # half: the maps are what fills the memory
            advance(len(batch))
    return FrozenFeatures(torch.cat(pooled), torch.cat(maps))


@torch.inference_mode()
def image_features(model: DRA, paths: Sequence[Path], label: str = "image features") -> Tensor:
    """Encode images into raw features (N, D)."""
    result = []
    with progress(len(paths), label) as advance:
        for start in range(0, len(paths), BATCH):
            batch = paths[start : start + BATCH]
            result.append(model.encode_image(load_images(model, batch))[0])
            advance(len(batch))
    return torch.cat(result)


@torch.inference_mode()
def text_features(model: DRA, texts: Sequence[str], batch: int = 256) -> Tensor:
    """Encode texts into raw features (N, D)."""
    return torch.cat([model.encode_text(tokenize(model, texts[i : i + batch])) for i in range(0, len(texts), batch)])


def load_images(model: DRA, paths: Sequence[Path]) -> Tensor:
    """Open and preprocess images into (N, 3, S, S)."""
    return torch.from_numpy(np.stack([model.preprocess(open_image(path)) for path in paths]))


def tokenize(model: DRA, texts: Sequence[str]) -> Tensor:
    """Tokenize texts into (N, L) int32 ids, L the longest's length."""
    return torch.from_numpy(clip_tokenizer(model.text.context_length)(texts))
