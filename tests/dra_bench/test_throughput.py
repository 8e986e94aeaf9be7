"""Items a second, against the fastest of PyTorch's ways."""

import numpy as np
import pytest

from dra_bench.latency import LABELS
from dra_bench.throughput import throughput_rows, throughput_table
from dra_bench.timing import Cell, Timings

MS = {
    ("pytorch-eager", "image", 1, None): 20,
    ("pytorch-eager", "image", 16, None): 200,
    ("pytorch-eager channels-last", "image", 16, None): 160,
    ("pytorch-eager", "text", 16, 77): 80,
    ("pytorch-eager", "text", 16, 12): 20,
    ("onnxruntime-cpu", "image", 1, None): 10,
    ("onnxruntime-cpu", "image", 16, None): 100,
    ("onnxruntime-cpu", "text", 16, 12): 16,
    ("onnxruntime-cpu int8", "image", 16, None): 40,
    ("openvino", "image", 16, None): 80,
}
OURS = ("onnxruntime-cpu", "onnxruntime-cpu int8")


@pytest.fixture
def timings():
    cells = tuple(Cell(*key, run=lambda: None) for key in MS)
    return Timings(cells, np.tile(np.array(list(MS.values())) * 1_000_000, (11, 1)), 3, True)


def test_a_bundle_is_compared_with_the_fastest_way_of_the_same_part_and_batch(timings):
    found = {(row["backend"], row["part"]): row for row in throughput_rows(timings, OURS)}
    assert set(found) == {("onnxruntime-cpu", "image"), ("onnxruntime-cpu", "text"), ("onnxruntime-cpu int8", "image")}
    image = found["onnxruntime-cpu", "image"]
    assert image["items_per_second"] == 160
    assert image["pytorch_best"]["backend"] == "pytorch-eager channels-last"
    assert image["pytorch_best"]["items_per_second"] == 100
    assert (image["times_as_fast"], image["interval"], image["samples"]) == (1.6, [1.6, 1.6], 11)
    text = found["onnxruntime-cpu", "text"]
    assert (text["pytorch_best"]["text_tokens"], text["times_as_fast"]) == (12, 1.25)
    assert found["onnxruntime-cpu int8", "image"]["times_as_fast"] == 4


def test_single_items_have_no_throughput(timings):
    assert all(row["batch"] == 16 for row in throughput_rows(timings, OURS))


def test_without_pytorch_nothing_is_compared(timings):
    kept = [i for i, cell in enumerate(timings.cells) if not cell.backend.startswith("pytorch")]
    alone = Timings(tuple(timings.cells[i] for i in kept), timings.samples_ns[:, kept], 3, True)
    assert throughput_rows(alone, OURS) == []


def test_the_table_names_the_way(timings):
    lines = throughput_table(throughput_rows(timings, OURS)).splitlines()
    assert "pytorch-eager, 12 tokens" in next(line for line in lines if line.startswith(f"| {LABELS['text']}"))
