"""The command dra-bench, from its words to its exit codes."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dra_bench.cli import main
from dra_bench.report.write import gallery_ranking
from dra_bench.shown import answer
from dra_export.parity.verify import verify
from dra_runtime.bundle import Bundle
from dra_runtime.cli import main as search
from dra_runtime.encoder import Encoder
from dra_runtime.files import write_json
from dra_runtime.gallery import Gallery
from dra_runtime.manifest import MANIFEST, bundle_id_of, manifest_to_dict
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main as train
from dra_train.data import load_cirr


@pytest.fixture(scope="module", autouse=True)
def threads_of_other_tests():
    """Give PyTorch back the threads that the commands take from it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(capsys, *words):
    """Run a command; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return (exit_info.value.code, *capsys.readouterr())


OURS = ("--backend", "onnxruntime-cpu")  #: beside PyTorch eager; the other contenders have tests of their own

COMMANDS = ("latency", "recall", "memory", "coldstart", "endtoend", "gallery", "report")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_says_what_a_command_does(capsys, command):
    code, out, err = run(capsys, *command, "--help")
    assert code == 0
    assert not err
    assert "Usage: dra-bench" in out
    assert len(out.splitlines()) > 10


def test_nothing_is_plotted_before_a_report_is_asked_for():
    program = "import dra_bench.cli, sys; assert not {'matplotlib', 'jinja2'} & set(sys.modules), 'loaded'"
    subprocess.run([sys.executable, "-c", program], check=True)


def assert_one_line(code, out, err, *words):
    assert code == 2
    assert not out
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    for word in words:
        assert word in err


def test_a_missing_bundle_is_one_line(capsys, tmp_path, tiny_checkpoint):
    for command in ("latency", "recall"):
        result = run(capsys, command, "--bundle", tmp_path / "none", "--checkpoint", tiny_checkpoint)
        assert_one_line(*result, "none", "no such folder")


def test_an_output_that_can_not_be_written_is_found_before_the_work(capsys, tmp_path):
    result = run(
        capsys, "latency", "--bundle", tmp_path / "b", "--checkpoint", tmp_path / "c", "-o", tmp_path / "no" / "l.json"
    )
    assert_one_line(*result, "the folder of", "l.json")


def test_a_report_of_no_run_is_one_line(capsys, tmp_path):
    assert_one_line(*run(capsys, "report", tmp_path / "none"), "is no folder")
    assert_one_line(*run(capsys, "report", tmp_path), "eval.json", "dra-train evaluate")
    assert list(tmp_path.iterdir()) == []


def test_few_samples_are_refused(capsys, tmp_path):
    result = run(capsys, "latency", "--bundle", "b", "--checkpoint", "c", "--samples", "3")
    assert_one_line(*result, "--samples", "11")


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_checkpoint, tiny_bundle, squares):
    """A run folder as the commands leave it, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    folder.mkdir()
    shutil.copytree(tiny_bundle, folder / "bundle")
    bundle, checkpoint = folder / "bundle", tiny_checkpoint
    both = ("--bundle", bundle, "--checkpoint", checkpoint, "--threads", 1)
    for command, *words in (
        (train, "evaluate", checkpoint, "--dataset", squares, "-o", folder / "eval.json"),
        (search, "index", bundle, squares / "img_raw", "-o", folder / "val.gallery"),
        (main, "latency", *both, *OURS, "--samples", 12, "--batch", 1, "--batch", 2, "-o", folder / "latency.json"),
        (main, "recall", *both, "--dataset", squares, "-o", folder / "recall.json"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            command([str(word) for word in words])
        assert exit_info.value.code == 0
    parity = verify(load_checkpoint(checkpoint).model, Encoder.open(bundle, threads=1), load_cirr(squares, "val"))
    (folder / "verify.json").write_text(json.dumps(parity))
    return folder


def test_latency_covers_every_batch_and_backend(measured, tiny_checkpoint):
    result = json.loads((measured / "latency.json").read_text())
    assert {row["batch"] for row in result["rows"]} == {1, 2}
    assert {row["samples"] for row in result["rows"]} == {12}
    backends = {batch: {row["backend"] for row in result["rows"] if row["batch"] == batch} for batch in (1, 2)}
    assert backends == {
        1: {"pytorch-eager", "onnxruntime-cpu", "dra-runtime", "open_clip"},
        2: {"pytorch-eager", "pytorch-eager channels-last", "onnxruntime-cpu"},
    }
    assert {(row["part"], row["batch"]) for row in result["throughput"]} == {
        (part, 2) for part in ("image", "text", "compose", "query", "query_by_id")
    }
    by_id = [r for r in result["rows"] if r["part"] == "query_by_id" and r["backend"] == "onnxruntime-cpu"]
    assert [r["text_tokens"] for r in by_id] == [12, 12]
    assert all(0 < r["p50_ms"] <= r["p90_ms"] <= r["p95_ms"] <= r["p99_ms"] for r in result["rows"])
    assert {row["part"] for row in result["rows"] if row["batch"] == 1} >= {"preprocess", "tokenize", "rerank"}
    assert {row["backend"]: row["precision"] for row in result["contenders"]} == {
        "pytorch-eager": "fp32",
        "onnxruntime-cpu": "fp32",
    }
    assert all(r["reference"]["backend"].startswith("pytorch-eager") for r in result["fastest_baselines"])
    assert {"cpu_mhz", "cpu_mhz_after", "gpu_name"} <= set(result["environment"])
    assert result["environment"]["checkpoint_sha256"] == hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert result["environment"]["command"].startswith("dra-bench latency --bundle bundle --checkpoint ckpt.pt")
    assert min(result["agreement"].values()) > 0.99999
    (bundle,) = result["bundles"]
    assert bundle["bundle_id"] == result["environment"]["bundle_id"]
    assert bundle["agreement"] == result["agreement"]


def test_no_result_tells_a_path_of_the_machine(measured):
    for name in ("latency.json", "recall.json"):
        assert str(measured.parent.parent) not in (measured / name).read_text()


def test_latency_prints_json_alone_where_asked(capsys, tiny_checkpoint, tiny_bundle):
    words = (
        "--bundle",
        tiny_bundle,
        "--checkpoint",
        tiny_checkpoint,
        "--threads",
        1,
        "--samples",
        11,
        "--text",
        "blue",
    )
    code, out, err = run(capsys, "latency", *words, *OURS, "--json")
    assert code == 0
    assert {row["text_tokens"] for row in json.loads(out)["rows"]} == {None, 3, 77}
    assert "timing" in err


def test_bundles_alone_are_compared_with_the_first_of_them(capsys, tmp_path, tiny_bundle, int8_bundle):
    encoder = Encoder.open(int8_bundle, threads=1)
    features = np.random.default_rng(0).normal(size=(20, encoder.dim)).astype(np.float32)
    Gallery.from_features(encoder, [str(i) for i in range(20)], features).save(tmp_path / "shop.gallery")
    words = ("--bundle", tiny_bundle, "--bundle", int8_bundle, "--threads", 1, "--samples", 11)
    texts = ("--text-tokens", 5, "--text-tokens", 9)
    code, out, _ = run(
        capsys, "latency", *words, *texts, "--gallery", tmp_path / "shop.gallery", "-o", tmp_path / "l.json"
    )
    assert code == 0
    result = json.loads((tmp_path / "l.json").read_text())
    assert {r["reference"]["backend"] for r in result["ratios"]} == {"onnxruntime-cpu"}
    assert {row["text_tokens"] for row in result["rows"] if row["part"] == "text"} == {5, 9}
    search = [row["backend"] for row in result["rows"] if row["part"] == "search"]
    assert search == ["onnxruntime-cpu int8"]  # the one that made it
    assert result["gallery"] == {"items": 20, "storage": "float32", "index": None}
    missing = {m["backend"]: m["reason"] for m in result["unavailable"]}
    assert missing["pytorch-eager"] == "needs --checkpoint"
    assert "Not here:" in out
    assert all(len(line) <= 120 for line in out.partition("Not here:")[0].splitlines())


def test_a_contender_that_is_not_there_is_one_line(capsys, tiny_checkpoint, tiny_bundle):
    bundle = ("--bundle", tiny_bundle, "--threads", 1)
    assert_one_line(*run(capsys, "latency", *bundle, "--backend", "pytorch-eager"), "without --checkpoint")
    both = (*bundle, "--checkpoint", tiny_checkpoint)
    assert_one_line(*run(capsys, "latency", *both, "--backend", "abacus"), "'abacus' is no contender")
    assert_one_line(*run(capsys, "latency"), "--bundle", "--engine")


@pytest.fixture
def int8_bundle(tiny_bundle, tmp_path):
    """The tiny bundle under the name of another precision: what names and ratios follow from, not how it computes."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle-int8")
    manifest = replace(Bundle.open(tiny_bundle).manifest, precision="int8")
    write_json(folder / MANIFEST, manifest_to_dict(replace(manifest, bundle_id=bundle_id_of(manifest))))
    return folder


def test_several_bundles_take_turns_in_one_run(capsys, tmp_path, tiny_checkpoint, tiny_bundle, int8_bundle):
    bundles = ("--bundle", int8_bundle, "--bundle", tiny_bundle, "--bundle", tiny_bundle)
    words = (*bundles, "--checkpoint", tiny_checkpoint, "--threads", 1, "--samples", 11, "-o", tmp_path / "l.json")
    code, out, _ = run(capsys, "latency", *words, *OURS)
    assert code == 0
    result = json.loads((tmp_path / "l.json").read_text())
    names = ["onnxruntime-cpu int8", "onnxruntime-cpu", "onnxruntime-cpu #2"]
    assert [b["backend"] for b in result["bundles"]] == names
    assert [b["precision"] for b in result["bundles"]] == ["int8", "fp32", "fp32"]
    assert [b["bundle"] for b in result["bundles"]] == ["bundle-int8", "bundle", "bundle"]
    ids = [Bundle.open(folder).manifest.bundle_id for folder in (int8_bundle, tiny_bundle, tiny_bundle)]
    assert [b["bundle_id"] for b in result["bundles"]] == ids
    assert all(min(b["agreement"].values()) > 0.99999 for b in result["bundles"])
    assert result["environment"]["precision"] == "int8, fp32, fp32"
    pairs = {(r["candidate"]["backend"], r["reference"]["backend"]) for r in result["ratios"]}
    assert pairs == {(name, "pytorch-eager") for name in names} | {
        ("onnxruntime-cpu int8", "onnxruntime-cpu"),
        ("onnxruntime-cpu #2", "onnxruntime-cpu"),
    }
    assert {row["backend"] for row in result["rows"]} == {"pytorch-eager", "dra-runtime", "open_clip", *names}
    assert "| image, onnxruntime-cpu int8 " in out


def test_a_bundle_with_uint8_images_is_measured_too(capsys, tiny_checkpoint, tiny_bundle, tiny_uint8_bundle):
    words = ("--bundle", tiny_uint8_bundle, "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint)
    code, out, _ = run(capsys, "latency", *words, *OURS, "--threads", 1, "--samples", 11, "--json")
    assert code == 0
    bundles = json.loads(out)["bundles"]
    assert [b["backend"] for b in bundles] == ["onnxruntime-cpu uint8 image", "onnxruntime-cpu"]
    assert all(min(b["agreement"].values()) > 0.99999 for b in bundles)


def test_one_bundle_of_several_that_came_from_elsewhere_is_one_line(capsys, tmp_path, tiny_checkpoint, tiny_bundle):
    foreign = shutil.copytree(tiny_bundle, tmp_path / "foreign")
    manifest = Bundle.open(tiny_bundle).manifest
    changed = replace(manifest, provenance={**manifest.provenance, "checkpoint": {"sha256": "0" * 64}})
    write_json(foreign / MANIFEST, manifest_to_dict(replace(changed, bundle_id=bundle_id_of(changed))))
    words = ("--bundle", tiny_bundle, "--bundle", foreign, "--checkpoint", tiny_checkpoint)
    assert_one_line(*run(capsys, "latency", *words), "foreign was made from another checkpoint")


def test_recall_is_equal_and_says_so(measured):
    result = json.loads((measured / "recall.json").read_text())
    assert result["passed"]
    (split,) = result["splits"]
    assert (split["dataset"], split["split"], split["queries"], split["gallery"]) == ("squares", "val", 33, 12)
    assert split["reference"] == split["candidate"]
    assert json.loads((measured / "eval.json").read_text())["metrics"] == split["reference"]


def test_a_bundle_that_finds_less_is_found_wanting(capsys, monkeypatch, tiny_checkpoint, tiny_bundle, squares):
    monkeypatch.setattr(Encoder, "compose", lambda self, image_features, text_features: -image_features)
    words = ("--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint, "--threads", 1, "--dataset", squares)
    code, out, _ = run(capsys, "recall", *words)
    assert code == 1
    assert "FAILED" in out
    assert run(capsys, "recall", *words, "--tolerance", 100)[0] == 0


def test_another_checkpoints_bundle_is_one_line(capsys, tmp_path, tiny_bundle):
    other = tmp_path / "other.pt"
    save_checkpoint(other, untrained_model(model_config("tiny-resnet"), seed=5), {})
    for command in ("latency", "recall"):
        result = run(capsys, command, "--bundle", tiny_bundle, "--checkpoint", other)
        assert_one_line(*result, "made from another checkpoint", "other.pt")


def test_a_report_is_written_from_what_the_commands_left(capsys, measured, squares):
    code, out, _ = run(capsys, "report", measured, "--dataset", squares, "--queries", 6)
    assert code == 0
    assert [line.split()[0].rpartition("/")[2] for line in out.splitlines()] == [
        "report.html",
        "picture.png",
        "report.md",
    ]
    page = (measured / "report.html").read_text()
    assert page.count('<ol class="answers">') == 6
    with Image.open(measured / "picture.png") as picture:
        assert picture.width == 1200
    assert not list(measured.glob(".*"))


def test_shown_answers_are_the_evaluations_own(measured, squares):
    """The ranks on the page follow the protocol of the recalls, though they come from the gallery."""
    dataset = load_cirr(squares, "val")
    encoder = Encoder.open(measured / "bundle", threads=1)
    gallery = Gallery.open(measured / "val.gallery", encoder)
    shown = answer(dataset.queries, dataset, gallery_ranking(gallery, dataset))
    first = 100 * sum(query.is_first for query in shown) / len(shown)
    assert first == pytest.approx(json.loads((measured / "eval.json").read_text())["metrics"]["R@1"], abs=0.01)


def test_a_report_needs_its_own_data_set_and_gallery(capsys, measured, squares, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(measured, broken)
    assert_one_line(*run(capsys, "report", broken), "squares", "emoji_cir")
    encoder = Encoder.open(broken / "bundle", threads=1)
    Gallery.build(encoder, {"red": squares / "img_raw/val/red.png"}).save(broken / "val.gallery")
    before = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()}
    assert_one_line(
        *run(capsys, "report", broken, "--dataset", squares), "val.gallery lacks 11 of the split's 12 images"
    )
    assert {path: path.read_bytes() for path in broken.rglob("*") if path.is_file()} == before


def test_an_empty_text_is_one_line(capsys, tiny_checkpoint, tiny_bundle):
    result = run(capsys, "latency", "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint, "--text", " ")
    assert_one_line(*result, "give at least one word")
