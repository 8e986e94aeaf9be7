"""Dot products with the rows of a gallery."""

import numpy as np
import pytest

from dra_runtime import products as module
from dra_runtime.products import products


def test_every_finite_half_is_widened_exactly():
    """One column, so that a product is the half itself; numpy's own conversion is the reference."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    found = products(np.ones((1, 1), np.float32), halves[:, None])[0]
    np.testing.assert_array_equal(found, halves.astype(np.float32))


@pytest.mark.parametrize("storage", [np.float32, np.float16])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("asked", [1, module.FEW, module.FEW + 1])
@pytest.mark.parametrize("numpy", [1, 2])
def test_products_are_those_of_float64_over_any_number_of_rows(numpy, asked, threads, storage, monkeypatch):
    if numpy == 1:
        monkeypatch.delattr(np, "vecdot", raising=False)
    monkeypatch.setattr(module, "SHARE", 50)
    monkeypatch.setattr(module, "_ROWS", 128)
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((asked, 40)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for count in (0, 1, 127, 128, 129, 700):
        rows = (rng.standard_normal((count, 40)) / 40**0.5).astype(storage)
        expected = queries.astype(np.float64) @ rows.astype(np.float64).T
        found = products(queries, rows, threads)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=40 * 2.0**-24)


def test_rows_of_a_slice_are_taken_as_they_are():
    rows = np.arange(600, dtype=np.float16).reshape(10, 60)[::2, 1::3] / np.float16(600)
    query = np.full((1, 20), 20**-0.5, np.float32)
    np.testing.assert_allclose(products(query, rows), query @ rows.astype(np.float32).T, rtol=1e-6)
