"""Vectors for large galleries."""

import numpy as np
import pytest

from dra_bench import mixed_vectors
from dra_bench.mixed_vectors import BLOCK, RealVectors, character, lifted, mixed_blocks, recipe


@pytest.fixture(scope="module")
def features():
    """Features in three clusters, of different lengths, with nearly all variance in few directions."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((3, 24)).astype(np.float32)
    rows = centres[rng.integers(0, 3, 90)] + 0.2 * rng.standard_normal((90, 24)).astype(np.float32)
    return rows * rng.uniform(2, 5, (90, 1)).astype(np.float32)


def made(features, items, seed=0):
    rows, norms = zip(*mixed_blocks(features, items, seed), strict=True)
    return np.concatenate(rows), np.concatenate(norms)


def test_the_same_seed_gives_the_same_items_whatever_their_number(features):
    rows, norms = made(features, BLOCK + 10)
    assert rows.shape == (BLOCK + 10, 24)
    assert rows.dtype == norms.dtype == np.float32
    fewer, _ = made(features, 10)
    np.testing.assert_array_equal(fewer, rows[:10])
    np.testing.assert_array_equal(made(features, BLOCK + 10)[0], rows)
    assert not np.allclose(made(features, 10, seed=1)[0], fewer)
    assert not np.allclose(rows[:10], rows[BLOCK:])


def test_items_are_of_unit_length_and_their_norms_those_of_the_features(features):
    rows, norms = made(features, 500)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    lengths = np.linalg.norm(features, axis=1)
    assert lengths.min() <= norms.min() < norms.max() <= lengths.max()


def test_items_lie_near_features_and_none_is_one(features):
    rows, _ = made(features, 500)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    nearest = (rows @ unit.T).max(axis=1)
    assert np.median(nearest) > 0.85
    assert nearest.max() < 0.9999


def test_noise_without_a_mixture_has_the_features_spread(monkeypatch, features):
    monkeypatch.setattr(mixed_vectors, "EVEN_NOISE", 0.0)
    monkeypatch.setattr(mixed_vectors, "ALIKE_NOISE", 1000.0)  # drowns the mixture
    rows, _ = made(features, BLOCK)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    of_features, of_rows = (np.linalg.eigh(np.cov(v, rowvar=False))[1][:, -1] for v in (unit, rows))
    assert abs(of_features @ of_rows) > 0.99


def test_wider_vectors_keep_every_cosine(features):
    real = RealVectors(features, features[:5] / np.linalg.norm(features[:5], axis=1, keepdims=True))
    wide = lifted(real, 40, seed=0)
    assert wide.features.shape == (90, 40)
    np.testing.assert_allclose(wide.features @ wide.features.T, features @ features.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(wide.queries @ wide.features.T, real.queries @ features.T, rtol=1e-4, atol=1e-4)
    assert lifted(real, 24, seed=0) is real


def test_what_they_are_like_is_measured(features):
    found = character(features, 0)
    assert 1 < found["dimensions"] < 24
    assert found["mean_cosine"] < found["nearest_cosine"] < 1


def test_the_recipe_says_where_the_width_comes_from():
    assert "256" not in recipe(2155, 640, 640)
    assert "256 columns were turned into 640" in recipe(2155, 256, 640)
    assert "2155 built-in pictures" in recipe(2155, 256, 640)
