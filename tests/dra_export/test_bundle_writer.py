import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator

from dra_export import bundle_writer
from dra_export.bundle_writer import record_parity, write_bundle
from dra_export.graphs import graphs_of
from dra_export.onnx_from_model import write_onnx
from dra_export.selftest import make_selftest
from dra_runtime.bundle import Bundle, bundle_id_of
from dra_runtime.encoder import Encoder
from dra_runtime.errors import SelfCheckError, UsageError
from dra_runtime.selfcheck import selfcheck
from dra_train.checkpoint import load_checkpoint

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "bundle.schema.json").read_text(encoding="utf-8"))


def test_the_bundle_keeps_the_documented_format(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    Draft202012Validator(SCHEMA).validate(manifest)
    on_disk = {path.name for path in tiny_bundle.iterdir()} - {"manifest.json"}
    assert on_disk == set(manifest["files"])
    assert set(manifest["graphs"]) == {"image_encoder", "text_encoder", "compositor", "reranker", "query"}
    assert manifest["graphs"]["query"]["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 3, 64, 64]},
        {"name": "tokens", "dtype": "int32", "shape": ["batch", "length"]},
    ]


def test_the_bundle_passes_its_own_selftest_in_the_runtime(tiny_bundle: Path) -> None:
    report = selfcheck(Encoder.open(tiny_bundle))
    assert report.passed
    assert set(report.parts) == {"image_features", "text_features", "queries", "relation_features"}


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    again = write_bundle(load_checkpoint(tiny_checkpoint), tmp_path / "again")
    assert again.manifest.bundle_id == Bundle.open(tiny_bundle).manifest.bundle_id


def test_graphs_and_references_are_the_same_bytes_again(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    for graph in graphs_of(model):
        if graph.name in ("compositor", "reranker"):
            write_onnx(graph, tmp_path / "again.onnx")
            assert (tmp_path / "again.onnx").read_bytes() == (tiny_bundle / f"{graph.name}.onnx").read_bytes()
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        np.savez(tmp_path / "again.npz", allow_pickle=False, **make_selftest(model))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        assert (tmp_path / "again.npz").read_bytes() == (tiny_bundle / "selftest.npz").read_bytes()


def test_graphs_know_nothing_of_the_source_that_made_them(tiny_bundle: Path) -> None:
    """Neither folders of this machine nor lines of our code: a moved installation gives the same bundle."""
    for path in tiny_bundle.glob("*.onnx"):
        content = path.read_bytes()
        for word in (b"dra_train", b"dra_export", b"site-packages", b"stack_trace"):
            assert word not in content, path.name


def test_what_is_there_is_not_replaced_unasked(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(UsageError, match="is no bundle"):
        write_bundle(checkpoint, tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"
    with pytest.raises(UsageError, match="--overwrite"):
        write_bundle(checkpoint, tiny_bundle)


def test_a_bundle_that_fails_its_selftest_never_appears(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_with_wrong_references(folder: Path, *_: object) -> None:
        shutil.copytree(tiny_bundle, folder, dirs_exist_ok=True)
        with np.load(folder / "selftest.npz") as file:
            arrays = {**file, "text_features": np.roll(file["text_features"], 1, axis=0)}
        np.savez(folder / "selftest.npz", **arrays)
        manifest = Bundle.open(tiny_bundle).manifest
        files = {name: bundle_writer._file_entry(folder / name) for name in manifest.files}
        manifest = replace(manifest, files=files)
        bundle_writer._write_manifest(folder, replace(manifest, bundle_id=bundle_id_of(manifest)))

    monkeypatch.setattr(bundle_writer, "_fill", fill_with_wrong_references)
    with pytest.raises(SelfCheckError, match="text_features"):
        write_bundle(load_checkpoint(tiny_checkpoint), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_the_old_bundle_comes_back_when_the_new_one_cannot_take_its_place(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    monkeypatch.setattr(bundle_writer, "_fill", lambda folder, *_: shutil.copytree(out, folder, dirs_exist_ok=True))
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(UsageError, match="No space left"):
        write_bundle(load_checkpoint(tiny_checkpoint), out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert selfcheck(Encoder.open(out)).passed


def test_recording_parity_keeps_the_identity(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "copy")
    before = Bundle.open(copy)
    record_parity(before, {"passed": True})
    after = Bundle.open(copy)
    assert after.manifest.parity == {"passed": True}
    assert after.manifest.bundle_id == before.manifest.bundle_id
    assert not [path for path in copy.iterdir() if path.name.endswith(".tmp")]
