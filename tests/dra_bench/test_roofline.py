"""How far parts are from the machine's limits, on made-up times and once on real ones."""

import json

import numpy as np
import pytest

from dra_bench import peaks as peaks_module
from dra_bench.cli import main
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.graph_cost import Cost, graph_cost
from dra_bench.peaks import Peak, peaks
from dra_bench.roofline import in_words, machine_table, part_cost, parts_table, roofline, search_cost
from dra_bench.timing import Cell, Timings
from dra_runtime.encoder import Encoder


def nothing():
    pass


# 100 and 50 GFLOP/s, 300 GOP/s in INT8, 10 GB/s read and 8 copied
PEAKS = (
    (Peak("fast product", "float32", 2e9, nothing), 20),
    (Peak("slow product", "float32", 2e9, nothing), 40),
    (Peak("INT8 product", "int8", 3e9, nothing), 10),
    (Peak("reading", "memory", 1e8, nothing), 10),
    (Peak("copying", "memory", 1.6e8, nothing), 20),
)


def measured(parts, peaks=PEAKS):
    """Roofline of parts that cost what is given and take so many milliseconds in every one of 11 rounds."""
    costs = {Cell(backend, part, batch, None, nothing): cost for (backend, part, batch), (cost, _) in parts.items()}
    ms = [*(took for _, took in parts.values()), *(took for _, took in peaks)]
    cells = (*costs, *(peak.cell for peak, _ in peaks))
    timings = Timings(cells, np.tile(np.array(ms) * 1_000_000, (11, 1)).astype(np.int64), 3, True)
    return roofline(timings, costs, [peak for peak, _ in peaks])


def test_the_fastest_of_a_kind_is_the_limit():
    machine, _ = measured({})
    assert (machine["gflops"], machine["int8_gops"], machine["gbytes_per_second"]) == (100, 300, 10)
    assert [row["what"] for row in machine["measured_by"] if row["counts"]] == [
        *("fast product", "INT8 product", "reading"),
    ]
    assert machine["samples"] == 11


def test_a_part_is_bound_by_the_longer_of_the_two():
    _, (compute, memory) = measured(
        {
            ("a", "image", 1): (Cost(4e9, 0, 1e8), 80),  # 40 ms of arithmetic, 10 ms of reading
            ("a", "compose", 1): (Cost(1e8, 0, 1e8), 12.5),  # 1 and 10
        }
    )
    assert (compute["bound"], compute["limit_ms"], compute["share_of_limit"]) == ("compute", 40, 0.5)
    assert (compute["compute_ms"], compute["memory_ms"]) == (40, 10)
    assert (compute["gflop"], compute["mbytes"], compute["p50_ms"], compute["samples"]) == (4, 100, 80, 11)
    assert (memory["bound"], memory["limit_ms"], memory["share_of_limit"]) == ("memory", 10, 0.8)


def test_int8_has_a_limit_of_its_own():
    _, (row,) = measured({("int8", "image", 1): (Cost(1e9, 6e9, 1e6), 60)})
    assert row["limit_ms"] == 10 + 20  # 1 GFLOP at 100 a second and 6 GOP at 300
    assert row["share_of_limit"] == 0.5
    assert (row["gflop"], row["int8_gop"]) == (7, 6)
    assert "50 % of what an INT8 matrix product reaches" in in_words(row)


def test_without_an_int8_bundle_int8_is_not_measured(monkeypatch):
    monkeypatch.setattr(peaks_module, "SIDE", 64)
    monkeypatch.setattr(peaks_module, "FLOATS", 2**12)
    machine, rows = measured({("a", "image", 1): (Cost(1e9, 0, 1e6), 20)}, [p for p in PEAKS if p[0].kind != "int8"])
    assert machine["int8_gops"] is None
    assert rows[0]["share_of_limit"] == 0.5
    assert "int8" in {peak.kind for peak in peaks(1, int8=True)}
    assert "int8" not in {peak.kind for peak in peaks(1, int8=False)}


