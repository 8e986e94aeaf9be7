import json
import threading

import pytest

from dra_bench.cli import main
from dra_bench.load import runtime
from dra_bench.load.queries import builtin_material, made_gallery
from dra_bench.timing import LEAST_SAMPLES
from dra_runtime.encoder import Encoder


def run(capsys, *words):
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in ("load", *words)])
    out, err = capsys.readouterr()
    return exit_info.value.code, out, err


@pytest.mark.parametrize("with_pytorch", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_shape_is_measured_of_every_contender(capsys, tmp_path, tiny_bundle, tiny_checkpoint, with_pytorch):
    before = set(threading.enumerate())
    words = ["--bundle", tiny_bundle, *(["--checkpoint", tiny_checkpoint] * with_pytorch), "--reference", "id"]
    words += ["--items", 50, "--batch", 2, "--seconds", 1, "--threads", 1, "--limit-ms", 5]
    code, out, err = run(capsys, *words, "-o", tmp_path / "load.json")
    assert code == 0, err
    assert set(threading.enumerate()) == before
    result = json.loads((tmp_path / "load.json").read_text())
    pytorch = ["pytorch-eager"] * with_pytorch
    services = ["onnxruntime-cpu", "onnxruntime-cpu, batcher", *pytorch]
    assert [row["backend"] for row in result["single_stream"]] == services
    assert [row["backend"] for row in result["offline"]] == services
    assert [row["backend"] for row in result["server"]] == [*services, *(["pytorch-eager, pool"] * with_pytorch)]
    assert [(row["backend"], row["threads"]) for row in result["threads"]] == [
        (name, 1) for name in ("onnxruntime-cpu", *pytorch)
    ]
    assert [c["backend"] for c in result["contenders"]] == [row["backend"] for row in result["server"]]
    assert result["limit_ms"] == 5
    assert result["limits_ms"] == {"id": 5}
    for row in result["single_stream"]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["samples"] >= LEAST_SAMPLES
        assert row["iqr_ms"] >= 0
    for row in (*result["offline"], *result["threads"]):
        assert 0 < row["low"] <= row["queries_per_second"] <= row["high"]
    raw = result["raw"]
    assert [len(row["ms"]) for row in raw["single_stream_ms"]] == [row["samples"] for row in result["single_stream"]]
    for row, kept in zip(result["server"], raw["server_ms"], strict=True):
        assert [len(ms) for ms in kept["attempts"]] == [one["queries"] for one in row["attempts"]]
    assert result["environment"]["command"].startswith("dra-bench load --bundle bundle ")
    assert str(tmp_path) not in json.dumps(result)
    assert "by id, p99 within 5.00 ms:" in out


def test_an_interrupt_is_one_line_and_ends_the_threads(capsys, monkeypatch, tmp_path, tiny_bundle):
    before = set(threading.enumerate())

    def interrupted(gallery, query):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "search", interrupted)
    output = tmp_path / "load.json"
    code, _, err = run(capsys, "--bundle", tiny_bundle, "--seconds", 1, "--threads", 1, "-o", output)
    assert code == 130
    assert err.strip().endswith("interrupted")
    assert not output.exists()
    assert set(threading.enumerate()) == before


def test_a_gallery_of_ones_own_is_searched(capsys, monkeypatch, tmp_path, tiny_bundle):
    encoder = Encoder.open(tiny_bundle, threads=1)
    path = tmp_path / "own.gallery"
    made_gallery(encoder, builtin_material().pictures[:3], 7).save(path)
    sizes = set()

    def seen(gallery, query):
        sizes.add(len(gallery))
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "search", seen)
    assert run(capsys, "--bundle", tiny_bundle, "--gallery", path, "--threads", 1)[0] == 130
    assert sizes == {7}


def test_too_few_galleries_are_one_line(capsys, tmp_path):
    code, out, err = run(capsys, "--bundle", "a", "--bundle", "b", "--gallery", tmp_path / "one.gallery")
    assert (code, out) == (2, "")
    assert "1 --gallery for 2 --bundle; give one for each bundle, or none" in err


def test_an_output_that_can_not_be_written_is_found_before_the_work(capsys, tmp_path):
    code, _, err = run(capsys, "--bundle", tmp_path / "none", "-o", tmp_path / "no" / "load.json")
    assert code == 2
    assert "the folder of" in err
