"""What every contender does, all with the same boundary: preprocessed pixels and strings in, numpy vectors out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dra_runtime.encoder import Pixels

Floats = NDArray[np.float32]

PYTORCH = "pytorch-eager"  #: the contender that all others are compared with, in speed and in vectors
CHANNELS_LAST = f"{PYTORCH} channels-last"
LEAST_COSINE = {"fp32": 0.999, "fp16": 0.999, "bf16": 0.99, "int8": 0.9}
"""By precision, the cosine with PyTorch's float32 vector below which a contender isn't the same model.

bfloat16 keeps 8 bits of a number, and INT8 may move vectors; what that costs in recall, others measure.
"""


class Backend(Protocol):
    """What is timed. N images or texts a call; features are raw, queries of unit length, all (N, D) float32.

    The first call with another N or L may take long: some compile then. Make one before timing. What a contender holds
    in memory is released when it is no longer referred to.
    """

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def about(self) -> str:
        """What it is, in one line."""

    @property
    def precision(self) -> str:
        """What it computes in: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``."""

    @property
    def image_input(self) -> str:
        """The type of the pixels that it takes: ``"float32"``, normalised, or ``"uint8"``."""

    def text_tokens(self, texts: Sequence[str]) -> int:
        """Return the length L of the token rows that the text tower gets for ``texts``."""

    def image(self, pixels: Pixels) -> Floats:
        """Encode preprocessed images (N, 3, S, S)."""

    def text(self, texts: Sequence[str]) -> Floats:
        """Tokenize and encode N texts."""

    def compose(self, image_features: Floats, text_features: Floats) -> Floats:
        """Compose features into queries."""

    def query(self, pixels: Pixels, texts: Sequence[str]) -> Floats:
        """Make whole queries from new reference images and texts."""

    def query_by_id(self, image_features: Floats, texts: Sequence[str]) -> Floats:
        """Make queries whose references' features are known already."""


@dataclass(frozen=True)
class Unavailable:
    """A contender that can't be used here, and why."""

    backend: str
    reason: str


@dataclass(frozen=True)
class LineUp:
    """Who takes part, PyTorch eager first, and who can't."""

    contenders: tuple[Backend, ...]
    unavailable: tuple[Unavailable, ...]
