"""Recall beside recall, whose first answer changed, and what an artifact is judged by."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dra_bench.cli import main
from dra_bench.recall import (
    artifact_verdicts,
    beyond,
    contenders_of,
    datasets_and_splits,
    open_artifacts,
    recall_report,
    verdict_lines,
)
from dra_runtime.bundle import Bundle, FileEntry
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, UsageError
from dra_runtime.files import write_json
from dra_runtime.manifest import MANIFEST, bundle_id_of, manifest_to_dict

LIMITS = {"min_cosine": 0.999, "recall_points": 0.1, "top10_overlap": 99.0}


def split(**values):
    recalls = {"R@1": 45.0, "R@5": 74.1}
    values = {"dataset": "d", "split": "val", "queries": 50, "reference": recalls, "candidate": recalls, **values}
    return {"top10_overlap": 100.0, "changed_queries": 0, "changed": [], **values}


def judged(artifact, passed, missed=(), **values):
    identity = {"bundle": "b", "bundle_id": "1", "precision": "fp16", "backend": "onnxruntime-cpu", "limits": LIMITS}
    return split(artifact=artifact, passed=passed, missed=list(missed), **identity, **values)


def test_a_recall_may_differ_by_the_tolerance_and_no_more():
    assert not beyond({"R@1": 45.0, "R@5": 74.1}, {"R@1": 45.0, "R@5": 74.1}, 0.0)
    (line,) = beyond({"R@1": 45.0, "R@5": 74.1}, {"R@1": 45.0, "R@5": 74.04}, 0.0)  # one query of 1660
    assert line.startswith("R@5: 74.04 % where PyTorch has 74.10 %")
    assert not beyond({"R@1": 45.0}, {"R@1": 44.94}, 0.06)
    assert not beyond({"R@1": 44.94}, {"R@1": 45.0}, 0.06)
    assert beyond({"R@1": 44.94}, {"R@1": 45.0}, 0.05)  # better is different as well
    assert beyond({"R@1": 45.0}, {"R@1": 44.94}, 0.05)


def rows(report):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines() if line.startswith("| d")]


def test_pytorch_stands_once_a_split_above_all_artifacts():
    lower = {"R@1": 44.0, "R@5": 74.1}
    splits = [judged("a", True), judged("b", True, candidate=lower), judged("a", True, split="test")]
    assert rows(recall_report(splits)) == [
        ["d / val", "PyTorch", "50", "45.00", "74.10"],
        ["d / val", "a", "50", "45.00", "74.10"],
        ["d / val", "b", "50", "44.00", "74.10"],
        ["d / test", "PyTorch", "50", "45.00", "74.10"],
        ["d / test", "a", "50", "45.00", "74.10"],
    ]


def test_data_sets_with_other_metrics_leave_their_columns_empty():
    other = judged("a", True, dataset="d2", reference={"R@10": 9.0}, candidate={"R@10": 9.0})
    assert [row[3:] for row in rows(recall_report([judged("a", True), other]))] == [
        ["45.00", "74.10", ""],
        ["45.00", "74.10", ""],
        ["", "", "9.00"],
        ["", "", "9.00"],
    ]


def test_a_result_of_one_artifact_without_a_name_can_be_shown_too():
    assert "d / val, bundle: 100.00 % of the 10 best answers are the same" in recall_report([split()])


def test_demo_recalls_are_called_that():
    assert recall_report([split(dataset="emoji_cir")]).startswith("Demo recalls in %")
    assert recall_report([split()]).startswith("Recalls in %")


def change(**values):
    return {"id": 3, "text": "red", "reference": "a", "target": "b", "was": "b", "is": "c", **values}


def test_changed_answers_are_listed_without_obeying_their_texts():
    hostile = change(text="\x1b[31mred", **{"is": "c\n"})
    report = recall_report([split(changed=[hostile, change(was="c", **{"is": "d"})], changed_queries=2)])
    assert "query 3: 'a' + '\\x1b[31mred': 'b' -> 'c\\n' (right: 'b')" in report
    assert "changed for 2 of 50 queries (1 were right before, 0 are now)" in report


def test_a_long_list_of_changed_answers_ends_with_their_number():
    report = recall_report([split(changed=[change(id=i) for i in range(9)], changed_queries=9)])
    assert report.count("  query ") == 5
    assert "and 4 more: the JSON has all" in report


def test_an_artifact_passes_where_it_passes_in_every_split():
    splits = [judged("a", True), judged("b", True), judged("a", True, split="t"), judged("b", False, ["x"], split="t")]
    a, b = artifact_verdicts(splits)
    assert (a["artifact"], a["passed"], a["missed"]) == ("a", True, [])
    assert (b["artifact"], b["passed"], b["missed"]) == ("b", False, ["d / t: x"])
    assert list(verdict_lines([a, b], None)) == [
        "a (b): passed (cosine at least 0.999, recall at most 0.1 points lower, 99 % of the first ten)",
        "b (b): FAILED (cosine at least 0.999, recall at most 0.1 points lower, 99 % of the first ten)",
        "  d / t: x",
    ]
    assert next(verdict_lines([a], 0.5)) == "a (b): passed (recall within 0.5 points)"


def test_splits_belong_to_their_data_set(tmp_path):
    odd = tmp_path / "a=b"
    odd.mkdir()
    given = ["builtin=val, val_unseen", "folder", str(odd), f"{odd}=test"]
    assert datasets_and_splits(given, ["val"]) == [
        ("builtin", ("val", "val_unseen")),
        ("folder", ("val",)),
        (str(odd), ("val",)),
        (str(odd), ("test",)),
    ]
    for wrong in ("builtin=", "=val", "builtin=val,"):
        with pytest.raises(UsageError, match="PATH=SPLIT"):
            datasets_and_splits([wrong], ["val"])


def test_half_arithmetic_takes_part_beside_an_fp16_bundle(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "half")
    manifest = replace(Bundle.open(tiny_bundle).manifest, precision="fp16")
    write_json(folder / MANIFEST, manifest_to_dict(replace(manifest, bundle_id=bundle_id_of(manifest))))
    contenders = contenders_of([Encoder.open(path, "onnxruntime-cpu", 1) for path in (tiny_bundle, folder)])
    names = [(c.name, c.bundle, c.artifact.limits.recall_points) for c in contenders]
    assert names == [
        ("onnxruntime-cpu", tiny_bundle.name, 0.0),
        ("onnxruntime-cpu fp16", "half", 0.1),
        ("onnxruntime-cpu fp16, half emulated", "half", 0.1),
    ]


def refuse_cuda(path, backend, threads):
    if backend == "onnxruntime-cuda" and Path(path).name != "fits":
        raise BackendError(f"{path}: no GPU for it")
    return (Path(path).name, backend)


def test_what_cannot_be_opened_is_named_and_an_error_where_nothing_is_left(monkeypatch):
    monkeypatch.setattr(Encoder, "open", refuse_cuda)
    both = ("onnxruntime-cpu", "onnxruntime-cuda")
    encoders, unavailable = open_artifacts([Path("/x/fits"), Path("/x/int8")], both, 1)
    assert encoders == [("fits", both[0]), ("fits", both[1]), ("int8", both[0])]
    assert unavailable == [{"bundle": "int8", "backend": both[1], "reason": "int8: no GPU for it"}]
    with pytest.raises(BackendError, match="no GPU"):  # the backend runs nothing
        open_artifacts([Path("/x/int8")], both, 1)
    with pytest.raises(BackendError, match="no GPU"):  # the bundle is run by nothing
        open_artifacts([Path("/x/fits"), Path("/x/int8")], both[1:], 1)


@pytest.fixture
def noisy_bundle(tiny_bundle, tmp_path):
    """The tiny bundle, valid in every hash, with noise on its compositor's weights."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "noisy")
    manifest = Bundle.open(tiny_bundle).manifest
    path = folder / manifest.graphs["compositor"].file
    model, random = onnx.load(str(path)), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2:
            noise = 0.5 * values.std() * random.standard_normal(values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(values.dtype), tensor.name))
    onnx.save(model, str(path))
    entry = FileEntry(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    changed = replace(manifest, files={**manifest.files, path.name: entry})
    write_json(folder / MANIFEST, manifest_to_dict(replace(changed, bundle_id=bundle_id_of(changed))))
    return folder


def test_noise_in_one_artifact_is_called_out_by_its_name(
    capsys, tmp_path, tiny_checkpoint, tiny_bundle, noisy_bundle, squares
):
    threads = torch.get_num_threads()
    words = ("--bundle", tiny_bundle, "--bundle", noisy_bundle, "--checkpoint", tiny_checkpoint, "--threads", 1)
    with pytest.raises(SystemExit) as exit_info:
        main([str(w) for w in ("recall", *words, "--dataset", f"{squares}=val", "-o", tmp_path / "recall.json")])
    torch.set_num_threads(threads)
    assert exit_info.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("onnxruntime-cpu (bundle): passed") for line in lines)
    assert any(line.startswith("onnxruntime-cpu #2 (noisy): FAILED") for line in lines)
    result = json.loads((tmp_path / "recall.json").read_text())
    assert not result["passed"]
    assert [(a["bundle"], a["passed"]) for a in result["artifacts"]] == [("bundle", True), ("noisy", False)]
    honest, noisy = result["splits"]
    assert (honest["source"], honest["changed_queries"], honest["missed"]) == ("squares", 0, [])
    assert honest["reference"] == noisy["reference"]  # PyTorch's answers are the same for both
    assert noisy["missed"][0].startswith("encode_queries: smallest cosine")
    assert set(noisy["changed"][0]) == {"id", "text", "reference", "target", "was", "is"}
    assert noisy["changed_queries"] == len(noisy["changed"]) > 0


def test_vectors_that_cannot_be_ranked_are_found_wanting(capsys, monkeypatch, tiny_checkpoint, tiny_bundle, squares):
    monkeypatch.setattr(Encoder, "compose", lambda self, a, b: np.full_like(a, np.nan))
    words = ("--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint, "--threads", 1, "--dataset", squares)
    threads = torch.get_num_threads()
    for more in ((), ("--tolerance", 100)):
        with pytest.raises(SystemExit) as exit_info:
            main([str(w) for w in ("recall", *words, *more)])
        assert exit_info.value.code == 1
        assert "not measured" in capsys.readouterr().out
    torch.set_num_threads(threads)
