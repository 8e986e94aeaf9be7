"""PyTorch eager."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_clip.tokenizer import SimpleTokenizer

from dra_bench.contenders.backend import CHANNELS_LAST, PYTORCH, Floats
from dra_runtime.encoder import Pixels
from dra_train.model import DRA


@dataclass(frozen=True)
class PyTorchTowers:
    """The model as its users run it today: eager float32, open_clip's tokenizer and towers, then the Combiner.

    open_clip pads every text to the context length of 77 tokens and runs the tower over all of them. With ``cut``
    the rows end at the last end-of-text token instead, which PyTorch could do as well. With ``channels_last`` images
    and the image tower's weights lie channels last, which is faster for some convolutions.
    """

    model: DRA
    tokenizer: SimpleTokenizer
    cut: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return CHANNELS_LAST if self.channels_last else PYTORCH

    @property
    def about(self) -> str:
        """What it is, in one line."""
        return "PyTorch eager, open_clip's towers and tokenizer"

    @property
    def precision(self) -> str:
        """What it computes in."""
        return "fp32"

    @property
    def image_input(self) -> str:
        """The type of the pixels that it takes."""
        return "float32"

    def text_tokens(self, texts: Sequence[str]) -> int:
        """Return the length of the token rows: the context length, or the longest text's where rows are cut."""
        return int(self._tokens(texts).shape[1])

    def image(self, pixels: Pixels) -> Floats:
        """Encode preprocessed images (N, 3, S, S)."""
        with torch.inference_mode():
            return _array(self._image(pixels))

    def text(self, texts: Sequence[str]) -> Floats:
        """Tokenize and encode N texts."""
        with torch.inference_mode():
            return _array(self._text(texts))

    def compose(self, image_features: Floats, text_features: Floats) -> Floats:
        """Compose features into queries."""
        with torch.inference_mode():
            return _array(self.model.compose(torch.from_numpy(image_features), torch.from_numpy(text_features)))

    def query(self, pixels: Pixels, texts: Sequence[str]) -> Floats:
        """Make whole queries from new reference images and texts."""
        with torch.inference_mode():
            return _array(self.model.compose(self._image(pixels), self._text(texts)))

    def query_by_id(self, image_features: Floats, texts: Sequence[str]) -> Floats:
        """Make queries whose references' features are known already."""
        with torch.inference_mode():
            return _array(self.model.compose(torch.from_numpy(image_features), self._text(texts)))

    def _image(self, pixels: Pixels) -> torch.Tensor:
        image = torch.from_numpy(pixels)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        if self.model.stage_projection is None:
            features: torch.Tensor = self.model.visual(image)  # open_clip's own tower
            return features
        return self.model.project_image(self.model.image_trunk(image).pooled)  # it knows no stages, so ours

    def _text(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokens(texts)
        # open_clip's own tower takes full rows only, so cut rows go through ours, which computes the same.
        features: torch.Tensor = self.model.encode_text(tokens) if self.cut else self.model.text(tokens)
        return features

    def _tokens(self, texts: Sequence[str]) -> torch.Tensor:
        tokens: torch.Tensor = self.tokenizer(list(texts))
        if self.cut:
            longest = int((tokens == self.tokenizer.eot_token_id).int().argmax(dim=-1).max()) + 1
            tokens = tokens[:, :longest]
        return tokens


def pytorch_towers(model: DRA, cut: bool = False) -> PyTorchTowers:
    """Make the PyTorch contender from a checkpoint's model."""
    return PyTorchTowers(model, SimpleTokenizer(context_length=int(model.text.context_length)), cut)


def channels_last_towers(model: DRA) -> PyTorchTowers:
    """Make the PyTorch contender whose images lie channels last and whose texts are cut, from a copy of the model."""
    turned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    tokenizer = SimpleTokenizer(context_length=int(model.text.context_length))
    return PyTorchTowers(turned, tokenizer, cut=True, channels_last=True)


def _array(features: torch.Tensor) -> Floats:
    array: Floats = features.numpy()
    return array
