"""PyTorch: eager in float32, which all others are compared with, eager in half, and compiled."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from dra_bench.contenders.backend import CHANNELS_LAST, PYTORCH, Floats
from dra_runtime.encoder import Pixels
from dra_train.model import DRA

HALF, COMPILED = "pytorch-half", "pytorch-compile"
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
RECOMPILE_LIMIT = 64  #: shapes; beyond torch's own limit of 8 it would go on in eager mode without a word


@dataclass(frozen=True)
class PyTorchTowers:
    """The model as its users run it today: open_clip's tokenizer and towers, then the Combiner.

    open_clip pads every text to the context length of 77 tokens and runs the tower over all of them. With ``cut``
    the rows end at the last end-of-text token instead, which PyTorch could do as well. With ``channels_last`` images
    and the image tower's weights lie channels last, which is faster for some convolutions. ``compiled`` are image
    tower, text tower and Combiner from torch.compile, run in place of the model's own.

    The model lives where its weights are: on a GPU each call copies its inputs there and its vectors back, which also
    waits for them.
    """

    model: DRA
    tokenizer: SimpleTokenizer
    name: str = PYTORCH
    about: str = "PyTorch eager: open_clip's tokenizer and towers, then the Combiner"
    cut: bool = False
    channels_last: bool = False
    compiled: tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]] | None = None

    @property
    def precision(self) -> str:
        """What it computes in, which is what its weights are."""
        return PRECISIONS[self._weight.dtype]

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
            return to_numpy(self._image(pixels))

    def text(self, texts: Sequence[str]) -> Floats:
        """Tokenize and encode N texts."""
        with torch.inference_mode():
            return to_numpy(self._text(texts))

    def compose(self, image_features: Floats, text_features: Floats) -> Floats:
        """Compose features into queries."""
        with torch.inference_mode():
            return to_numpy(self._compose(self._moved(image_features), self._moved(text_features)))

    def query(self, pixels: Pixels, texts: Sequence[str]) -> Floats:
        """Make whole queries from new reference images and texts."""
        with torch.inference_mode():
            return to_numpy(self._compose(self._image(pixels), self._text(texts)))

    def query_by_id(self, image_features: Floats, texts: Sequence[str]) -> Floats:
        """Make queries whose references' features are known already."""
        with torch.inference_mode():
            return to_numpy(self._compose(self._moved(image_features), self._text(texts)))

    def relations(self, reference_tokens: Floats, candidate_tokens: Floats) -> Floats:
        """Relate images (N, T, D) as `dra_runtime.Encoder.relations` does; one reference goes with all candidates."""
        with torch.inference_mode():
            reference = self._moved(reference_tokens).expand(len(candidate_tokens), -1, -1)
            return to_numpy(self.model.relate(reference, self._moved(candidate_tokens)))

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self.model.text.positional_embedding
        return weight

    def _moved(self, array: Pixels) -> Tensor:
        return torch.from_numpy(array).to(self._weight.device, self._weight.dtype)

    def _image(self, pixels: Pixels) -> Tensor:
        image = self._moved(pixels)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return self.compiled[0](image) if self.compiled else image_tower(self.model, image)

    def _text(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokens(texts).to(self._weight.device)
        if self.compiled:
            return self.compiled[1](tokens)
        # open_clip's own tower takes full rows only, so cut rows go through ours, which computes the same.
        features: Tensor = self.model.encode_text(tokens) if self.cut else self.model.text(tokens)
        return features

    def _compose(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        compose = self.compiled[2] if self.compiled else self.model.compose
        return compose(image_features, text_features)

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        tokens: Tensor = self.tokenizer(list(texts))
        if self.cut:
            longest = int((tokens == self.tokenizer.eot_token_id).int().argmax(dim=-1).max()) + 1
            tokens = tokens[:, :longest]
        return tokens


def pytorch_towers(model: DRA, cut: bool = False, device: torch.device | None = None) -> PyTorchTowers:
    """Make the contender that all others are compared with, eager in float32; default: where PyTorch is fastest."""
    return PyTorchTowers(_on(model, device), padding_tokenizer(model), cut=cut)


def channels_last_towers(model: DRA, device: torch.device | None = None) -> PyTorchTowers:
    """Make the PyTorch contender whose images lie channels last and whose texts are cut, from a copy of the model."""
    turned = copy.deepcopy(model).to(device or fastest_device()).to(memory_format=torch.channels_last)
    about = "PyTorch eager, images channels last, texts cut to their length"
    return PyTorchTowers(turned, padding_tokenizer(model), CHANNELS_LAST, about, cut=True, channels_last=True)


def half_towers(model: DRA, device: torch.device | None = None) -> PyTorchTowers:
    """Make the PyTorch contender in half, weights and all: bfloat16 on a CPU, float16 on a GPU; from a copy."""
    device = device or fastest_device()
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    about = f"PyTorch eager, the whole model in {str(dtype).removeprefix('torch.')}"
    return PyTorchTowers(copy.deepcopy(model).to(device, dtype), padding_tokenizer(model), HALF, about)


def compiled_towers(model: DRA, device: torch.device | None = None) -> PyTorchTowers:
    """Make the contender whose towers and Combiner are compiled by torch.compile, each for fixed shapes.

    Batch 1 is compiled at once, others at their first call.

    On a GPU they are replayed as CUDA graphs (mode ``reduce-overhead``; ``max-autotune`` replays the same graphs after
    minutes of search). What they return is then copied, as the next replay overwrites it.

    Raises
    ------
    Exception
        Whatever torch raises where it can't compile: there is no C++ compiler, for one.
    """
    model = _on(model, device)
    on_gpu = model.text.positional_embedding.is_cuda
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns where there is no GPU

    def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        fast = torch.compile(function, dynamic=False, mode="reduce-overhead" if on_gpu else None)
        return (lambda *inputs: fast(*inputs).clone()) if on_gpu else fast

    towers = PyTorchTowers(
        model,
        padding_tokenizer(model),
        COMPILED,
        f"torch.compile of both towers and the Combiner, fixed shapes{', CUDA graphs' if on_gpu else ''}",
        compiled=(compiled(lambda image: image_tower(model, image)), compiled(model.text), compiled(model.compose)),
    )
    size = model.preprocess.image_size
    towers.query(torch.zeros(1, 3, size, size).numpy(), ["a text"])
    return towers


def image_tower(model: DRA, image: Tensor) -> Tensor:
    """Encode preprocessed images (N, 3, S, S) into raw features (N, D), by open_clip's own tower where it can."""
    if model.stage_projection is None:
        features: Tensor = model.visual(image)
        return features
    return model.project_image(model.image_trunk(image).pooled)  # open_clip's knows no stages, so ours


def padding_tokenizer(model: DRA) -> SimpleTokenizer:
    """Make open_clip's tokenizer, which pads every text to the model's context length."""
    return SimpleTokenizer(context_length=int(model.text.context_length))


def fastest_device() -> torch.device:
    """Return the GPU that PyTorch uses, or the CPU where it has none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_numpy(features: Tensor) -> Floats:
    """Return features as float32 in the CPU's memory, once they are computed."""
    array: Floats = features.detach().float().cpu().numpy()
    return array


def _on(model: DRA, device: torch.device | None) -> DRA:
    """Return the model on a device: itself where it is there, a copy elsewhere."""
    device = device or fastest_device()
    return model if device.type == "cpu" else copy.deepcopy(model).to(device)
