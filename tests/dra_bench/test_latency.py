"""What is timed, and what is made of the times."""

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

from dra_bench.contenders.backend import Unavailable
from dra_bench.contenders.bundles import BundleEncoder
from dra_bench.contenders.pytorch import pytorch_towers
from dra_bench.latency import (
    Workload,
    fastest_baselines,
    find_ratio,
    latency_ratios,
    latency_rows,
    ratio_cells,
    ratios_table,
    raw_milliseconds,
    rows_table,
    text_of_tokens,
)
from dra_bench.latency_cells import (
    agreeing,
    check_agreement,
    copy_cells,
    latency_cells,
    rerank_cells,
    search_cells,
    step_cells,
)
from dra_bench.timing import measure
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.gallery import Gallery
from dra_runtime.preprocess import Preprocess
from dra_train.checkpoint import load_checkpoint

# Milliseconds of the parts; whole queries are their sums.
COSTS = {
    "pytorch-eager": {"image": 200, "text": 60, "compose": 10},
    "cut": {"image": 200, "text": 20, "compose": 10},
    "onnxruntime-cpu": {"image": 100, "text": 15, "compose": 5},
    "onnxruntime-cpu int8": {"image": 40, "text": 5, "compose": 1},
    "openvino": {"image": 50, "text": 30, "compose": 10},
}
OURS = ["onnxruntime-cpu", "onnxruntime-cpu int8"]
INT8 = "onnxruntime-cpu int8"


class FakeBackend:
    """A backend whose every part takes a known time on a clock of its own."""

    image_input, precision, about = "float32", "fp32", "a fake"

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
    """Return PyTorch with all others, and PyTorch with its text cut."""
    pytorch, cut, bundle = backends(clock)
    return [pytorch, bundle, *more], cut


def on(clock):
    """Return how to measure on a clock that moves when a backend works."""
    return {"clock": lambda: clock[0], "sleep": lambda _: None, "work": lambda: 0}


def timed(work, batches=(1,)):
    clock = [0]
    everybody, cut = contenders(clock)
    return measure(latency_cells(everybody, work, batches, cut), 11, 60, **on(clock))


def test_rows_cover_every_part_of_both_backends_at_every_batch(work):
    rows = latency_rows(timed(work, (1, 4)))
    keys = {(r["backend"], r["part"], r["batch"], r["text_tokens"]) for r in rows}
    expected = set()
    for batch in (1, 4):
        expected.add(("pytorch-eager", "text", batch, 7))
        for name, tokens in (("pytorch-eager", 77), ("onnxruntime-cpu", 7)):
            expected |= {(name, part, batch, None) for part in ("image", "compose")}
            expected |= {(name, part, batch, tokens) for part in ("text", "query", "query_by_id")}
    assert keys == expected
    assert len(rows) == len(expected)


def test_rows_have_the_keys_that_other_programs_read(work):
    for row in latency_rows(timed(work)):
        figures = ["p50_ms", "p90_ms", "p95_ms", "p99_ms", "iqr_ms"]
        assert list(row) == ["backend", "part", "batch", "text_tokens", *figures, "samples"]
        assert row["samples"] == 11


def test_times_belong_to_their_rows(work):
    p50 = {(r["backend"], r["part"], r["text_tokens"]): r["p50_ms"] for r in latency_rows(timed(work))}
    assert p50["pytorch-eager", "query", 77] == 270
    assert p50["pytorch-eager", "query_by_id", 77] == 70
    assert p50["pytorch-eager", "text", 7] == 20
    assert p50["onnxruntime-cpu", "query", 7] == 120
    assert p50["onnxruntime-cpu", "query_by_id", 7] == 20


def test_ratios_compare_like_with_like_and_by_id_with_pytorchs_full_query(work):
    ratios = latency_ratios(timed(work), OURS)
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
    everybody, cut = contenders(clock, int8)
    return measure(latency_cells(everybody, work, [1], cut), 11, 60, **on(clock))