def test_the_share_and_its_interval_are_of_the_same_rounds():
    """A machine that is twice as slow in some rounds is so for both: the share stays as it is."""
    cell, (product, reading) = Cell("a", "image", 1, None, nothing), (PEAKS[0][0], PEAKS[3][0])
    slow = np.where(np.arange(20) % 3 == 0, 2, 1)
    samples = np.stack([40 * slow, 20 * slow, 10 * slow], axis=1) * 1_000_000
    timings = Timings((cell, product.cell, reading.cell), samples, 3, True)
    _, (row,) = roofline(timings, {cell: Cost(2e9, 0, 1)}, [product, reading])
    assert (row["share_of_limit"], row["interval"]) == (0.5, [0.5, 0.5])


def test_words_say_what_binds_and_where_more_than_all_comes_from():
    _, rows = measured(
        {
            ("a", "image", 1): (Cost(4e9, 0, 1), 50),
            ("a", "text", 1): (Cost(1, 0, 1e8), 20),
            ("a", "query_by_id", 16): (Cost(1, 0, 1e8), 5),
            ("b", "image", 1): (Cost(4e9, 0, 1), 32),
        }
    )
    image, text, by_id, better = (in_words(row) for row in rows)
    assert image == "image, a: 80 % of what a matrix product reaches."
    assert text == "text, a: 50 % of the speed at which its 100 MB can be read from memory."
    assert by_id.startswith("query by id ×16, a: 200 % of the speed")
    assert "above 100 %: what it reads stays in the caches" in by_id
    assert "125 % of what a matrix product reaches; above 100 %: its products suit" in better
    unsure = in_words({**rows[2], "interval": [0.9, 3.0]})
    assert unsure.endswith("; above 100 %: no more than the measurement's own spread.")


def test_tables_carry_spread_and_samples():
    machine, rows = measured({("onnxruntime-cpu int8", "query_by_id", 16): (Cost(4e9, 0, 1e8), 80)})
    lines = [*machine_table(machine).splitlines(), *parts_table(rows).splitlines()]
    assert max(map(len, lines)) <= 120
    assert "100.0 to 100.0" in lines[2]
    assert [cell.strip() for cell in lines[-1].split("|")][1:-1] == [
        *("query by id ×16", "onnxruntime-cpu int8", "", "4", "100", "40.0 compute", "80.0", "50% (50% to 50%)", "11"),
    ]


def test_a_query_is_the_sum_of_its_graphs(tiny_bundle):
    (contender,) = bundle_encoders([Encoder.open(tiny_bundle)])
    image, text, compose = (
        part_cost(contender, part, 2, n) for part, n in (("image", None), ("text", 9), ("compose", None))
    )
    assert part_cost(contender, "query", 2, 9) == image + text + compose
    assert part_cost(contender, "query_by_id", 2, 9) == text + compose
    assert part_cost(contender, "text", 2, 18).float_ops > text.float_ops
    assert text == graph_cost(tiny_bundle / "text_encoder.onnx", 2, 9)


def test_a_search_reads_every_row_once():
    assert search_cost(1000, 64) == Cost(2 * 64_000, 0, 4 * 64_000)


def test_parts_of_a_bundle_on_this_machine(capsys, monkeypatch, tmp_path, tiny_bundle):
    monkeypatch.setattr(peaks_module, "SIDE", 64)
    monkeypatch.setattr(peaks_module, "FLOATS", 2**12)
    output = tmp_path / "roofline.json"
    words = ("roofline", "--bundle", tiny_bundle, "--items", 200, "--threads", 1, "--samples", 11, "--seconds", 1)
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in (*words, "-o", output)])
    out = capsys.readouterr().out
    assert exit_info.value.code == 0
    text = output.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    result = json.loads(text)
    assert [row["part"] for row in result["parts"]] == ["image", "text", "compose", "query", "query_by_id", "search"]
    for row in result["parts"]:
        assert row["limit_ms"] == max(row["compute_ms"], row["memory_ms"]) > 0
        assert row["share_of_limit"] == pytest.approx(row["limit_ms"] / row["p50_ms"], rel=0.02, abs=2e-3)
    assert "not measured: pytorch-eager: no --checkpoint was given" in out
    assert "% of " in out
