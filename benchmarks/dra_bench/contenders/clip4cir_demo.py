"""PyTorch as the demo of CLIP4Cir calls it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from dra_bench.contenders.backend import Floats
from dra_bench.contenders.pytorch import PRECISIONS, fastest_device, image_tower, padding_tokenizer, to_numpy
from dra_runtime.encoder import Pixels
from dra_train.model import DRA

DEMO = "clip4cir-demo"


@dataclass(frozen=True)
class Clip4CirDemo:
    """The two towers and the Combiner, called as the server of github.com/ABaldrati/CLIP4CirDemo calls them.

    The same as PyTorch eager: the model, its weights, texts padded to 77 tokens, every operation.

    Different, as the demo does it: the text is tokenized before the image is encoded; the image is encoded with
    autograd recording, only text tower and Combiner run under ``torch.no_grad()`` (ours: all under inference mode); the
    model is float32 on a CPU, but float16 on a GPU.

    Different from the demo: the towers are open_clip's instead of OpenAI's first code, which computes the same; several
    queries a call are one batch, where the demo has one; pixels come preprocessed, and the demo's search is left out.
    """

    model: DRA
    tokenizer: SimpleTokenizer
    device: torch.device
    dtype: torch.dtype
    name: str = DEMO
    about: str = "PyTorch eager in the order and with the calls of CLIP4Cir's demo"

    @property
    def precision(self) -> str:
        """What it computes in."""
        return PRECISIONS[self.dtype]

    @property
    def image_input(self) -> str:
        """The type of the pixels that it takes."""
        return "float32"

    def text_tokens(self, texts: Sequence[str]) -> int:
        """Return the context length, to which every text is padded."""
        return int(self.tokenizer.context_length)

    def image(self, pixels: Pixels) -> Floats:
        """Encode preprocessed images (N, 3, S, S)."""
        return to_numpy(self._image(pixels))

    def text(self, texts: Sequence[str]) -> Floats:
        """Tokenize and encode N texts."""
        tokens = self._tokens(texts)
        with torch.no_grad():
            return to_numpy(self.model.text(tokens))

    def compose(self, image_features: Floats, text_features: Floats) -> Floats:
        """Compose features into queries."""
        with torch.no_grad():
            return to_numpy(self.model.compose(self._moved(image_features), self._moved(text_features)))

    def query(self, pixels: Pixels, texts: Sequence[str]) -> Floats:
        """Make whole queries from new reference images and texts."""
        tokens = self._tokens(texts)
        reference = self._image(pixels)
        with torch.no_grad():
            return to_numpy(self.model.compose(reference, self.model.text(tokens)))

    def query_by_id(self, image_features: Floats, texts: Sequence[str]) -> Floats:
        """Make queries whose references' features are known already."""
        tokens = self._tokens(texts)
        reference = self._moved(image_features)
        with torch.no_grad():
            return to_numpy(self.model.compose(reference, self.model.text(tokens)))

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens.to(self.device)

    def _image(self, pixels: Pixels) -> Tensor:
        return image_tower(self.model, self._moved(pixels))

    def _moved(self, array: Pixels) -> Tensor:
        return torch.from_numpy(array).to(self.device, self.dtype)


def clip4cir_demo(model: DRA, device: torch.device | None = None) -> Clip4CirDemo:
    """Make the contender; where the demo would run the model in half, from a copy of it."""
    device = device or fastest_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    moved = model if device.type == "cpu" else copy.deepcopy(model).to(device, dtype)
    return Clip4CirDemo(moved, padding_tokenizer(model), device, dtype)
