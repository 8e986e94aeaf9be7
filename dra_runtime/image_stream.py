"""Encode any number of images in constant memory: the next batch is decoded while the network works on this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from dra_runtime.encoder import IMAGE_BATCH, Encoder, Features, Pixels
from dra_runtime.errors import ImageError
from dra_runtime.preprocess import ImageSource

if TYPE_CHECKING:
    from concurrent.futures import Future

Key = TypeVar("Key")


@dataclass(frozen=True)
class EncodedBatch(Generic[Key]):
    """A batch's images: ``keys`` of those that were encoded, their vectors, and the others with the reason.

    ``features`` (N, D) float32, raw; ``tokens`` (N, T, D) float32, or None where the bundle gives none.
    """

    keys: Sequence[Key]
    features: Features
    tokens: Features | None
    failed: Sequence[tuple[Key, ImageError]]


def encoded_images(encoder: Encoder, images: Iterable[tuple[Key, ImageSource]]) -> Iterator[EncodedBatch[Key]]:
    """Encode images as a stream, `IMAGE_BATCH` at a time and in their order.

    Decoding uses as many threads as the encoder and runs beside the network: PIL and the backends release the
    interpreter while they work. At most two batches are in memory. An image always shares its batch with the same
    others, so that its vector doesn't depend on how far an earlier run came.

    Yields
    ------
    EncodedBatch
        One for every `IMAGE_BATCH` images, the unusable ones among them.
    """
    from concurrent.futures import ThreadPoolExecutor  # only here, and slow to import

    remaining = iter(images)
    pool = ThreadPoolExecutor(encoder.threads)
    try:
        ahead: list[tuple[Key, Future[Pixels]]] | None = None
        while True:
            batch = list(islice(remaining, IMAGE_BATCH))
            decoding = [(key, pool.submit(encoder.pixels, source, 1)) for key, source in batch]
            if ahead is not None:
                yield _encoded(encoder, ahead)
            if not decoding:
                return
            ahead = decoding
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C nobody wants the images that wait


def _encoded(encoder: Encoder, batch: Sequence[tuple[Key, Future[Pixels]]]) -> EncodedBatch[Key]:
    keys: list[Key] = []
    pixels: list[Pixels] = []
    failed: list[tuple[Key, ImageError]] = []
    for key, future in batch:
        try:
            pixels.append(future.result())
            keys.append(key)
        except ImageError as error:
            failed.append((key, error))
    if not keys:
        return EncodedBatch(keys, np.empty((0, encoder.dim), np.float32), None, failed)
    outputs = encoder.encode_pixels(np.stack(pixels))
    return EncodedBatch(keys, outputs["image_features"], outputs.get("image_tokens"), failed)
