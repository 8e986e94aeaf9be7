"""The guard of CI: a ratio that fell by more than a third is a warning with names, and never a failure."""

import json
import time
from functools import partial

import pytest
import torch
from compare_runs import ENVIRONMENT, latency_result, run_on
from PIL import Image

from dra_bench.commands.guard import escaped
from dra_bench.guard import guard
from dra_bench.latency import raw_milliseconds
from dra_bench.timing import Cell, measure
from dra_runtime.encoder import Encoder
from dra_train.checkpoint import load_checkpoint

INT8 = "onnxruntime-cpu int8"


@pytest.fixture(autouse=True)
def no_actions(monkeypatch):
    """Take away what CI itself may have set."""
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


def test_a_ratio_that_fell_by_more_than_a_third_is_a_warning_with_names(tmp_path, capsys):
    slow = latency_result({(INT8, "text"): 1.6}, machine=3.0)
    code, out, err = run_on("guard", tmp_path, capsys, latency_result(), slow)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "WARNING: onnxruntime-cpu int8 is slower: text, batch 1, 12 text tokens is 2.50× as fast as pytorch-eager "
        "where the committed run has 4.00×, 0.62 of it (95 % interval 0.62 to 0.62, 40 samples)"
    ]


def test_less_than_a_third_is_none(tmp_path, capsys):
    slow = latency_result({(INT8, "text"): 1.45, ("onnxruntime-cpu", "image"): 0.2}, machine=0.5)
    code, out, _ = run_on("guard", tmp_path, capsys, latency_result(), slow)
    assert (code, out) == (0, "guard: none of 11 ratios fell by more than 33 % and beyond noise\n")


def test_a_fall_within_the_noise_is_none():
    noisy = latency_result({(INT8, "text"): 1.6}, spread=2.0, samples=11)
    assert not [line for line in guard(latency_result(), noisy).warnings if "text" in line]


def test_in_github_actions_it_is_an_annotation_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    code, out, _ = run_on("guard", tmp_path, capsys, latency_result(), latency_result({(INT8, "image"): 2.0}))
    assert code == 0
    plain, annotation = out.splitlines()
    message = plain.removeprefix("WARNING: ").replace("%", "%25")
    assert annotation == f"::warning title=slower than the committed results::{message}"
    assert escaped("5 %\nx") == "5 %25%0Ax"


def test_on_another_machine_what_stands_out_is_called_out_and_the_machine_is_named(tmp_path, capsys):
    everything = {(name, part): 1.8 for name in ("onnxruntime-cpu", INT8) for part in ("image", "text", "compose")}
    everything |= {(name, part): 1.8 for name in ("onnxruntime-cpu", INT8) for part in ("query", "query_by_id")}
    elsewhere = {"cpu": "Two", "threads": 8}
    alike = latency_result(everything, environment=elsewhere)
    code, out, _ = run_on("guard", tmp_path, capsys, latency_result(), alike)
    assert code == 0
    assert "WARNING" not in out
    assert "another machine than the committed one (cpu 'One' and 'Two'; threads 2 and 8)" in out
    assert "its ratios are 0.56 times the committed ones in the median" in out
    one = latency_result({**everything, (INT8, "text"): 3.6}, environment=elsewhere)
    (line,) = guard(latency_result(), one).warnings
    assert line.startswith("onnxruntime-cpu int8 is slower: text, batch 1")
    assert line.endswith(", where this machine's usual change is 0.56")
    here = guard(latency_result(), latency_result(everything)).warnings  # on the same machine nothing excuses them
    assert len(here) == len(everything)


def test_what_was_not_measured_and_busy_neighbours_are_said(tmp_path, capsys):
    short = latency_result(leave_out=[INT8], environment={"used_by_others_percent": 30.0})
    _, out, _ = run_on("guard", tmp_path, capsys, latency_result(), short)
    assert "note: onnxruntime-cpu int8 wasn't measured here" in out
    assert "note: other programs used 30 % of the CPUs" in out


def test_a_faster_pytorch_is_named_as_the_cause():
    faster = latency_result({("pytorch-eager", "image"): 0.5})
    assert [line.endswith(" (pytorch-eager itself became faster)") for line in guard(latency_result(), faster).warnings]


def test_what_it_can_not_compare_is_one_line(tmp_path, capsys):
    other = latency_result(environment={"backbone": "RN50x4"})
    for second, words in ((other, "different models (demo and RN50x4)"), ({"passed": 1, "splits": []}, "of recall")):
        code, _, err = run_on("guard", tmp_path, capsys, latency_result(), second)
        assert (code, len(err.splitlines())) == (2, 1)
        assert words in err


def sleeping(run):
    """Wrap a call so that it sleeps as long again as it takes, and longer than any noise."""

    def call():
        start = time.perf_counter()
        run()
        time.sleep(time.perf_counter() - start + 0.03)

    return call


def measured(encoder, model, slow):
    """Time images and compositions of a bundle and of PyTorch; ``slow`` wraps the bundle's image encoder."""
    image = Image.fromarray(encoder.bundle.selftest()["images"][0])
    pixels = encoder.preprocess.network_input(image, encoder.image_input)[None]
    features = encoder.encode_pixels(pixels)["image_features"]
    tensor, known = torch.from_numpy(pixels), torch.from_numpy(features)
    with torch.inference_mode():
        cells = [
            Cell("pytorch-eager", "image", 1, None, partial(model.encode_image, tensor)),
            Cell("onnxruntime-cpu", "image", 1, None, slow(partial(encoder.encode_pixels, pixels))),
            Cell("pytorch-eager", "compose", 1, None, partial(model.compose, known, known)),
            Cell("onnxruntime-cpu", "compose", 1, None, partial(encoder.compose, features, features)),
        ]
        raw = raw_milliseconds(measure(cells, 11, 1.0))
    return {"rows": [], "raw_ms": raw, "environment": ENVIRONMENT}


def test_a_sleep_in_one_backend_is_called_out_by_both_commands(tiny_checkpoint, tiny_bundle, tmp_path, capsys):
    encoder, model = Encoder.open(tiny_bundle, threads=1), load_checkpoint(tiny_checkpoint).model
    honest, slow = (measured(encoder, model, wrap) for wrap in (lambda run: run, sleeping))
    code, out, _ = run_on("compare", tmp_path, capsys, honest, slow, words=["--json"])
    assert code == 1
    verdict = json.loads(out)["verdict"]
    assert verdict[0] == "SLOWER: onnxruntime-cpu, against pytorch-eager of the same run"
    assert verdict[1].startswith("  image, batch 1: ")
    code, out, _ = run_on("guard", tmp_path, capsys, honest, slow)
    assert code == 0
    assert "WARNING: onnxruntime-cpu is slower: image, batch 1 is " in out
