"""Where the vision compositor (TAC) looks in a pair of images.

The model computes its attention in one fused step that never shows its weights. Here the same mathematics is written
out, from the model's own layers, for one pair.

What the weights of a stream mean. With R and T the two images' tokens, stream 1 computes ``o1 = A1 T``,
``o2 = A2 o1``, … (each A a matrix of weights whose rows sum to 1; linear maps left out). Row i of A1 says where *in T*
position i of R looks. The columns of A2 are the rows of o1: positions *of R*, each of them a mixture of T by then. So
from layer 2 on, the class token's weights lie on the image that asks, and only the product ``A_L … A_1`` leads back to
the other image. TAC has no residuals, norms or activations between its layers; with one head that product is therefore
exact: a stream's output is ``sum_j p_j M t_j + constant`` with p the product's class row. With several heads each has
a matrix of its own, and the product of their means is an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from dra_runtime.errors import CheckpointError
from dra_train.features import text_features
from dra_train.model import DRA, Attention


@dataclass(frozen=True)
class Look:
    """How much each part of one image counts: its patches as they lie in it, and the class token beside them."""

    over: str  #: "reference" or "target": whose positions these are
    patches: NDArray[np.float32] = field(repr=False)  #: (h, w)
    class_token: float  #: what falls on no patch

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"over": self.over, "class_token": self.class_token, "patches": self.patches.tolist()}


@dataclass(frozen=True)
class StreamAttention:
    """One of TAC's two streams, seen from its class token."""

    asks: str  #: "reference" or "target": the image that the queries come from
    layers: tuple[
        Look, ...
    ]  #: weights a layer, mean of its heads; over the other image in layer 1, the asking one then
    traced: Look  #: all layers together, over the other image; sums to 1
    agreement: Look  #: what each token of the other image adds to cos(F_v, F_c); may be negative
    constant: float  #: what the layers' biases add to it

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "asks": self.asks,
            "layers": [look.to_dict() for look in self.layers],
            "traced": self.traced.to_dict(),
            "agreement": {**self.agreement.to_dict(), "constant": self.constant},
        }


@dataclass(frozen=True)
class PairAttention:
    """Where TAC looks in a reference and a target, and how well what it sees fits the text."""

    streams: tuple[StreamAttention, ...]
    agreement: float  #: cos(F_v, F_c): the sum of what both streams' tokens and constants add
    exact: bool  #: whether `StreamAttention.traced` is exact (one head) or a mean over heads

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        streams = [stream.to_dict() for stream in self.streams]
        return {"agreement": self.agreement, "traced_is_exact": self.exact, "streams": streams}


def pair_attention(model: DRA, reference: Tensor, target: Tensor, text: str) -> PairAttention:
    """Trace TAC's attention over two preprocessed images (3, S, S) each, and its agreement with a text.

    Raises
    ------
    CheckpointError
        The model has no TAC, or its tokens form no grid that could be laid over an image.
    """
    if not model.has_tac:
        raise CheckpointError("this model has no vision compositor (tac_layers = 0), so there is no attention to show")
    with torch.no_grad():
        tokens = model.encode_image(torch.stack([reference, target]))[1]
        assert tokens is not None
        grid = token_grid(model, tokens.shape[1])
        r, t = (torch.cat([model.tac.class_token[None], image]) for image in tokens)  # (1 + T, D) each
        traces = [_trace(model, 0, r, t), _trace(model, -1, t, r)]
        relation = (traces[0].output + traces[1].output) / 2  # (D,)
    text_feature = text_features(model, [text])[0].clone()  # a clone may take part in a gradient
    agreement = F.cosine_similarity(relation, text_feature, dim=0).item()
    direction = F.normalize(text_feature, dim=0) / (2 * relation.norm())
    streams = []
    for (asks, other), trace, image in zip(
        (("reference", "target"), ("target", "reference")), traces, (t, r), strict=True
    ):
        parts, constant = _shares(model, trace, image, direction)
        streams.append(
            StreamAttention(
                asks=asks,
                layers=tuple(
                    _look(asks if layer else other, weights.mean(dim=0)[0], grid)
                    for layer, weights in enumerate(trace.weights)
                ),
                traced=_look(other, _product(trace.weights), grid),
                agreement=_look(other, parts, grid),
                constant=constant,
            )
        )
    return PairAttention(tuple(streams), agreement, model.config.tac_heads == 1)


