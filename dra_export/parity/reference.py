"""What PyTorch computes in float32 for real image-text pairs, once, for every artifact that is compared with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dra_runtime.console import progress
from dra_runtime.errors import ImageError
from dra_train.data import Dataset, Query, unreadable_error
from dra_train.evaluate import evaluation_mode
from dra_train.features import image_batches
from dra_train.metrics import drops_reference
from dra_train.model import DRA
from dra_train.vocabulary import clip_tokenizer

Array = NDArray[np.float32]

TEXTS_AT_ONCE = 64
PAIRS_AT_ONCE = 64
# Image tokens fill memory: 0.2 MB an image at RN50x4. Beyond this many bytes, they are kept for some of the pairs only.
TOKEN_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Reference:
    """PyTorch's float32 vectors of the queries that are compared, and of their images."""

    dataset: Dataset
    queries: tuple[Query, ...]
    is_whole_split: bool  #: all queries, and ``names`` is the gallery: ranks and recalls can be measured
    names: tuple[str, ...]  #: M images
    image_features: Array  #: (M, D), raw
    text_features: Array  #: (Q, D), raw, of texts padded to the full context
    composed: Array  #: (Q, D), unit length
    tokens: Mapping[str, Array]  #: (T, D) by image: all of them, or as many as `TOKEN_BYTES` hold; none without TAC
    related: tuple[int, ...]  #: P queries whose reference and target both have tokens
    relation_features: Array  #: (P, D)

    @property
    def rows(self) -> dict[str, int]:
        """Return each image's row in ``image_features``."""
        return {name: row for row, name in enumerate(self.names)}

    @property
    def drops_reference(self) -> bool:
        """Tell whether the data set's protocol takes a query's reference out of its ranking."""
        return drops_reference(self.dataset.format)


@torch.inference_mode()
def reference_from_model(model: DRA, dataset: Dataset, pairs: int | None = None) -> Reference:
    """Compute a split with PyTorch in float32.

    With ``pairs`` fewer than the split has, only so many queries, spread over it, with the images that they name.
    Memory beside the vectors stays below `TOKEN_BYTES`. DatasetError when images can't be opened.
    """
    queries = dataset.queries
    is_whole_split = pairs is None or pairs >= len(queries)
    if pairs is not None and not is_whole_split:
        queries = tuple(queries[i] for i in np.linspace(0, len(queries) - 1, pairs).astype(int))
    named = dict.fromkeys(name for q in queries for name in (q.reference, q.target))
    names = tuple(dataset.images) if is_whole_split else tuple(named)
    with evaluation_mode(model):
        try:
            image_features, tokens, related = _images(model, dataset, names, queries)
        except ImageError as error:  # the first; tell about all of them at once
            raise unreadable_error(dataset) or error from error
        text_features = _texts(model, [q.text for q in queries])
        rows = {name: row for row, name in enumerate(names)}
        references = image_features[[rows[q.reference] for q in queries]]
        composed = torch.cat(
            [
                model.compose(image, text)
                for image, text in zip(references.split(PAIRS_AT_ONCE), text_features.split(PAIRS_AT_ONCE), strict=True)
            ]
        )
        relation_features = _relations(model, tokens, [queries[i] for i in related])
    return Reference(
        dataset=dataset,
        queries=queries,
        is_whole_split=is_whole_split,
        names=names,
        image_features=image_features.numpy(),
        text_features=text_features.numpy(),
        composed=composed.numpy(),
        tokens={name: value.numpy() for name, value in tokens.items()},
        related=tuple(related),
        relation_features=relation_features,
    )


def _images(
    model: DRA, dataset: Dataset, names: Sequence[str], queries: Sequence[Query]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[int]]:
    """Return features (M, D), the tokens that are kept, and the queries whose pair of images has them."""
    features: list[torch.Tensor] = []
    tokens: dict[str, torch.Tensor] = {}
    related: list[int] = []
    kept: set[str] = set()
    first = 0
    with progress(len(names), "PyTorch: images") as advance:
        for pixels in image_batches(model, [dataset.images[name] for name in names]):
            batch_features, batch_tokens = model.encode_image(pixels)
            features.append(batch_features)
            batch = names[first : first + len(pixels)]
            if batch_tokens is not None:
                if not first:  # only now it is known how large they are
                    related, kept = _affordable(queries, TOKEN_BYTES // (4 * batch_tokens[0].numel()))
                tokens |= {n: t.clone() for n, t in zip(batch, batch_tokens, strict=True) if n in kept}
            first += len(pixels)
            advance(len(pixels))
    return torch.cat(features), tokens, related


def _affordable(queries: Sequence[Query], images: int) -> tuple[list[int], set[str]]:
    """Choose queries, spread over all, whose references and targets are at most so many images (one pair at least)."""
    chosen: list[int] = []
    kept: set[str] = set()
    for i in np.random.default_rng(0).permutation(len(queries)).tolist():
        with_this = kept | {queries[i].reference, queries[i].target}
        if len(with_this) <= max(2, images):
            kept = with_this
            chosen.append(i)
    return sorted(chosen), kept


def _texts(model: DRA, texts: Sequence[str]) -> torch.Tensor:
    """Encode texts with open_clip's own tower, padded to the full context; equal texts once."""
    distinct = list(dict.fromkeys(texts))
    tokens = torch.from_numpy(clip_tokenizer(model.text.context_length)(distinct, model.text.context_length))
    parts = []
    with progress(len(distinct), "PyTorch: texts") as advance:
        for part in tokens.split(TEXTS_AT_ONCE):
            parts.append(model.text(part))
            advance(len(part))
    row = {text: i for i, text in enumerate(distinct)}
    return torch.cat(parts)[[row[text] for text in texts]]


def _relations(model: DRA, tokens: Mapping[str, torch.Tensor], queries: Sequence[Query]) -> Array:
    parts = [np.empty((0, model.config.dim), np.float32)]
    for start in range(0, len(queries), PAIRS_AT_ONCE):
        batch = queries[start : start + PAIRS_AT_ONCE]
        reference, candidate = (
            torch.stack([tokens[name] for name in names])
            for names in ([q.reference for q in batch], [q.target for q in batch])
        )
        parts.append(model.relate(reference, candidate).numpy())
    return np.concatenate(parts)
