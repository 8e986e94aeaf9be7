"""The vision compositor with one head: one projection a layer in place of four.

With a single head, for a row x and the rows o that it attends to,

    s (W_q x + b_q) · (W_k o_i + b_k) = (W x + b) · o_i + const,    W = s W_kᵀ W_q,    b = s W_kᵀ b_q

and the constant, the same for all i, leaves the softmax as it is. Its weights p sum to 1, so

    W_o (sum_i p_i (W_v o_i + b_v)) + b_o = W_o W_v (sum_i p_i o_i) + W_o b_v + b_o.

The products of weights are taken in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dra_export.passes.linear import linear_of
from dra_train.model import Attention, TwinAttentionCompositor


class MergedAttention(nn.Module):
    """An `Attention` with one head, its four projections merged into two."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        assert source.heads == 1
        q, k, v, out = (
            (linear.weight.detach().double(), linear.bias.detach().double())
            for linear in (source.q, source.k, source.v, source.out)
        )
        scale = q[0].shape[0] ** -0.5
        self.query = linear_of((scale * k[0].T @ q[0]).float(), (scale * k[0].T @ q[1]).float())
        self.value = linear_of((out[0] @ v[0]).float(), (out[0] @ v[1] + out[1]).float())

    def forward(self, query: Tensor, key_value: Tensor) -> Tensor:
        """Attend from ``query`` (N, Q, D) to ``key_value`` (N, K, D); returns (N, Q, D)."""
        scores = self.query(query) @ key_value.transpose(1, 2)
        return self.value(torch.softmax(scores, dim=-1) @ key_value)  # type: ignore[no-any-return]


def merge_relation(module: nn.Module) -> None:
    """Merge the projections of every vision compositor inside ``module`` that has one head."""
    for compositor in list(module.modules()):
        if not isinstance(compositor, TwinAttentionCompositor):
            continue
        for stream in compositor.streams:
            assert isinstance(stream, nn.ModuleList)
            for i, attention in enumerate(stream):
                if isinstance(attention, Attention) and attention.heads == 1:
                    stream[i] = MergedAttention(attention)