@torch.no_grad()
def text_agreement(model: DRA, reference: Tensor, target: Tensor, texts: list[str]) -> list[float]:
    """Return cos(F_v, F_c) of two preprocessed images (3, S, S) each with every text."""
    tokens = model.encode_image(torch.stack([reference, target]))[1]
    assert tokens is not None
    relation = model.relate(tokens[:1], tokens[1:])
    cosines: list[float] = F.cosine_similarity(relation, text_features(model, texts)).tolist()
    return cosines


def token_grid(model: DRA, tokens: int) -> tuple[int, int]:
    """Return how many rows and columns of patches an image's ``tokens`` form; CheckpointError where they form none."""
    visual = model.visual
    declared = None
    if isinstance(visual, VisionTransformer):
        declared = visual.grid_size
    elif isinstance(visual, TimmModel):
        declared = getattr(getattr(visual.trunk, "patch_embed", None), "grid_size", None)
    side = round(tokens**0.5)  # a network that shrinks its square input keeps it square
    for rows, columns in (declared or (0, 0), (side, side)):
        if rows * columns == tokens:
            return int(rows), int(columns)
    raise CheckpointError(
        f"{tokens} tokens an image form no grid that could be laid over it; this tower can't be shown"
    )


@dataclass(frozen=True)
class _Trace:
    """One stream written out: every layer with its weights (heads, 1 + T, 1 + T), and the class token's output (D,)."""

    attentions: tuple[Attention, ...]
    weights: tuple[Tensor, ...]
    output: Tensor


def _trace(model: DRA, stream: int, query: Tensor, other: Tensor) -> _Trace:
    """Run one stream of TAC on two images' tokens (1 + T, D) each."""
    shared = model.tac.streams[stream]
    assert isinstance(shared, nn.ModuleList)
    attentions = tuple(cast(Attention, shared[layer % len(shared)]) for layer in range(model.config.tac_layers))
    weights = []
    for attention in attentions:
        weights.append(_weights(attention, query, other))
        other = _mixed(attention, weights[-1], other)
    return _Trace(attentions, tuple(weights), other[0])


def _weights(attention: Attention, query: Tensor, key: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)): (heads, Q, K) for ``query`` (Q, D) and ``key`` (K, D)."""
    q, k = _split(attention.q(query), attention.heads), _split(attention.k(key), attention.heads)
    logits: Tensor = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    return logits.softmax(dim=-1)


def _mixed(attention: Attention, weights: Tensor, value: Tensor) -> Tensor:
    """Return the layer's output (Q, D) for given ``weights`` (heads, Q, K) and ``value`` (K, D)."""
    heads = weights @ _split(attention.v(value), attention.heads)  # (heads, Q, D / heads)
    return attention.out(heads.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]


def _split(x: Tensor, heads: int) -> Tensor:
    return torch.unflatten(x, -1, (heads, -1)).transpose(0, 1)  # (S, D) -> (heads, S, D / heads)


def _product(weights: tuple[Tensor, ...]) -> Tensor:
    """Return the class row (1 + T,) of the product of all layers' weights, each the mean of its heads."""
    row = weights[-1].mean(dim=0)[0]
    for matrix in reversed(weights[:-1]):
        row = row @ matrix.mean(dim=0)
    return row


def _shares(model: DRA, trace: _Trace, other: Tensor, direction: Tensor) -> tuple[Tensor, float]:
    """Split ``output . direction`` into what each token of ``other`` adds (1 + T,) and the biases' constant.

    Exact with any number of heads: with its weights held fixed a stream is an affine map of the other image's tokens,
    so each token adds its product with the gradient.
    """
    with torch.enable_grad():
        value = tokens = other.detach().requires_grad_()
        for attention, weights in zip(trace.attentions, trace.weights, strict=True):
            value = _mixed(attention, weights, value)
        total = value[0] @ direction
        (gradient,) = torch.autograd.grad(total, tokens)
    parts = (gradient * tokens).sum(dim=-1).detach()
    return parts, (total.detach() - parts.sum()).item()


def _look(over: str, row: Tensor, grid: tuple[int, int]) -> Look:
    return Look(over, row[1:].reshape(grid).numpy(), row[0].item())
