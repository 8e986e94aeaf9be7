"""Both losses against brute force in numpy, one pair at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dra_train.losses import explicit_loss, implicit_loss, unique_candidates


def array(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def log_shares(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def brute_implicit(relation: np.ndarray, text: np.ndarray, text_id: list[int], scale: float) -> float:
    logits = scale * unit(relation) @ unit(text).T
    total = 0.0
    for i, mine in enumerate(text_id):
        right = [j for j, other in enumerate(text_id) if other == mine]
        for row in (logits[i], logits[:, i]):  # relation to text, and text to relation
            total -= sum(log_shares(row)[j] for j in right) / len(right)
    return total / len(text_id) / 2


def test_explicit_loss_is_the_negative_log_share_of_the_target() -> None:
    torch.manual_seed(0)
    queries, candidates = torch.randn(5, 8), torch.randn(7, 8)
    target = [3, 0, 6, 3, 1]
    expected = -np.mean([log_shares(12.5 * array(queries)[i] @ array(candidates).T)[t] for i, t in enumerate(target)])
    got = explicit_loss(queries, candidates, torch.tensor(target), torch.tensor(12.5))
    assert got.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("text_id", [[0, 1, 2, 3], [0, 1, 0, 2], [5, 5, 5, 5], [1, 1, 0, 0]])
def test_implicit_loss_shares_probability_between_equal_texts(text_id: list[int]) -> None:
    torch.manual_seed(1)
    relation, text = 3 * torch.randn(4, 6), torch.randn(4, 6)
    got = implicit_loss(relation, text, torch.tensor(text_id), torch.tensor(14.0))
    assert got.item() == pytest.approx(brute_implicit(array(relation), array(text), text_id, 14.0), rel=1e-5)


def test_implicit_loss_is_symmetric_and_blind_to_length() -> None:
    torch.manual_seed(2)
    relation, text, ids = torch.randn(4, 6), torch.randn(4, 6), torch.arange(4)
    loss = implicit_loss(relation, text, ids, torch.tensor(9.0))
    torch.testing.assert_close(implicit_loss(text, relation, ids, torch.tensor(9.0)), loss)
    torch.testing.assert_close(implicit_loss(7 * relation, 0.1 * text, ids, torch.tensor(9.0)), loss)


def test_equal_texts_are_no_wrong_answers_for_one_another() -> None:
    """Two pairs with one text: nothing can beat an even split, and it costs log 2."""
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    perfect = implicit_loss(text, text, torch.tensor([4, 4]), torch.tensor(50.0))
    assert perfect.item() == pytest.approx(np.log(2), rel=1e-5)
    # Treated as different texts the loss is the same figure, but its gradient pushes the pairs apart:
    relation = torch.tensor([[1.0, 0.3], [1.0, -0.3]], requires_grad=True)
    implicit_loss(relation, text, torch.tensor([4, 4]), torch.tensor(5.0)).backward()
    assert relation.grad is not None
    torch.testing.assert_close(relation.grad[0, 1], -relation.grad[1, 1])  # both move towards the text, from both sides


def test_repeated_targets_become_one_candidate() -> None:
    target = torch.tensor([9, 4, 9, 7, 4])
    index, first = unique_candidates(target)
    assert first.tolist() == [1, 3, 0]  # of 4, 7 and 9
    assert target[first][index].tolist() == target.tolist()


def test_repeated_target_is_no_wrong_answer_for_itself() -> None:
    """With every candidate once, a batch of one target leaves nothing to get wrong."""
    target = torch.tensor([2, 2, 2])
    gallery = torch.eye(4)
    index, first = unique_candidates(target)
    loss = explicit_loss(gallery[target], gallery[target[first]], index, torch.tensor(100.0))
    assert loss.item() == 0.0
