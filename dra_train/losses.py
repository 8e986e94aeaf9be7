"""DRA's two losses: the explicit relation (reference, text) -> target, the implicit one (reference, target) -> text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def explicit_loss(queries: Tensor, candidates: Tensor, target: Tensor, logit_scale: Tensor) -> Tensor:
    """Classify every query's target among the candidates (batch-based classification, arXiv 2309.02169).

    ``queries`` (N, D) and ``candidates`` (G, D) of unit length, ``target`` (N,) indexes into the candidates,
    ``logit_scale`` the factor on the cosines. Returns a scalar.
    """
    return F.cross_entropy(logit_scale * queries @ candidates.T, target)


def implicit_loss(relation: Tensor, text: Tensor, text_id: Tensor, logit_scale: Tensor) -> Tensor:
    """Match every pair's relation_features with its text_features by symmetric InfoNCE.

    ``relation`` and ``text`` (N, D) of any length; rows whose ``text_id`` (N,) is equal carry the same text, so
    they are all right answers for one another and share the probability. Returns a scalar.
    """
    logits = logit_scale * F.normalize(relation, dim=-1) @ F.normalize(text, dim=-1).T
    same = text_id[:, None] == text_id[None, :]
    truth = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2


def unique_candidates(target: Tensor) -> tuple[Tensor, Tensor]:
    """Make a batch's targets (N,) candidates, each distinct one once.

    Returns each target's index among the candidates (N,), and where in the batch each candidate first occurs (G,).
    Without this, a target that occurs twice in a batch would count as a wrong answer for itself.
    """
    distinct, index = torch.unique(target, return_inverse=True)
    first = torch.full_like(distinct, len(target)).scatter_reduce(0, index, torch.arange(len(target)), "amin")
    return index, first
