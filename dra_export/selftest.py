"""The inputs that a bundle carries so that any host can check itself against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dra_runtime.preprocess import open_image
from dra_train.model import DRA
from dra_train.vocabulary import clip_tokenizer

# Short and long, with what tokenizers disagree on: quotes, HTML entities, full-width letters, emoji, digits.
TEXTS = (
    "in red",
    "the same, but as a chef & with a “big” smile",
    "ＡＢＣ 1234 — isn't it &amp;lt;nice&amp;gt;? \U0001f469\U0001f3fd\u200d\U0001f373",
    "is shiny and silver with shorter sleeves, has a deep neckline, and the hem of the skirt is cut a little "
    "longer at the back than at the front while the colour stays the same",
)


def make_selftest(model: DRA, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of selftest.npz: raw inputs and PyTorch's float32 outputs for them."""
    images = _pictures(len(TEXTS), seed)
    tokens = clip_tokenizer(model.text.context_length)(TEXTS)
    pixels = np.stack([model.preprocess(open_image(image)) for image in images])
    with torch.inference_mode(), _one_thread():
        image_features, image_tokens = model.encode_image(torch.from_numpy(pixels))
        text_features = model.encode_text(torch.from_numpy(tokens))
        outputs = {
            "image_features": image_features,
            "text_features": text_features,
            "queries": model.compose(image_features, text_features),
        }
        if image_tokens is not None:
            outputs["relation_features"] = model.relate(image_tokens, image_tokens.roll(-1, dims=0))
    return {
        "images": images,
        "texts": np.array(TEXTS),
        "tokens": tokens,
        **{name: tensor.numpy() for name, tensor in outputs.items()},
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sum in one order: several threads round otherwise, and the bundle's identity would tell how many there were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pictures(count: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draw pictures (count, 90, 160, 3): wide enough to be padded, smooth colours with some noise on them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:1:90j, 0:1:160j]
    frequency, phase = generator.uniform(1, 6, (count, 3, 2)), generator.uniform(0, 2 * np.pi, (count, 3))
    waves = np.sin(
        2 * np.pi * (frequency[..., 0, None, None] * x + frequency[..., 1, None, None] * y) + phase[..., None, None]
    )
    noisy = 127.5 + 100 * waves + generator.normal(0, 12, waves.shape)  # (count, 3, 90, 160)
    return np.ascontiguousarray(np.clip(noisy, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1))
