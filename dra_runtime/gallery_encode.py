"""Images to the vectors of a gallery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dra_runtime.encoder import Encoder, Features
from dra_runtime.errors import UsageError
from dra_runtime.ids import check_id
from dra_runtime.image_stream import encoded_images
from dra_runtime.metadata import Item
from dra_runtime.preprocess import ImageSource
from dra_runtime.rerank import half_tokens
from dra_runtime.vectors import Storage, Vectors, vectors_from_features

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images that could be read: their ids, raw features (N, D), and tokens (N, T, D) where these were asked for."""

    ids: list[str]
    features: Features
    tokens: npt.NDArray[np.float16] | None
    skipped: list[tuple[str, str]]


def encode(
    encoder: Encoder,
    images: Mapping[str, ImageSource],
    progress: Progress | None,
    tokens: bool,
    skip: bool,
) -> Encoded:
    """Encode images batch by batch.

    Parameters
    ----------
    encoder
        Encodes them.
    images
        Images by id.
    progress
        Called with the number of images done and of all.
    tokens
        Whether to keep the image tokens as well.
    skip
        Whether an unusable image is left out and noted; otherwise it is an error.

    Raises
    ------
    ImageError
        An image can't be used.
    UsageError
        Tokens are asked for, and the bundle has none.
    """
    if tokens and "reranker" not in encoder.bundle.manifest.graphs:
        raise UsageError(f"{encoder.bundle.path} has no reranker, so there are no tokens to store; leave tokens off")
    ids: list[str] = []
    skipped: list[tuple[str, str]] = []
    features = [np.empty((0, encoder.dim), np.float32)]
    kept_tokens: list[npt.NDArray[np.float16]] = []

    def usable() -> Iterator[tuple[str, ImageSource]]:
        for name, source in images.items():
            try:
                yield check_id(name), source
            except UsageError as error:
                if not skip:
                    raise
                skipped.append((name, str(error)))

    for batch in encoded_images(encoder, usable()):
        if batch.failed and not skip:
            raise batch.failed[0][1]
        skipped += [(name, str(error)) for name, error in batch.failed]
        ids += batch.keys
        features.append(batch.features)
        if tokens and batch.tokens is not None:
            kept_tokens.append(half_tokens(batch.tokens))
        if progress is not None:
            progress(len(ids) + len(skipped), len(images))
    return Encoded(ids, np.concatenate(features), np.concatenate(kept_tokens) if kept_tokens else None, skipped)


def vectors_of(encoded: Encoded, metadata: Mapping[str, Item] | None, storage: Storage) -> Vectors:
    """Make a gallery's rows of encoded images; ``metadata`` is by id, and ids that were not encoded are ignored."""
    items = [metadata.get(name) for name in encoded.ids] if metadata else None
    return vectors_from_features(encoded.ids, encoded.features, storage, items, encoded.tokens)


def checked_images(images: Mapping[str, ImageSource]) -> Mapping[str, ImageSource]:
    """Return images by id, or raise UsageError."""
    if not isinstance(images, Mapping):
        raise UsageError(f"images is a {type(images).__name__}; give a dict of images by id, or a folder's path")
    for name in images:
        check_id(name)
    return images


def check_metadata(metadata: Mapping[str, Item] | None, ids: Iterable[str]) -> None:
    """Refuse metadata that is not by id, or of an id that isn't among ``ids``."""
    if metadata is None:
        return
    if not isinstance(metadata, Mapping):
        raise UsageError(f"metadata is a {type(metadata).__name__}; give a dict by id of dicts")
    known = set(ids)
    for name in metadata:
        if name not in known:
            raise UsageError(f"metadata has an id {name!r:.80} that none of the images has; leave it out")
