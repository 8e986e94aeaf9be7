"""Rewrite a module for export: every rewriting that applies, on a copy."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dra_export.graphs import TextEncoder
from dra_export.passes.attention import write_out_attention
from dra_export.passes.attention_pool import pool_with_single_query
from dra_export.passes.end_token import EndTokenText, ends_in_one_row
from dra_export.passes.relation import merge_relation


def rewritten(module: nn.Module) -> nn.Module:
    """Return a module that computes the same as ``module``, in evaluation mode, with fewer operations.

    The result shares weights with ``module``, which stays as it is.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    module = copy.deepcopy(module, shared).eval()
    with torch.no_grad():
        write_out_attention(module)
        pool_with_single_query(module)
        merge_relation(module)
        if isinstance(module, TextEncoder) and ends_in_one_row(module.model):
            return EndTokenText(module.model).eval()
    return module
