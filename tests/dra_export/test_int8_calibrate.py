"""Extremes of activations against every value of the activations themselves."""

from pathlib import Path

import numpy as np
import pytest
from int8_nets import residual_net, run

from dra_export.int8.calibrate import extremes_of
from dra_export.int8.session import IMAGE_BATCH, pixel_batches
from dra_export.int8.static import quantized_tensors
from dra_export.int8.tower import ranges_of
from dra_runtime.preprocess import Preprocess, open_image


@pytest.fixture
def preprocess() -> Preprocess:
    return Preprocess(image_size=8)


def test_an_images_extremes_are_those_of_its_activations(
    emoji_images: tuple[Path, ...], preprocess: Preprocess
) -> None:
    model, images = residual_net(), emoji_images[:7]  # no whole number of batches
    names = quantized_tensors(model.graph)
    assert names == ["image", "r0", "r1", "c2", "r2", "r3"]
    found = extremes_of(model, names, images, preprocess, threads=1)
    assert found.names == tuple(names)
    assert found.low.shape == found.high.shape == (7, 6)
    for i, path in enumerate(images):
        image = preprocess(open_image(path))[None]
        values = [image, *run(model, image, names[1:])]
        np.testing.assert_allclose(found.low[i], [v.min() for v in values], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.high[i], [v.max() for v in values], rtol=1e-5, atol=1e-6)
    ranges = ranges_of(found, 1.0)
    assert ranges["r1"] == (0.0, pytest.approx(found.high[:, 2].max()))
    assert ranges_of(found, 0.5)["r1"][1] == pytest.approx(np.median(found.high[:, 2]))


def test_images_are_streamed_in_order(emoji_images: tuple[Path, ...], preprocess: Preprocess) -> None:
    batches = list(pixel_batches(emoji_images[:7], preprocess, threads=2))
    assert [len(batch) for batch in batches] == [IMAGE_BATCH, 7 - IMAGE_BATCH]
    expected = [preprocess(open_image(path)) for path in emoji_images[:7]]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
