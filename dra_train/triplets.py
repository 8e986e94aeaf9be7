"""The training data as tensors: indices on the CPU, from which a batch's features are fetched."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from dra_runtime.errors import DatasetError
from dra_train.data import Dataset
from dra_train.feature_cache import ImageOutputs
from dra_train.features import tokenize
from dra_train.model import DRA
from dra_train.vocabulary import END_TOKEN


@dataclass(frozen=True)
class Batch:
    """Some triplets: rows of the training data's images and texts, (B,) each."""

    reference: Tensor
    target: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Tensor | slice) -> Batch:
        """Return some of its triplets."""
        return Batch(self.reference[rows], self.target[rows], self.text[rows])


@dataclass(frozen=True)
class Triplets:
    """The training data: N triplets over M images and U distinct texts."""

    reference: Tensor  #: (N,) index into the images
    target: Tensor  #: (N,)
    texts: Tensor  #: (N, K) indices into the texts: the alternatives of each triplet, the last one repeated
    alternatives: Tensor  #: (N,) how many of them count
    tokens: Tensor  #: (U, L) int32, padded with 0
    length: Tensor  #: (U,) tokens up to the end-of-text token
    images: ImageOutputs  #: the frozen trunk's, of all images
    spread: Tensor  #: (P,) standard deviation of every pooled feature over the images

    def __len__(self) -> int:
        return len(self.target)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw an epoch: the triplets' order (N,) and each one's text (N,), from PyTorch's random state."""
        order = torch.randperm(len(self))
        if not (self.alternatives > 1).any():  # most data sets: nothing to draw
            return order, self.texts[:, 0]
        choice = (torch.rand(len(self)) * self.alternatives).long()
        return order, self.texts.gather(1, choice[:, None])[:, 0]

    def batch(self, rows: Tensor, texts: Tensor) -> Batch:
        """Return the triplets ``rows`` (B,) with their part of an epoch's ``texts`` (N,)."""
        return Batch(self.reference[rows], self.target[rows], texts[rows])


def make_triplets(model: DRA, dataset: Dataset, images: ImageOutputs) -> Triplets:
    """Turn a data set into indices and tokens. DatasetError when its split hides the targets."""
    if hidden := sum(not q.target for q in dataset.queries):
        raise DatasetError(
            f"{hidden} queries of {dataset.name} / {dataset.split} have no target; train on another split"
        )
    index = {name: i for i, name in enumerate(dataset.images)}
    alternatives = [q.train_texts or (q.text,) for q in dataset.queries]
    text_id = {text: i for i, text in enumerate(dict.fromkeys(text for texts in alternatives for text in texts))}
    most = max(map(len, alternatives))
    tokens = tokenize(model, list(text_id))
    return Triplets(
        reference=torch.tensor([index[q.reference] for q in dataset.queries]),
        target=torch.tensor([index[q.target] for q in dataset.queries]),
        texts=torch.tensor([[text_id[t] for t in (*ts, *ts[-1:] * (most - len(ts)))] for ts in alternatives]),
        alternatives=torch.tensor([len(ts) for ts in alternatives]),
        tokens=tokens,
        # Not the count of non-zeros: 0 pads, but it is also the id of "!" inside a word.
        length=(tokens == END_TOKEN).int().argmax(dim=1) + 1,
        images=images,
        spread=images.pooled.std(dim=0),
    )


def fingerprint(dataset: Dataset) -> str:
    """Hash what a run learns from a data set, so that it is resumed on the same."""
    queries = [[q.reference, q.target, *(q.train_texts or (q.text,))] for q in dataset.queries]
    return hashlib.sha256(json.dumps([list(dataset.images), queries]).encode()).hexdigest()
