"""The results page's section on the runtime shows what the commands wrote."""

from pathlib import Path

import numpy as np
import pytest

from dra_bench.coldstart import coldstart_rows
from dra_bench.endtoend import STEPS
from dra_bench.fresh import Stage
from dra_bench.gallery_search import REFERENCE, search_rows
from dra_bench.memory import memory_rows
from dra_bench.runtime_results import runtime_sections
from dra_bench.timing import Cell, Timings

MODELS = {"demo": "the demo model", "RN50x4": "RN50x4, the paper's size"}
ENVIRONMENT = {"command": "dra-bench it", "threads": 2, "date": "2026-11-24", "used_by_others_percent": 1.0}


def stages(*names, ms=10.0, mb=100.0):
    memory = {"peak_mb": mb + 1, "resident_mb": mb, "anonymous_mb": mb - 1}
    return [Stage(name, ms * (i + 1), memory) for i, name in enumerate(names)]


def gallery_result(tmp_path: Path):
    path = tmp_path / "some.gallery"
    path.write_bytes(b"0" * 7_000_000)
    cells = (Cell(REFERENCE, "search", 1, None, lambda: None), Cell("hnsw", "search", 1, None, lambda: None))
    timings = Timings(cells, np.tile(np.array([90_000_000, 1_500_000]), (13, 1)), 3, True)
    names = ("bundle open", "gallery open, sizes checked", "first answer", "more answers", "gallery open, hash checked")
    rows = search_rows(
        timings,
        {REFERENCE: 1.0, "hnsw": 0.9934},
        {REFERENCE: [stages(*names, ms=11.0, mb=2600)], "hnsw": [stages(*names, ms=12.0, mb=321)]},
        {REFERENCE: path, "hnsw": path},
        {REFERENCE: {}, "hnsw": {"threads": 2, "report": {"seconds": 1234.4}}},
    )
    size = {"items": 1_000_000, "queries": 500, "rows": rows, "used_by_others_percent": 0.4, "recipe": "mixed so"}
    size |= {"mean_cosine": 0.01, "nearest_cosine": 0.77, "dimensions": 28.6}
    return {"sizes": [size], "environment": {k: v for k, v in ENVIRONMENT.items() if k != "used_by_others_percent"}}


@pytest.fixture
def results(tmp_path):
    step = {"p50_ms": 1.25, "p90_ms": 1.5, "p99_ms": 1.75, "share": 0.142857}
    throughput = {"part": "image", "backend": "onnxruntime-cpu", "batch": 16, "items_per_second": 160.0, "samples": 11}
    throughput |= {"times_as_fast": 1.6, "interval": [1.5, 1.7]}
    throughput["pytorch_best"] = {"backend": "pytorch-eager", "text_tokens": None, "items_per_second": 100.0}
    whole = {
        "backend": "onnxruntime-cpu",
        "p50_ms": 123.4,
        "p90_ms": 130.0,
        "samples": 17,
        "preprocessing_share": 0.0789,
    }
    runs = {"pytorch-eager": [stages("import torch", "more answers", mb=1815)]}
    runs["onnxruntime-cpu"] = [stages("import onnxruntime", "more answers", mb=1351)]
    start = [stages("interpreter", "first answer", ms=412.0)]
    return {
        "RN50x4-throughput": {"throughput": [throughput], "environment": ENVIRONMENT},
        "RN50x4-memory": {"rows": memory_rows(runs), "queries": 21, "environment": ENVIRONMENT},
        "demo-coldstart": {
            "rows": coldstart_rows({"onnxruntime-cpu, hash checked": start}),
            "gallery": 372,
            "environment": ENVIRONMENT,
        },
        "RN50x4-endtoend": {
            "rows": [{**whole, "steps": [{"step": name, **step} for name in STEPS]}],
            "picture": "a stand-in",
            "galleries": [{"items": 100_000}],
            "environment": ENVIRONMENT,
        },
        "gallery": gallery_result(tmp_path),
    }


def cells(page, *start):
    """Return the cells of the row that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return next(row for row in rows if row[: len(start)] == list(start))


def test_every_measurement_has_its_part(results):
    page = "\n\n".join(runtime_sections(results, MODELS))
    assert [line for line in page.splitlines() if line.startswith("#")] == [
        "## Runtime",
        "### Throughput",
        "### Memory",
        "### Cold start",
        "### End to end",
        "### Large galleries",
    ]
    assert cells(page, "image", "onnxruntime-cpu", "16")[3:7] == ["160.0", "pytorch-eager", "100.0", "1.60×"]
    assert cells(page, "onnxruntime-cpu", "1352")[3] == "74%"
    assert cells(page, "onnxruntime-cpu, hash checked", "first answer")[2:5] == ["412", "412 to 412", "824"]
    assert cells(page, "reading and preprocessing")[1:] == ["", "7.9"]
    assert cells(page, "HNSW index, half", "1,000,000", "1.50")[4:] == ["13", "60.0× (60.0× to 60.0×)", "99.34"]
    assert cells(page, "HNSW index, half", "1,000,000", "7")[3:] == [
        "12.0",
        "12.0",
        "12.0",
        "321",
        "320",
        "1",
        "1234 s, 2 threads",
    ]
    assert page.count("`dra-bench it`, 2 threads, 2026-11-24; other programs used") == 5
    assert "used 0 % of the CPUs" in page


def test_what_was_not_measured_is_left_out(results):
    assert list(runtime_sections({}, MODELS)) == []
    page = "\n\n".join(runtime_sections({"gallery": results["gallery"]}, MODELS))
    assert [line for line in page.splitlines() if line.startswith("#")] == ["## Runtime", "### Large galleries"]
