"""The last block of the text tower computes the end token's row only: no other row leaves it."""

from __future__ import annotations

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from dra_export.passes.attention import PlainAttention
from dra_export.passes.linear import linear_of
from dra_train.model import DRA
from dra_train.vocabulary import END_TOKEN


class EndTokenText(nn.Module):
    """A model's `encode_text` for text towers of open_clip's common block, already with `PlainAttention`."""

    def __init__(self, model: DRA) -> None:
        super().__init__()
        assert ends_in_one_row(model)
        self.text = model.text
        attention = model.text.transformer.resblocks[-1].attn
        width = attention.in_weight.shape[1]
        self.query, self.key_value = (
            linear_of(attention.in_weight[rows].clone(), attention.in_bias[rows].clone())
            for rows in (slice(width), slice(width, None))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode token ids (N, L) into raw features (N, D)."""
        text = self.text
        *blocks, last = text.transformer.resblocks
        length = tokens.shape[1]
        x = text.token_embedding(tokens) + text.positional_embedding[:length]
        mask = text.attn_mask[:length, :length]
        for block in blocks:
            x = block(x, attn_mask=mask)
        end = (tokens == END_TOKEN).int().argmax(dim=-1)  # (N,), the first one
        normed = last.ln_1(x)
        texts = torch.arange(x.shape[0], device=x.device)
        query = self.query(normed[texts, end])[:, None]  # (N, 1, width)
        key, value = self.key_value(normed).chunk(2, dim=-1)
        attended = last.attn.attend(query, key, value, mask[end][:, None, None])
        row = x[texts, end] + last.ls_1(attended[:, 0])  # (N, width)
        row = row + last.ls_2(last.mlp(last.ln_2(row)))
        return text.ln_final(row) @ text.text_projection  # type: ignore[no-any-return]


def ends_in_one_row(model: DRA) -> bool:
    """Say whether the last block of the text tower is the one kind that `EndTokenText` writes out."""
    last = model.text.transformer.resblocks[-1]
    return type(last) is ResidualAttentionBlock and isinstance(last.attn, PlainAttention)
