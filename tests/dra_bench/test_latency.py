"""What is timed, and what is made of the times."""

import numpy as np
import pytest
from PIL import Image

from dra_bench.latency import (
    Workload,
    check_agreement,
    find_ratio,
    latency_cells,
    latency_ratios,
    latency_rows,
    ratios_table,
    raw_milliseconds,
    rows_table,
)
from dra_bench.timing import measure
from dra_runtime.errors import UsageError
from dra_runtime.preprocess import Preprocess

# Milliseconds of the parts; whole queries are their sums.
COSTS = {
    "pytorch-eager": {"image": 200, "text": 60, "compose": 10},
    "cut": {"image": 200, "text": 20, "compose": 10},
    "onnxruntime-cpu": {"image": 100, "text": 15, "compose": 5},
    "onnxruntime-cpu int8": {"image": 40, "text": 5, "compose": 1},
}
INT8 = "onnxruntime-cpu int8"


class FakeBackend:
    """A backend whose every part takes a known time on a clock of its own."""

    image_input = "float32"

    def __init__(self, clock, costs, name, tokens, vector=(3.0, 4.0)):
        self.clock, self.costs, self.name, self.tokens, self.vector = clock, costs, name, tokens, vector
        self.batches = set()

    def _work(self, count, *parts):
        self.batches.add(count)
        self.clock[0] += sum(self.costs[part] for part in parts) * 1_000_000
        return np.array([self.vector] * count, np.float32)

    def text_tokens(self, texts):
        return self.tokens

    def image(self, pixels):
        assert pixels.dtype == self.image_input
        return self._work(len(pixels), "image")

    def text(self, texts):
        return self._work(len(texts), "text")

    def compose(self, image_features, text_features):
        return self._work(len(text_features), "compose")

    def query(self, pixels, texts):
        return self._work(len(texts), "image", "text", "compose")

    def query_by_id(self, image_features, texts):
        return self._work(len(texts), "text", "compose")


@pytest.fixture
def work():
    return Workload((Image.new("RGB", (40, 30), "red"),), Preprocess(image_size=8), "in a brighter colour")


def backends(clock):
    return (
        FakeBackend(clock, COSTS["pytorch-eager"], "pytorch-eager", 77),
        FakeBackend(clock, COSTS["cut"], "pytorch-eager", 7),
        FakeBackend(clock, COSTS["onnxruntime-cpu"], "onnxruntime-cpu", 7),
    )


def contenders(clock, *more):
    """All that is timed, the bundles in a list."""
    pytorch, cut, bundle = backends(clock)
    return pytorch, cut, [bundle, *more]


def timed(work, batches=(1,)):
    clock = [0]
    cells = latency_cells(*contenders(clock), work, batches)
    return measure(cells, 11, 60, clock=lambda: clock[0], sleep=lambda _: None)


def test_rows_cover_every_part_of_both_backends_at_every_batch(work):
    rows = latency_rows(timed(work, (1, 4)))
    keys = {(r["backend"], r["part"], r["batch"], r["text_tokens"]) for r in rows}
    expected = {("dra-runtime", "preprocess", 1, None)}
    for batch in (1, 4):
        expected.add(("pytorch-eager", "text", batch, 7))
        for name, tokens in (("pytorch-eager", 77), ("onnxruntime-cpu", 7)):
            expected |= {(name, part, batch, None) for part in ("image", "compose")}
            expected |= {(name, part, batch, tokens) for part in ("text", "query", "query_by_id")}
    assert keys == expected
    assert len(rows) == len(expected)


def test_rows_have_the_keys_that_other_programs_read(work):
    for row in latency_rows(timed(work)):
        assert list(row) == ["backend", "part", "batch", "text_tokens", "p50_ms", "p90_ms", "p99_ms", "samples"]
        assert row["samples"] == 11


def test_times_belong_to_their_rows(work):
    p50 = {(r["backend"], r["part"], r["text_tokens"]): r["p50_ms"] for r in latency_rows(timed(work))}
    assert p50["pytorch-eager", "query", 77] == 270
    assert p50["pytorch-eager", "query_by_id", 77] == 70
    assert p50["pytorch-eager", "text", 7] == 20
    assert p50["onnxruntime-cpu", "query", 7] == 120
    assert p50["onnxruntime-cpu", "query_by_id", 7] == 20


def test_ratios_compare_like_with_like_and_by_id_with_pytorchs_full_query(work):
    ratios = latency_ratios(timed(work))
    assert find_ratio(ratios, "image")["times_as_fast"] == 2
    assert find_ratio(ratios, "text")["times_as_fast"] == 4  # against 77 tokens, not against the cut text
    assert find_ratio(ratios, "compose")["times_as_fast"] == 2
    assert find_ratio(ratios, "query")["times_as_fast"] == 270 / 120
    assert find_ratio(ratios, "query_by_id")["times_as_fast"] == 3.5
    assert find_ratio(ratios, "query_by_id", "query")["times_as_fast"] == 13.5
    assert find_ratio(ratios, "preprocess") is None
    cut = [r for r in ratios if r["candidate"]["part"] == "text" and r["reference"]["text_tokens"] == 7]
    assert [r["times_as_fast"] for r in cut] == [pytest.approx(20 / 15, abs=1e-3)]


def timed_with_int8(work):
    clock = [0]
    int8 = FakeBackend(clock, COSTS[INT8], INT8, 7)
    cells = latency_cells(*contenders(clock, int8), work, [1])
    return measure(cells, 11, 60, clock=lambda: clock[0], sleep=lambda _: None)


