"""Attention written out batch-first: one product for query, key and value, and the scale inside the weights.

PyTorch's attention module runs with the batch on the second axis and scales query and key by the root of the scale
each, so that its graph moves every tensor around it and reads shapes at every call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainAttention(nn.Module):
    """A `torch.nn.MultiheadAttention` (batch first, self-attention, no dropout) as plain operations."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        assert can_be_plain(source)
        self.heads = source.num_heads
        width = source.embed_dim
        scaled = torch.ones(3 * width)
        scaled[:width] = source.head_dim**-0.5  # of the query's rows
        self.in_weight = nn.Parameter(source.in_proj_weight.detach() * scaled[:, None])
        self.in_bias = nn.Parameter(source.in_proj_bias.detach() * scaled)
        self.out = source.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attend from ``query`` (N, L, D) to itself; returns (N, L, D), and None in place of the weights."""
        assert query is key is value
        assert not need_weights
        q, k, v = F.linear(query, self.in_weight, self.in_bias).chunk(3, dim=-1)
        return self.attend(q, k, v, attn_mask), None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from projected, scaled queries (N, R, D) to keys and values (N, L, D); returns (N, R, D)."""
        q, k, v = (torch.unflatten(x, -1, (self.heads, -1)) for x in (q, k, v))
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1)  # (N, heads, R, L)
        if mask is not None:
            scores = scores + mask
        attended = torch.softmax(scores, dim=-1) @ v.transpose(1, 2)
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def can_be_plain(attention: nn.Module) -> bool:
    """Say whether an attention module is of the one kind that `PlainAttention` writes out."""
    return (
        isinstance(attention, nn.MultiheadAttention)
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def write_out_attention(module: nn.Module) -> None:
    """Replace every attention module inside ``module`` that `can_be_plain`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if can_be_plain(child):
                assert isinstance(child, nn.MultiheadAttention)
                setattr(parent, name, PlainAttention(child))
