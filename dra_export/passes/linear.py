"""A linear layer from weights that are already there."""

from __future__ import annotations

from torch import Tensor, nn


def linear_of(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer with ``weight`` (out, in) and ``bias`` (out,), without drawing random weights first."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return linear
