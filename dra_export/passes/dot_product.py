"""Scaled dot product attention as five plain operators.

PyTorch's exporter scales query and key by the root of the scale each, and reads the key's shape at every call to
exchange its last two axes. Here the query alone is scaled, and the exchange is a fixed permutation.
"""

from __future__ import annotations

from typing import Any

import torch


def translations() -> dict[Any, Any]:
    """Return the translation to give to `torch.onnx.export` as ``custom_translation_table``."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _scaled_dot_product_attention}


def _scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attend from query (…, Q, d) to key and value (…, K, d) in float32, with a mask of floats to add."""
    from onnxscript import opset18 as op

    assert dropout_p == 0
    assert not is_causal
    assert not enable_gqa
    rank = len(key.shape)
    exchanged = [*range(rank - 2), rank - 1, rank - 2]
    if scale is None:
        scale = int(query.shape[-1]) ** -0.5
    scaled = op.Mul(query, op.Constant(value_float=scale))
    scores = op.MatMul(scaled, op.Transpose(key, perm=exchanged))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
