"""A bundle is refused when any part of it isn't what its manifest says."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from bundle_factory import Reference, file_entry, graphs, onnx_bytes, reseal, write_manifest
from onnx import numpy_helper

from dra_runtime.bundle import Bundle
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, BundleError, BundleFormatError, BundleIntegrityError, UsageError
from dra_runtime.onnx_file import require_weights_inside


def one_line(error) -> bool:
    return "\n" not in str(error.value)


def test_opens(bundle_path):
    for integrity in ("hash", "size"):
        bundle = Bundle.open(bundle_path, integrity)
        assert bundle.manifest.dim == 8
        assert bundle.file("merges.txt") == bundle_path / "merges.txt"
    with pytest.raises(UsageError, match="no file"):
        bundle.file("manifest.json")
    with pytest.raises(UsageError, match="integrity"):
        Bundle.open(bundle_path, "none")


def test_other_files_beside_are_left_alone(bundle_copy):
    (bundle_copy / "engines").mkdir()
    (bundle_copy / "notes.txt").write_text("x")
    Bundle.open(bundle_copy)


def test_a_link_to_the_folder_is_followed(bundle_path, tmp_path):
    (tmp_path / "latest").symlink_to(bundle_path, target_is_directory=True)
    Bundle.open(tmp_path / "latest")


@pytest.mark.parametrize("name", ["image_encoder.onnx", "merges.txt", "selftest.npz"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_changed_byte(bundle_copy, name, place):
    data = bytearray((bundle_copy / name).read_bytes())
    data[int(len(data) * place) if place == 0.5 else place] ^= 1
    (bundle_copy / name).write_bytes(data)
    with pytest.raises(BundleIntegrityError, match="SHA-256") as caught:
        Bundle.open(bundle_copy)
    assert name in str(caught.value)
    Bundle.open(bundle_copy, "size")  # what it doesn't look for


@pytest.mark.parametrize("integrity", ["hash", "size"])
def test_a_missing_longer_or_linked_file(bundle_copy, integrity):
    path = bundle_copy / "query.onnx"
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    with pytest.raises(BundleIntegrityError, match="bytes"):
        Bundle.open(bundle_copy, integrity)
    path.unlink()
    with pytest.raises(BundleIntegrityError, match="missing"):
        Bundle.open(bundle_copy, integrity)
    (bundle_copy.parent / "outside.onnx").write_bytes(data)
    path.symlink_to(bundle_copy.parent / "outside.onnx")
    with pytest.raises(BundleIntegrityError, match="link"):
        Bundle.open(bundle_copy, integrity)
    path.unlink()
    path.mkdir()
    with pytest.raises(BundleIntegrityError, match="a folder"):
        Bundle.open(bundle_copy, integrity)


def test_a_changed_manifest(bundle_copy):
    path = bundle_copy / "manifest.json"
    path.write_text(path.read_text().replace('"pad_ratio": 1.25', '"pad_ratio": 1.5'))
    with pytest.raises(BundleIntegrityError, match="bundle_id"):
        Bundle.open(bundle_copy)


def test_parity_may_be_added_later(bundle_copy):
    path = bundle_copy / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"parity": {"min_cosine": 0.999999}}))
    assert Bundle.open(bundle_copy).manifest.parity == {"min_cosine": 0.999999}


def test_manifests_that_are_none(bundle_copy, tmp_path):
    path = bundle_copy / "manifest.json"
    text = path.read_bytes()
    for content in (b"", b"{}", text[:-5], text + b" " * 2**22 + b"x", b"\x80" + text):
        path.write_bytes(content)
        with pytest.raises(BundleFormatError) as caught:
            Bundle.open(bundle_copy)
        assert one_line(caught)
    path.unlink()
    (tmp_path / "m.json").write_bytes(text)
    path.symlink_to(tmp_path / "m.json")
    with pytest.raises(BundleFormatError):
        Bundle.open(bundle_copy)


def test_folders_that_are_no_bundle(bundle_path, tmp_path):
    for path in (tmp_path, tmp_path / "missing", bundle_path / "merges.txt", "a\0b"):
        with pytest.raises(BundleError) as caught:
            Bundle.open(path)
        assert one_line(caught)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(bundle_copy):
    (bundle_copy / "query.onnx").chmod(0)
    with pytest.raises(BundleIntegrityError):
        Bundle.open(bundle_copy)


def replace_selftest(folder, **changes):
    with np.load(folder / "selftest.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays |= changes
    np.savez(folder / "selftest.npz", **{k: v for k, v in arrays.items() if v is not None})
    reseal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"queries": None},
        {"relation_features": None},
        {"extra": np.zeros(3)},
        {"texts": np.array(["a"])},
        {"tokens": np.zeros((4, 5), np.int64)},
        {"images": np.zeros((4, 8, 8, 4), np.uint8)},
        {"image_features": np.zeros((4, 9), np.float32)},
        {"image_features": np.full((4, 8), np.nan, np.float32)},
        {"queries": np.zeros((4, 8), np.float64)},
        {"texts": np.array(3)},
    ],
    ids=str,
)
def test_a_wrong_selftest(bundle_copy, changes):
    replace_selftest(bundle_copy, **changes)
    with pytest.raises(BundleFormatError) as caught:
        Bundle.open(bundle_copy).selftest()
    assert one_line(caught)


def test_a_selftest_with_a_pickle(bundle_copy):
    mark = bundle_copy / "executed"
    payload = type("Payload", (), {"__reduce__": lambda _: (exec, (f"open({str(mark)!r}, 'w').close()",))})()
    replace_selftest(bundle_copy, texts=np.array([payload] * 4, dtype=object))
    with pytest.raises(BundleFormatError):
        Bundle.open(bundle_copy).selftest()
    assert not mark.exists()


def test_a_selftest_that_is_no_archive(bundle_copy):
    (bundle_copy / "selftest.npz").write_bytes(b"PK\x03\x04 no archive")
    reseal(bundle_copy)
    with pytest.raises(BundleFormatError):
        Bundle.open(bundle_copy).selftest()


def test_merges_of_another_vocabulary(bundle_copy):
    lines = (bundle_copy / "merges.txt").read_text(encoding="utf-8").split("\n")
    (bundle_copy / "merges.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    reseal(bundle_copy)
    with pytest.raises(BundleFormatError, match="vocab_size"):
        Encoder.open(bundle_copy)


def rewrite_graph(folder, name, data):
    (folder / f"{name}.onnx").write_bytes(data)
    reseal(folder)


def test_weights_in_other_files(bundle_copy):
    model = onnx.load(bundle_copy / "text_encoder.onnx")
    onnx.save(
        model,
        bundle_copy / "text_encoder.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    reseal(bundle_copy)
    encoder = Encoder.open(bundle_copy)
    with pytest.raises(BundleFormatError, match="other files"):
        encoder.encode_texts("a")


def test_weights_in_other_files_below_a_subgraph(tmp_path):
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    outer = onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], []))
    path = tmp_path / "x.onnx"
    path.write_bytes(outer.SerializeToString())
    with pytest.raises(BundleFormatError, match="other files"):
        require_weights_inside(path)
    tensor.data_location = onnx.TensorProto.DEFAULT
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([node], "outer", [], [])).SerializeToString())
    require_weights_inside(path)


def test_files_that_are_no_graph(bundle_copy):
    good = (bundle_copy / "text_encoder.onnx").read_bytes()
    for data in (b"", b"no graph", good[:-40], b"\xff" * 200, b"\x3a" + b"\xff" * 9 + b"\x01", b"\x08\x09"):
        rewrite_graph(bundle_copy, "text_encoder", data)
        encoder = Encoder.open(bundle_copy)
        with pytest.raises((BundleFormatError, BackendError)) as caught:
            encoder.encode_texts("a")
        assert one_line(caught)


def test_a_graph_that_differs_from_the_manifest(bundle_copy):
    parts = graphs(Reference())
    # the compositor's file holds the text encoder
    rewrite_graph(bundle_copy, "compositor", onnx_bytes(parts["text_encoder"]))
    encoder = Encoder.open(bundle_copy)
    with pytest.raises(BundleFormatError, match="inputs"):
        encoder.compose(np.ones((1, 8)), np.ones((1, 8)))


def test_a_graph_with_a_fixed_batch(bundle_copy):
    nodes, inputs, outputs, constants = graphs(Reference())["compositor"]
    for value in [*inputs, *outputs]:
        value.type.tensor_type.shape.dim[0].Clear()
        value.type.tensor_type.shape.dim[0].dim_value = 1
    rewrite_graph(bundle_copy, "compositor", onnx_bytes((nodes, inputs, outputs, constants)))
    encoder = Encoder.open(bundle_copy)
    with pytest.raises(BundleFormatError, match="inputs"):
        encoder.compose(np.ones((1, 8)), np.ones((1, 8)))


def test_nothing_is_loaded_before_it_is_needed(bundle_copy):
    for name in ("image_encoder", "compositor", "reranker", "query"):
        (bundle_copy / f"{name}.onnx").write_bytes(b"no graph")
    reseal(bundle_copy)
    assert Encoder.open(bundle_copy).encode_texts("a").shape == (1, 8)


def test_integrity_helpers_agree(bundle_path, tmp_path):
    # the factory's own sealing must not hide a fault: an untouched copy sealed again is the same bundle
    copy = shutil.copytree(bundle_path, tmp_path / "copy")
    reseal(copy)
    assert Bundle.open(copy).manifest == Bundle.open(bundle_path).manifest
    assert file_entry(copy / "merges.txt")["size"] == (bundle_path / "merges.txt").stat().st_size
    values = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, values | {"precision": "fp16"})
    assert Bundle.open(copy).manifest.bundle_id != Bundle.open(bundle_path).manifest.bundle_id
