"""The comparison must see faults, so these tests plant them."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dra_export.parity import reference as parity_reference
from dra_export.parity.graphs import Difference
from dra_export.parity.reference import reference_from_model
from dra_export.parity.verify import compare_recall, verify
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BundleError
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
    assert (result["missed"], result["variants"], result["notes"]) == ([], [], [])
    assert set(result["graphs"]) == {
        "image_encoder", "text_encoder", "compositor", "reranker", "query", "encode_queries",
    }  # fmt: skip
    for graph in result["graphs"].values():
        assert graph["pairs"] >= 30
        assert 0.99999 <= graph["min_cosine"] <= graph["p01_cosine"] <= 1 + 1e-9
    assert result["recall"]["reference"] == result["recall"]["candidate"]
    assert result["recall"]["changed_queries"] == 0
    assert result["recall"]["ranks"] == {"changed": 0, "better": 0, "worse": 0, "median": 0.0, "largest": 0}


def test_fewer_pairs_leave_recall_out(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    result = verify(model, encoder, pairs, pairs=4)
    assert (result["queries"], result["recall"], result["passed"]) == (4, None, True)


def test_the_reference_is_what_the_model_gives_one_by_one(model: DRA, pairs: Dataset) -> None:
    from dra_runtime.preprocess import open_image
    from dra_train.vocabulary import clip_tokenizer

    found = reference_from_model(model, pairs, pairs=3)
    assert len(found.related) == 3
    with torch.inference_mode():
        for i, query in enumerate(found.queries):
            pixels = [
                torch.from_numpy(model.preprocess(open_image(pairs.images[n])))[None]
                for n in (query.reference, query.target)
            ]
            (features, reference_tokens), (_, target_tokens) = (model.encode_image(p) for p in pixels)
            text = model.encode_text(torch.from_numpy(clip_tokenizer(77)([query.text])))
            for ours, expected in (
                (found.image_features[found.rows[query.reference]], features),
                (found.text_features[i], text),
                (found.composed[i], model.compose(features, text)),
                (found.relation_features[i], model.relate(reference_tokens, target_tokens)),
            ):
                np.testing.assert_allclose(ours, expected[0].numpy(), rtol=1e-3, atol=1e-4)


def test_tokens_beyond_the_budget_are_not_kept(
    model: DRA, encoder: Encoder, pairs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 4 * reference_from_model(model, pairs, pairs=1).tokens[pairs.queries[0].reference].size
    monkeypatch.setattr(parity_reference, "TOKEN_BYTES", 9 * one)
    found = reference_from_model(model, pairs)
    assert 2 <= len(found.tokens) <= 9
    assert 1 <= len(found.related) < 30
    assert all({found.queries[i].reference, found.queries[i].target} <= set(found.tokens) for i in found.related)
    graphs = verify(model, encoder, pairs)["graphs"]
    assert graphs["reranker"]["pairs"] == len(found.related)
    assert graphs["image_encoder"]["pairs"] == len(pairs.images) + len(found.tokens)


def test_a_missing_causal_mask_is_found(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    model.text.attn_mask.zero_()
    result = verify(model, encoder, pairs, pairs=8)
    assert result["graphs"]["text_encoder"]["min_cosine"] < 0.9999
    assert result["graphs"]["image_encoder"]["min_cosine"] > 0.99999


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
    result = verify(noisy, encoder, pairs, pairs=8)
    assert result["graphs"][graph]["min_cosine"] < 0.99999
    assert any(line.startswith(f"{graph}: smallest cosine 0.9") for line in result["missed"])


def test_recall_follows_the_data_sets_own_protocol(model: DRA, encoder: Encoder, pairs: Dataset) -> None:
    result = compare_recall(model, encoder, replace(pairs, format="fashioniq"))
    assert set(result["reference"]) == set(result["candidate"]) == {"R@10", "R@50", "mean"}


def test_vectors_that_cannot_be_ranked_say_so(
    model: DRA, encoder: Encoder, pairs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "encode_images", lambda self, paths: np.zeros((len(paths), self.dim), np.float32))
    with pytest.raises(BundleError, match="can't be ranked"):
        compare_recall(model, encoder, pairs)
    result = verify(model, encoder, pairs)
    assert result["recall"] is None
    assert "recall: not measured, since graphs fail or give NaN, infinite or zero vectors" in result["missed"]


def test_values_that_are_not_finite_never_pass() -> None:
    for bad in (np.nan, np.inf):
        difference = Difference()
        difference.add(np.array([[1.0, bad], [1.0, 1.5]], dtype=np.float32), np.ones((2, 2), np.float32))
        assert (difference.min_cosine, difference.not_finite, difference.pairs) == (-1, 1, 2)
        assert difference.to_dict()["max_abs"] == 0.5  # of the finite ones: JSON knows no infinity
    difference = Difference()
    difference.add(np.ones((1, 2), np.float32), np.array([[np.nan, 1.0]], np.float32))
    assert difference.min_cosine == -1


def test_the_first_percentile_is_numpys() -> None:
    angles = np.random.default_rng(0).uniform(0, 1, 500)
    difference = Difference()
    for part in np.split(angles, 5):
        difference.add(np.stack([np.cos(part), np.sin(part)], 1).astype(np.float32), np.tile([1, 0], (100, 1)))
    assert difference.p01_cosine == pytest.approx(np.percentile(np.cos(angles), 1), abs=1e-6)
