"""A stand-in for a photograph: as many pixels, and a file as large, as a camera's picture of one megapixel."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dra_bench.picture import thumbnail
from dra_train.data import open_dataset

WIDTH, HEIGHT = 1152, 864
TILE = 288  #: side of a picture; four by three of them
NOISE = 6.0  #: standard deviation, of 255: a sensor's at low light
QUALITY = 90

ABOUT = (
    f"a stand-in for a photograph: {WIDTH}x{HEIGHT} pixels, built-in pictures scaled to {TILE} px, tiled, with "
    f"noise of standard deviation {NOISE:g} of 255, as JPEG of quality {QUALITY}"
)


def photograph(seed: int = 0) -> bytes:
    """Return the picture as a JPEG file's bytes, the same for the same seed and encoder."""
    (dataset,) = open_dataset("builtin", "val")
    rng = np.random.default_rng(seed)
    paths = list(dataset.images.values())
    canvas = Image.new("RGB", (WIDTH, HEIGHT))
    corners = [(x, y) for y in range(0, HEIGHT, TILE) for x in range(0, WIDTH, TILE)]
    for corner, i in zip(corners, rng.choice(len(paths), len(corners), replace=False), strict=True):
        canvas.paste(thumbnail(paths[i], TILE), corner)
    noisy = np.asarray(canvas, np.float32) + NOISE * rng.standard_normal((HEIGHT, WIDTH, 3), np.float32)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