def test_several_bundles_are_compared_with_pytorch_and_with_the_float32_one(work):
    timings = timed_with_int8(work)
    ratios = latency_ratios(timings, OURS, "onnxruntime-cpu")
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
    lines = ratios_table(latency_ratios(timed_with_int8(work), OURS, "onnxruntime-cpu")).splitlines()
    assert "against" in lines[0]
    assert "PyTorch" not in lines[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [f"image, {INT8}", "onnxruntime-cpu", "1", "2.50×", "2.50× to 2.50×"] in rows
    assert ["image, onnxruntime-cpu", "pytorch-eager", "1", "2.00×", "2.00× to 2.00×"] in rows


def test_a_bundle_first_in_the_list_is_compared_with_the_float32_one_behind_it(work):
    clock = [0]
    pytorch, cut, bundle = backends(clock)
    cells = latency_cells([pytorch, FakeBackend(clock, COSTS[INT8], INT8, 7), bundle], work, [1], cut)
    timings = measure(cells, 11, 60, **on(clock))
    ratios = latency_ratios(timings, OURS, "onnxruntime-cpu")
    assert find_ratio(ratios, "image")["times_as_fast"] == 5  # against PyTorch, though other ratios stand there too
    pairs = {(r["candidate"]["backend"], r["reference"]["backend"]) for r in ratios}
    assert (INT8, "onnxruntime-cpu") in pairs
    assert ("onnxruntime-cpu", INT8) not in pairs


def test_ratios_never_mix_batches(work):
    for ratio in latency_ratios(timed(work, (1, 4)), OURS):
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
    everybody, cut = contenders(clock)
    for cell in latency_cells(everybody, work, (1, 4), cut):
        cell.run()
    assert all(backend.batches == {1, 4} for backend in (*everybody, cut))


def test_every_backend_gets_the_pixels_that_it_takes(work):
    clock = [0]
    uint8 = FakeBackend(clock, COSTS["onnxruntime-cpu"], "onnxruntime-cpu uint8 image", 7)
    uint8.image_input = "uint8"
    everybody, cut = contenders(clock, uint8)
    for cell in latency_cells(everybody, work, [2], cut):
        cell.run()
    assert uint8.batches == {2}
    assert work.pixels(1, "uint8")[0, :, 4, 4].tolist() == [255, 0, 0]
    check_agreement(everybody[0], uint8, work)


def test_tables_say_what_is_compared(work):
    timings = timed(work)
    line = (
        "| query by id      | onnxruntime-cpu |     1 |      7 |   20.0 |   20.0 |   20.0 |   20.0 |  0.000 |      11 |"
    )
    assert line in rows_table(latency_rows(timings))
    by_id = [cells for cells in ratio_cells(latency_ratios(timings, OURS)) if cells[0].startswith("query by id")]
    assert [cells[1] for cells in by_id] == ["pytorch-eager, 77 tokens", "pytorch-eager query, 77 tokens"]
    assert by_id[1][3] == "13.5×"


def test_rows_of_older_results_have_fewer_columns(work):
    rows = latency_rows(timed(work))
    older = [{k: v for k, v in row.items() if k not in ("p95_ms", "iqr_ms")} for row in rows]
    assert "p95" not in rows_table(older)
    assert "p99 ms | samples |" in rows_table(older)


def others_too(work, more_texts=()):
    """Time PyTorch, a bundle and OpenVINO, whose text has 77 tokens."""
    clock = [0]
    everybody, cut = contenders(clock, FakeBackend(clock, COSTS["openvino"], "openvino", 77))
    texts = Workload(work.images, work.preprocess, work.text, more_texts)
    return measure(latency_cells(everybody, texts, [1], cut), 11, 60, **on(clock))


def test_other_contenders_are_compared_with_pytorch_behind_the_bundles(work):
    ratios = latency_ratios(others_too(work), OURS)
    names = [ratio["candidate"]["backend"] for ratio in ratios]
    assert names == sorted(names, key=lambda name: name == "openvino")
    theirs = {r["candidate"]["part"]: r["times_as_fast"] for r in ratios if r["candidate"]["backend"] == "openvino"}
    assert theirs == {"image": 4, "text": 2, "query": 3}
    assert find_ratio(ratios, "image")["times_as_fast"] == 2  # the bundle's, as ever


def test_the_fastest_contender_that_is_not_ours_is_found_for_every_part(work):
    found = {r["candidate"]["part"]: r for r in fastest_baselines(others_too(work), OURS)}
    assert set(found) == {"image", "text", "compose", "query", "query_by_id"}
    assert {r["candidate"]["backend"] for r in found.values()} == {"onnxruntime-cpu"}
    assert (found["image"]["reference"]["backend"], found["image"]["times_as_fast"]) == ("openvino", 0.5)
    assert (found["text"]["reference"]["text_tokens"], found["text"]["times_as_fast"]) == (
        7,
        pytest.approx(20 / 15, abs=1e-3),
    )
    assert (found["query"]["reference"]["backend"], found["query"]["times_as_fast"]) == ("openvino", 0.75)
    assert fastest_baselines(timed(work), [*OURS, "pytorch-eager"]) == []


def test_without_pytorch_the_first_bundle_is_the_base(work):
    clock = [0]
    everybody = [FakeBackend(clock, COSTS[name], name, 7) for name in OURS]
    ratios = latency_ratios(measure(latency_cells(everybody, work, [1]), 11, 60, **on(clock)), OURS, OURS[0])
    assert {(r["candidate"]["backend"], r["reference"]["backend"]) for r in ratios} == {(INT8, OURS[0])}
    parts = [(r["candidate"]["part"], r["reference"]["part"]) for r in ratios]
    assert len(parts) == len(set(parts)) == 6  # each part once, and by id against the full query


class ByWords(FakeBackend):
    """A backend whose rows are as long as the text."""

    def text_tokens(self, texts):
        return max(len(text.split()) for text in texts) + 2


def test_more_texts_are_encoded_and_asked_by_id_one_at_a_time(work):
    clock = [0]
    pytorch, _, _ = backends(clock)
    texts = Workload(work.images, work.preprocess, "in a brighter colour", ("blue", "red now"))
    cut, bundle = (ByWords(clock, COSTS[name], name, 0) for name in ("cut", "onnxruntime-cpu"))
    cut.name = "pytorch-eager"
    cells = latency_cells([pytorch, bundle], texts, (1, 4), cut)
    found = {(c.part, c.batch, c.text_tokens) for c in cells if c.backend == "onnxruntime-cpu" and c.text_tokens}
    assert found == {
        *((part, batch, 6) for part in ("text", "query", "query_by_id") for batch in (1, 4)),
        *((part, 1, tokens) for part in ("text", "query_by_id") for tokens in (3, 4)),
    }
    assert len(cells) == len(set(cells))  # PyTorch's padded rows once, whatever the text
    ratios = latency_ratios(measure(cells, 11, 60, **on(clock)), OURS)
    text = [r for r in ratios if r["candidate"]["part"] == "text" and r["candidate"]["text_tokens"] == 3]
    assert [r["reference"]["text_tokens"] for r in text] == [77, 3]  # never against a text of another length
    assert "text (3), onnxruntime-cpu" in ratios_table(ratios)
    fastest = [
        r
        for r in fastest_baselines(measure(cells, 11, 60, **on(clock)), OURS)
        if r["candidate"] == text[0]["candidate"]
    ]
    assert [r["reference"]["text_tokens"] for r in fastest] == [3]


def test_a_text_of_so_many_tokens_is_made_of_words():
    tokens = lambda text: len(text.split()) + 2  # noqa: E731
    for count in (3, 12, 40, 77):
        assert tokens(text_of_tokens(count, tokens)) == count
    with pytest.raises(UsageError, match=r"no text of 4 tokens.*--text"):
        text_of_tokens(4, lambda text: 2 * tokens(text))


def test_a_contender_with_other_vectors_is_named_and_left_out(work):
    clock = [0]
    everybody, _ = contenders(clock, FakeBackend(clock, COSTS["openvino"], "openvino", 77, vector=(4.0, 2.0)))
    kept, cosines, refused = agreeing(everybody, work)
    assert [c.name for c in kept] == ["pytorch-eager", "onnxruntime-cpu"]
    assert set(cosines) == {"onnxruntime-cpu"}
    assert refused == [
        Unavailable(
            "openvino", "its image vector isn't the checkpoint's (openvino: cosine 0.8944, expected at least 0.999)"
        )
    ]
    everybody[2].precision = "int8"
    everybody[2].vector = (4.0, 2.1)  # cosine 0.9028
    assert [c.name for c in agreeing(everybody, work)[0]] == ["pytorch-eager", "onnxruntime-cpu", "openvino"]


@pytest.fixture(scope="module")
def tiny(tiny_bundle):
    return BundleEncoder(Encoder.open(tiny_bundle, threads=1), "onnxruntime-cpu")


def test_steps_around_the_graphs_have_rows_of_their_own(tiny, work):
    texts = Workload(work.images, tiny.encoder.preprocess, "blue", ("blue and red",))
    cells = step_cells(tiny.encoder, texts, SimpleTokenizer(context_length=77))
    assert [(c.backend, c.part, c.text_tokens) for c in cells] == [
        ("dra-runtime", "preprocess", None),
        ("dra-runtime", "tokenize", 3),
        ("open_clip", "tokenize", 77),
        ("dra-runtime", "tokenize", 5),
    ]
    assert cells[0].run().shape == (3, *[tiny.encoder.preprocess.image_size] * 2)
    assert cells[2].run()[0, :3].tolist() == cells[1].run()[0]


def test_search_and_reranking_answer(tiny, work, tiny_checkpoint):
    dim = tiny.encoder.dim
    features = np.random.default_rng(0).normal(size=(30, dim)).astype(np.float32)
    gallery = Gallery.from_features(tiny.encoder, [str(i) for i in range(30)], features)
    one, four = search_cells(gallery, "onnxruntime-cpu", lambda batch: features[:batch], [1, 4])
    assert [hits[0].id for hits in four.run()] == ["0", "1", "2", "3"]
    assert [len(hits) for hits in one.run()] == [10]
    texts = Workload(work.images, tiny.encoder.preprocess, "blue")
    pytorch = pytorch_towers(load_checkpoint(tiny_checkpoint).model)
    ours, theirs = rerank_cells(pytorch, [tiny], texts)
    assert (ours.backend, theirs.backend, ours.run().shape) == ("onnxruntime-cpu", "pytorch-eager", (20, dim))
    assert ours.run() == pytest.approx(theirs.run(), abs=1e-4)


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


def test_copies_have_a_row_of_their_own_where_there_is_a_gpu_to_copy_to(work, monkeypatch):
    asked = []

    def copies(pixels, text_tokens, dim):
        asked.append((pixels.shape, text_tokens, dim))
        return lambda: None

    monkeypatch.setattr("dra_bench.latency_cells.gpu_copies", copies)
    cells = copy_cells(work, [1, 4], 77, 8)
    assert [(cell.part, cell.batch) for cell in cells] == [("copies", 1), ("copies", 4)]
    assert [(shape[0], tokens, dim) for shape, tokens, dim in asked] == [(1, 77, 8), (4, 77, 8)]
    monkeypatch.setattr("dra_bench.latency_cells.gpu_copies", lambda *_: None)
    assert copy_cells(work, [1, 4], 77, 8) == []
