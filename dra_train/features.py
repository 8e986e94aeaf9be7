"""Run the towers over a data set's images and texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dra_runtime.console import progress
from dra_runtime.preprocess import open_image
from dra_runtime.threads import available_threads
from dra_train.model import DRA, FrozenFeatures
from dra_train.vocabulary import clip_tokenizer

BATCH = 16  #: small enough that activations stay in a CPU's cache
BATCH_CUDA = 128
AHEAD = 2  #: batches that are opened while the tower is at work


@torch.no_grad()  # no inference mode: training saves these for its backward pass
def trunk_batches(model: DRA, paths: Sequence[Path]) -> Iterator[FrozenFeatures]:
    """Run the frozen part of the image tower over images, a batch at a time and in float32, back onto the CPU.

    Yields pooled (N, P) float32 and feature_map (N, T, C) half: the maps are what fills disks and memory.
    """
    for images in image_batches(model, paths):
        frozen = model.image_trunk(images)
        yield FrozenFeatures(frozen.pooled.float().cpu(), frozen.feature_map.half().cpu())


@torch.inference_mode()
def image_features(model: DRA, paths: Sequence[Path], label: str = "image features") -> Tensor:
    """Encode images into raw features (N, D), on the CPU: a gallery may not fit beside the model."""
    result = []
    with progress(len(paths), label) as advance:
        for images in image_batches(model, paths):
            result.append(model.project_image(model.image_trunk(images).pooled).cpu())
            advance(len(images))
    return torch.cat(result)


@torch.inference_mode()
def text_features(model: DRA, texts: Sequence[str], batch: int = 256) -> Tensor:
    """Encode texts into raw features (N, D), on the model's device."""
    parts = [tokenize(model, texts[start : start + batch]) for start in range(0, len(texts), batch)]
    return torch.cat([model.encode_text(tokens.to(device_of(model))) for tokens in parts])


def load_images(model: DRA, paths: Sequence[Path]) -> Tensor:
    """Open and preprocess images into (N, 3, S, S)."""
    return torch.from_numpy(np.stack([model.preprocess(open_image(path)) for path in paths]))


def image_batches(model: DRA, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Open and preprocess images in several threads, in order: batches (N, 3, S, S) on the model's device."""
    device = device_of(model)
    size = BATCH_CUDA if device.type == "cuda" else BATCH

    def load(path: Path) -> NDArray[np.float32]:
        return model.preprocess(open_image(path))

    waiting: deque[list[Future[NDArray[np.float32]]]] = deque()
    with ThreadPoolExecutor(available_threads()) as pool:  # Pillow opens and resizes without the interpreter's lock
        try:
            for start in range(0, len(paths), size):
                waiting.append([pool.submit(load, path) for path in paths[start : start + size]])
                if len(waiting) > AHEAD:
                    yield _stack(waiting.popleft(), device)
            while waiting:
                yield _stack(waiting.popleft(), device)
        finally:
            pool.shutdown(cancel_futures=True)


def tokenize(model: DRA, texts: Sequence[str]) -> Tensor:
    """Tokenize texts into (N, L) int32 ids, L the longest's length."""
    return torch.from_numpy(clip_tokenizer(model.text.context_length)(texts))


def device_of(model: DRA) -> torch.device:
    """Return the device that holds a model."""
    return next(model.parameters()).device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor from the CPU, without waiting for the copy where that is possible."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _stack(images: list[Future[NDArray[np.float32]]], device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(np.stack([image.result() for image in images])), device)
