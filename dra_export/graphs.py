"""The five graphs of a bundle, as modules that the exporter traces.

Each graph has its inputs' names, their shapes with the symbolic axes, and its outputs' names; docs/bundle.md
has the same table in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dra_train.model import DRA

BATCH, LENGTH = "batch", "length"  #: names of the symbolic axes
Axis = int | str


@dataclass(frozen=True)
class Graph:
    """One graph to export."""

    name: str
    module: nn.Module
    inputs: Mapping[str, tuple[Axis, ...]]  #: shape of every input; strings are symbolic axes
    outputs: tuple[str, ...]
    max_length: int = 77  #: the largest size of the axis `LENGTH`

    def example(self, batch: int, length: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return one random, valid value for every input."""
        sizes = {BATCH: batch, LENGTH: length}
        generator = torch.Generator().manual_seed(seed)
        values = []
        for name, shape in self.inputs.items():
            size = [sizes[axis] if isinstance(axis, str) else axis for axis in shape]
            if name == "tokens":
                tokens = torch.randint(1, 49406, size, generator=generator, dtype=torch.int32)
                tokens[:, -1] = 49407
                values.append(tokens)
            else:
                values.append(torch.randn(size, generator=generator))
        return tuple(values)


def graphs_of(model: DRA) -> list[Graph]:
    """Return the graphs that a model has: reranker and image_tokens only with a vision compositor."""
    size, dim = model.preprocess.image_size, model.config.dim
    image = {"image": (BATCH, 3, size, size)}
    tokens = {"tokens": (BATCH, LENGTH)}
    features = {"image_features": (BATCH, dim), "text_features": (BATCH, dim)}
    graphs = [
        Graph(
            "image_encoder", ImageEncoder(model), image, ("image_features", "image_tokens")[: 2 if model.has_tac else 1]
        ),
        Graph("text_encoder", TextEncoder(model), tokens, ("text_features",), model.text.context_length),
        Graph("compositor", Compositor(model), features, ("query",)),
        Graph("query", Query(model), {**image, **tokens}, ("query",)),
    ]
    if model.has_tac:
        with torch.inference_mode():
            count = model.image_trunk(torch.zeros(1, 3, size, size)).feature_map.shape[1]
        pair = {"reference_tokens": (BATCH, count, dim), "candidate_tokens": (BATCH, count, dim)}
        graphs.insert(3, Graph("reranker", Reranker(model), pair, ("relation_features",)))
    return graphs


class ImageEncoder(nn.Module):
    """image (N, 3, S, S) -> image_features (N, D), image_tokens (N, T, D)."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Encode images; without a vision compositor there are no tokens."""
        features, tokens = self.model.encode_image(image)
        return features if tokens is None else (features, tokens)


class TextEncoder(nn.Module):
    """tokens (N, L) -> text_features (N, D)."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts."""
        return self.model.encode_text(tokens)


class Compositor(nn.Module):
    """image_features (N, D), text_features (N, D) -> query (N, D)."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compose raw features into queries of unit length."""
        return self.model.compose(image_features, text_features)


class Reranker(nn.Module):
    """reference_tokens (N, T, D), candidate_tokens (N, T, D) -> relation_features (N, D)."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        self.model = model

    def forward(self, reference_tokens: Tensor, candidate_tokens: Tensor) -> Tensor:
        """Relate pairs of images."""
        return self.model.relate(reference_tokens, candidate_tokens)


class Query(nn.Module):
    """image (N, 3, S, S), tokens (N, L) -> query (N, D)."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """Encode and compose."""
        features = self.model.project_image(self.model.image_trunk(image).pooled)
        return self.model.compose(features, self.model.encode_text(tokens))
