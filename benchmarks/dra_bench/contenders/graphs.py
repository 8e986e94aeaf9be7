"""A contender made of three graphs that run on numpy arrays, whatever runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from dra_bench.contenders.backend import Floats
from dra_runtime.encoder import Pixels

Tokens = npt.NDArray[Any]


@dataclass(frozen=True)
class Graphs:
    """Image tower, text tower and Combiner in float32, each a function of arrays, behind a tokenizer."""

    name: str
    about: str
    tokenize: Callable[[Sequence[str]], Tokens]  #: texts -> (N, L)
    image_encoder: Callable[[Pixels], Floats]
    text_encoder: Callable[[Tokens], Floats]
    compositor: Callable[[Floats, Floats], Floats]
    image_input: str = "float32"  #: the type of the pixels that it takes, or "uint8"

    @property
    def precision(self) -> str:
        """What it computes in."""
        return "fp32"

    def text_tokens(self, texts: Sequence[str]) -> int:
        """Return the length of the token rows."""
        return int(self.tokenize(texts).shape[1])

    def image(self, pixels: Pixels) -> Floats:
        """Encode preprocessed images (N, 3, S, S)."""
        return self.image_encoder(pixels)

    def text(self, texts: Sequence[str]) -> Floats:
        """Tokenize and encode N texts."""
        return self.text_encoder(self.tokenize(texts))

    def compose(self, image_features: Floats, text_features: Floats) -> Floats:
        """Compose features into queries."""
        return self.compositor(image_features, text_features)

    def query(self, pixels: Pixels, texts: Sequence[str]) -> Floats:
        """Make whole queries from new reference images and texts."""
        return self.compose(self.image(pixels), self.text(texts))

    def query_by_id(self, image_features: Floats, texts: Sequence[str]) -> Floats:
        """Make queries whose references' features are known already."""
        return self.compose(image_features, self.text(texts))
