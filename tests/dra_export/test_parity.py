"""The comparison must see faults, so these tests plant them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dra_export.parity import Difference, compare_graphs, compare_recall, verify
from dra_runtime.encoder import Encoder
from dra_train.checkpoint import load_checkpoint
from dra_train.data import Dataset, builtin_dataset, load_cirr
from dra_train.model import DRA


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    """Thirty queries of the real validation split, with just the images that they name."""
    whole = load_cirr(builtin_dataset(), "val")
    queries = whole.queries[:: len(whole.queries) // 30][:30]
    names = {name for q in queries for name in (q.reference, q.target, *q.group)}
    return Dataset(whole.name, whole.split, queries, {n: p for n, p in whole.images.items() if n in names})


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder.open(tiny_bundle)


@pytest.fixture
def model(tiny_checkpoint: Path) -> DRA:
    return load_checkpoint(tiny_checkpoint).model


def test_a_faithful_bundle_passes_with_equal_recall(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    result = verify(model, encoder, pairs)
    assert result["passed"]
    assert set(result["graphs"]) == {
        "image_encoder", "text_encoder", "compositor", "reranker", "query", "encode_queries",
    }  # fmt: skip
    assert all(g["min_cosine"] >= 0.99999 and g["pairs"] >= 30 for g in result["graphs"].values())
    assert result["recall"]["reference"] == result["recall"]["candidate"]
    assert result["recall"]["changed_queries"] == 0


def test_fewer_pairs_leave_recall_out(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    result = verify(model, encoder, pairs, pairs=4)
    assert (result["queries"], result["recall"]) == (4, None)


def test_a_missing_causal_mask_is_found(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    model.text.attn_mask.zero_()
    graphs = compare_graphs(model, encoder, pairs, pairs.queries[:8])
    assert graphs["text_encoder"].min_cosine < 0.9999
    assert graphs["image_encoder"].min_cosine > 0.99999


@pytest.mark.parametrize(
    ("part", "graph"),
    [
        ("visual.layer1.0.conv1.weight", "image_encoder"),
        ("token_projection.weight", "image_encoder"),
        ("text.transformer.resblocks.0.mlp.c_fc.weight", "text_encoder"),
        ("combiner.output.weight", "compositor"),
        ("tac.streams.1.0.v.weight", "reranker"),
    ],
)
def test_noise_in_one_part_is_called_by_its_name(
    model: DRA, encoder: Encoder, pairs: Dataset, part: str, graph: str
) -> None:
    noisy = copy.deepcopy(model)
    weight = noisy.get_parameter(part)
    with torch.no_grad():
        weight += 0.2 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    graphs = compare_graphs(noisy, encoder, pairs, pairs.queries[:8])
    assert graphs[graph].min_cosine < 0.99999


def test_lost_recall_fails_even_when_nobody_looks_at_cosines(
    model: DRA, encoder: Encoder, pairs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = np.eye(len(pairs.queries), len(pairs.images), dtype=np.float32)
    monkeypatch.setattr("dra_export.parity.runtime_scores", lambda *_: scores)
    result = verify(model, encoder, pairs)
    assert not result["passed"]
    assert result["recall"]["changed_queries"] == len(result["recall"]["changed"]) > 0


def test_recall_follows_the_data_sets_own_protocol(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    result = compare_recall(model, encoder, replace(pairs, format="fashioniq"))
    assert set(result["reference"]) == set(result["candidate"]) == {"R@10", "R@50", "mean"}


def test_values_that_are_not_finite_never_pass() -> None:
    for bad in (np.nan, np.inf):
        difference = Difference()
        difference.add(np.array([[1.0, bad]], dtype=np.float32), torch.tensor([[1.0, 1.0]]))
        assert difference.min_cosine == -1
    difference.add(np.ones((1, 2), dtype=np.float32), torch.tensor([[torch.nan, 1.0]]))
    assert difference.min_cosine == -1
