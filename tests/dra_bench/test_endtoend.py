"""From a file to ten answers."""

import io

import numpy as np
import pytest
from PIL import Image

from dra_bench.endtoend import STEPS, Journey, endtoend_rows, endtoend_table, journey_cells, raw_steps
from dra_bench.photograph import photograph
from dra_bench.timing import measure
from dra_runtime.encoder import Encoder
from dra_runtime.gallery import Gallery


@pytest.fixture(scope="module")
def journey(tiny_bundle, emoji_images, tmp_path_factory):
    picture = tmp_path_factory.mktemp("picture") / "picture.jpg"
    picture.write_bytes(photograph())
    gallery = Gallery.build(Encoder.open(tiny_bundle, threads=1), {path.stem: path for path in emoji_images})
    return Journey("onnxruntime-cpu", gallery, picture, "in red")


def test_the_picture_is_one_megapixel_and_as_large_as_a_photographs_file():
    data = photograph()
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.width * image.height) == ("JPEG", "RGB", 995_328)
    assert 150_000 < len(data) < 600_000
    assert photograph() == data != photograph(seed=1)


def test_the_steps_give_the_answers_of_the_whole(journey):
    assert journey.steps() == journey.whole()
    assert len(journey.nanoseconds[-1]) == len(STEPS)


@pytest.mark.parametrize("primed", [False, True])
def test_shares_are_of_the_timed_calls_only(journey, primed):
    journey.nanoseconds.clear()
    timings = measure(journey_cells([journey]), 11, 1, primed=primed)
    calls = timings.calls
    assert len(journey.nanoseconds) == calls * (timings.warmup_rounds + 11)
    for number in range(len(journey.nanoseconds)):
        if number < calls * timings.warmup_rounds or number % calls != calls - 1:
            journey.nanoseconds[number] = [10**12] * len(STEPS)
    (row,) = endtoend_rows(timings, [journey])
    assert row["samples"] == 11
    assert [step["step"] for step in row["steps"]] == list(STEPS)
    assert sum(step["share"] for step in row["steps"]) == pytest.approx(1, abs=1e-3)
    assert row["preprocessing_share"] == pytest.approx(sum(s["share"] for s in row["steps"][:2]), abs=2e-4)
    kept = raw_steps(timings, [journey])["onnxruntime-cpu"]
    np.testing.assert_allclose(np.median(kept["steps"], axis=0), [s["p50_ms"] for s in row["steps"]], atol=1e-4)
    assert np.median(kept["whole"]) == pytest.approx(row["p50_ms"], abs=1e-4)
    assert f"{100 * row['preprocessing_share']:.1f}" in endtoend_table([row])