def test_several_bundles_are_compared_with_pytorch_and_with_the_float32_one(work):
    timings = timed_with_int8(work)
    ratios = latency_ratios(timings, "onnxruntime-cpu")
    found = {
        (r["candidate"]["backend"], r["candidate"]["part"], r["reference"]["backend"], r["reference"]["part"]): r[
            "times_as_fast"
        ]
        for r in ratios
        if r["reference"]["text_tokens"] in (None, 77) or r["reference"]["backend"] != "pytorch-eager"
    }
    assert found[INT8, "image", "pytorch-eager", "image"] == 5
    assert found[INT8, "image", "onnxruntime-cpu", "image"] == 2.5
    assert found[INT8, "text", "onnxruntime-cpu", "text"] == 3
    assert found[INT8, "query", "onnxruntime-cpu", "query"] == pytest.approx(120 / 46, abs=1e-3)
    assert found[INT8, "query_by_id", "pytorch-eager", "query"] == 45
    assert found["onnxruntime-cpu", "image", "pytorch-eager", "image"] == 2
    assert not {key for key in found if key[0] == key[2]}
    assert {key[3] for key in found if key[2] == "onnxruntime-cpu"} == set(COSTS[INT8]) | {"query", "query_by_id"}
    assert find_ratio(ratios, "image")["times_as_fast"] == 2  # the first bundle's
    assert find_ratio([r for r in ratios if r["reference"]["backend"] != "pytorch-eager"], "image") is None


def test_a_table_of_several_bundles_says_whose_ratio_it_is(work):
    lines = ratios_table(latency_ratios(timed_with_int8(work), "onnxruntime-cpu")).splitlines()
    assert "against" in lines[0]
    assert "PyTorch" not in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [f"image, {INT8}", "image, onnxruntime-cpu", "1", "2.50×", "2.50× to 2.50×"] in rows
    assert ["image, onnxruntime-cpu", "image, pytorch-eager", "1", "2.00×", "2.00× to 2.00×"] in rows


def test_a_bundle_first_in_the_list_is_compared_with_the_float32_one_behind_it(work):
    clock = [0]
    pytorch, cut, bundle = backends(clock)
    cells = latency_cells(pytorch, cut, [FakeBackend(clock, COSTS[INT8], INT8, 7), bundle], work, [1])
    timings = measure(cells, 11, 60, clock=lambda: clock[0], sleep=lambda _: None)
    ratios = latency_ratios(timings, "onnxruntime-cpu")
    assert find_ratio(ratios, "image")["times_as_fast"] == 5  # against PyTorch, though other ratios stand there too
    pairs = {(r["candidate"]["backend"], r["reference"]["backend"]) for r in ratios}
    assert (INT8, "onnxruntime-cpu") in pairs
    assert ("onnxruntime-cpu", INT8) not in pairs


def test_ratios_never_mix_batches(work):
    for ratio in latency_ratios(timed(work, (1, 4))):
        assert ratio["reference"]["batch"] == ratio["candidate"]["batch"]
        assert ratio["reference"]["backend"] == "pytorch-eager" != ratio["candidate"]["backend"]


def test_raw_samples_give_the_rows_again(work):
    timings = timed(work)
    for row, raw in zip(latency_rows(timings), raw_milliseconds(timings), strict=True):
        assert (raw["backend"], raw["part"]) == (row["backend"], row["part"])
        assert len(raw["ms"]) == row["samples"]
        assert np.median(raw["ms"]) == pytest.approx(row["p50_ms"])


def test_batches_reach_the_backends(work):
    clock = [0]
    pytorch, cut, bundles = contenders(clock)
    for cell in latency_cells(pytorch, cut, bundles, work, (1, 4)):
        cell.run()
    assert all(backend.batches == {1, 4} for backend in (pytorch, cut, *bundles))


def test_every_backend_gets_the_pixels_that_it_takes(work):
    clock = [0]
    uint8 = FakeBackend(clock, COSTS["onnxruntime-cpu"], "onnxruntime-cpu uint8 image", 7)
    uint8.image_input = "uint8"
    for cell in latency_cells(*contenders(clock, uint8), work, [2]):
        cell.run()
    assert uint8.batches == {2}
    assert work.pixels(1, "uint8")[0, :, 4, 4].tolist() == [255, 0, 0]
    check_agreement(contenders(clock)[0], uint8, work)


def test_tables_say_what_is_compared(work):
    timings = timed(work)
    assert "| query by id          | onnxruntime-cpu |     1 |           7 |   20.0 |" in rows_table(
        latency_rows(timings)
    )
    by_id = [line for line in ratios_table(latency_ratios(timings)).splitlines() if line.startswith("| query by id")]
    assert "query by id (77 text tokens)" in by_id[0]
    assert "query, new reference (77 text tokens)" in by_id[1]
    assert "13.5×" in by_id[1]


def test_another_models_bundle_is_refused(work):
    clock = [0]
    pytorch, _, bundle = backends(clock)
    assert check_agreement(pytorch, bundle, work) == {"image": 1.0, "text": 1.0, "query": 1.0}
    bundle.vector = (4.0, -3.0)
    with pytest.raises(UsageError, match=r"onnxruntime-cpu: cosine 0\.0000.*export the bundle from this checkpoint"):
        check_agreement(pytorch, bundle, work)
    bundle.vector = (4.0, 2.0)  # cosine 0.894
    with pytest.raises(UsageError, match=r"cosine 0\.8944, expected at least 0\.9\)"):
        check_agreement(pytorch, bundle, work, 0.9)
    assert check_agreement(pytorch, bundle, work, 0.89)["text"] == pytest.approx(20 / 5 / 20**0.5)
    bundle.vector = (np.nan, 1.0)
    with pytest.raises(UsageError, match="nan"):
        check_agreement(pytorch, bundle, work)
