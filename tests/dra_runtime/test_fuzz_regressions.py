"""What fuzzing and reading found, each as its smallest case. All of these once hung, crashed, or passed."""

import gzip
import io
import json
import os
import struct
import zipfile
import zlib

import numpy as np
import onnx
import pytest
from bundle_factory import Reference, graphs, onnx_bytes, reseal, write_manifest
from fuzz_files import bmp, chunk, good_images, png, sidecar_values, tiff
from onnx import helper, numpy_helper
from PIL import Image

import dra_runtime as dra
from dra_runtime import console, onnx_file, sessions
from dra_runtime.backends.engines import engines_in
from dra_runtime.engine_file import check_plan_bytes, read_sidecar
from dra_runtime.engine_host import Gpu, Host
from dra_runtime.errors import EngineFormatError, EngineIntegrityError
from dra_runtime.manifest import manifest_from_dict, manifest_values_from_json
from dra_runtime.onnx_file import require_weights_inside
from dra_runtime.preprocess import open_image
from dra_runtime.regular_file import open_regular, read_regular
from dra_runtime.selftest_file import read_arrays
from dra_runtime.tokenizer import Tokenizer

# -- manifest and bundle


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("preprocess.pad_ratio", 10**320),  # isfinite() of a whole number beyond float64 raises OverflowError
        ("preprocess.mean", [1e300, 0, 0]),
        ("preprocess.image_size", 2048),  # a batch of 16 would take gigabytes
        ("tokenizer.vocab_size", 2**24),
        ("provenance", {"a": 10**5000}),
    ],
    ids=["pad_ratio", "mean", "image_size", "vocab_size", "digits"],
)
def test_numbers_that_are_too_large(bundle_path, place, value):
    values = manifest(bundle_path)
    if "." in place:
        section, key = place.split(".")
        values[section][key] = value
        with pytest.raises(dra.BundleFormatError) as caught:
            manifest_from_dict(values)
        assert len(str(caught.value)) < 300
    else:
        text = json.dumps({**values, "provenance": {"a": "@"}}).replace('"@"', "1" * 5000)
        with pytest.raises(dra.BundleFormatError, match="digits"):
            manifest_values_from_json(text.encode())


def test_sizes_of_files_and_tokens_are_bounded(bundle_path):
    values = manifest(bundle_path)
    values["files"]["x.bin"] = {"sha256": "a" * 64, "size": 2**31}
    with pytest.raises(dra.BundleFormatError, match="size"):
        manifest_from_dict(values)
    values["files"] |= {f"x{n}.bin": {"sha256": "a" * 64, "size": 2**31 - 1} for n in range(9)}
    values["files"]["x.bin"]["size"] = 1
    with pytest.raises(dra.BundleFormatError, match="in all"):
        manifest_from_dict(values)
    values = manifest(bundle_path)
    values["graphs"]["image_encoder"]["outputs"][1]["shape"][1] = 2**22
    with pytest.raises(dra.BundleFormatError, match="image tokens"):
        manifest_from_dict(values)


@pytest.mark.parametrize("name", ["con", "NUL.onnx", "com1.txt", "a.", "Aux", "lpt9"])
def test_names_that_mean_something_else_on_windows(bundle_path, name):
    values = manifest(bundle_path)
    values["files"][name] = {"sha256": "a" * 64, "size": 1}
    with pytest.raises(dra.BundleFormatError, match="plain file names"):
        manifest_from_dict(values)
    values["files"]["console.txt"] = values["files"].pop(name)
    manifest_from_dict(values)


@pytest.mark.parametrize("name", ["manifest.json", "merges.txt", "selftest.npz", "text_encoder.onnx"])
def test_pipes_and_devices_are_not_opened(bundle_copy, name):
    """Opening a pipe waits for its other end, for ever."""
    (bundle_copy / name).unlink()
    os.mkfifo(bundle_copy / name)
    with pytest.raises(dra.BundleError, match="a pipe"):
        dra.Bundle.open(bundle_copy)


def test_regular_files_only(tmp_path):
    file, pipe, link = tmp_path / "file", tmp_path / "pipe", tmp_path / "link"
    file.write_bytes(b"12345")
    os.mkfifo(pipe)
    link.symlink_to(file)
    assert read_regular(file, 5) == read_regular(link, 5, links=True) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than the 4"):
        read_regular(file, 4)
    for path in (pipe, link, tmp_path, tmp_path / "missing", "/dev/zero"):
        with pytest.raises(OSError):  # noqa: PT011 - its words are the system's for one of them
            open_regular(tmp_path / path)
    link.unlink()
    link.symlink_to(pipe)
    with pytest.raises(OSError, match="a pipe"):
        open_regular(link, links=True)


def test_images_and_sidecars_may_not_be_pipes(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(dra.ImageError, match="a pipe"):
        open_image(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "a.plan.json")
    with pytest.raises(EngineFormatError, match="a pipe"):
        read_sidecar(tmp_path / "a.plan")


def test_a_plan_that_is_a_link(tmp_path):
    (tmp_path / "text_encoder.plan.json").write_text(json.dumps(sidecar_values()))
    (tmp_path / "text_encoder.plan").symlink_to(tmp_path / "text_encoder.plan.json")
    sidecar = read_sidecar(tmp_path / "text_encoder.plan")
    with pytest.raises(EngineIntegrityError, match="a symbolic link"):
        check_plan_bytes(tmp_path / "text_encoder.plan", sidecar)


def test_an_image_that_is_longer_than_allowed_is_not_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(dra.ImageError, match="1099511627776 bytes"):
        open_image(tmp_path / "a.jpg")


# -- selftest and merges


def refused_selftest(folder, data):
    (folder / "selftest.npz").write_bytes(data)
    with pytest.raises(dra.BundleFormatError) as caught:
        read_arrays(folder / "selftest.npz")
    return str(caught.value)


def npz(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(shape, data=b"", dtype="<f4"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def test_an_array_that_declares_more_than_it_holds(tmp_path):
    """`numpy.load` would allocate the declared shape first."""
    assert "0 bytes for the shape" in refused_selftest(tmp_path, npz([("texts.npy", npy("(1000000000000,)"))]))
    assert "shape" in refused_selftest(tmp_path, npz([("texts.npy", npy("(-1, -1)", bytes(4)))]))
    assert "holds |V0" in refused_selftest(tmp_path, npz([("texts.npy", npy("(9,)", b"", "|V0"))]))


def test_compression_that_unpacks_without_bound(tmp_path):
    assert "deflate" in refused_selftest(tmp_path, npz([("texts.npy", bytes(10**6))], zipfile.ZIP_BZIP2))
    assert "deflate" in refused_selftest(tmp_path, npz([("texts.npy", bytes(10**6))], zipfile.ZIP_LZMA))


def test_an_archive_of_too_many_members(tmp_path):
    """Reading a directory takes a hundred times its size."""
    assert "expected at most 16" in refused_selftest(tmp_path, npz([(f"{n}.npy", b"") for n in range(17)]))
    data = npz([("a.npy", npy("(0,)"))])
    assert "no plain zip" in refused_selftest(tmp_path, data[:-22] + b"PK\6\7" + bytes(16) + data[-22:])
    assert "no plain zip" in refused_selftest(tmp_path, data + bytes(30))


def test_an_array_that_stands_twice(tmp_path):
    same = npy("(0,)")
    assert "twice" in refused_selftest(tmp_path, npz([("a.npy", same), ("a", same)]))


def test_selftest_texts_beyond_unicode(bundle_copy):
    with np.load(bundle_copy / "selftest.npz") as archive:
        arrays = dict(archive)
    for number in (0x110000, 0xD800):
        texts = np.frombuffer(np.full(4, number, "<u4").tobytes(), "<U1")
        np.savez(bundle_copy / "selftest.npz", **{**arrays, "texts": texts})
        reseal(bundle_copy)
        with pytest.raises(dra.BundleFormatError, match="no Unicode"):
            dra.Bundle.open(bundle_copy).selftest()


def test_a_selftest_of_too_many_inputs(bundle_copy):
    with np.load(bundle_copy / "selftest.npz") as archive:
        arrays = {name: np.repeat(array, 80, axis=0) for name, array in archive.items()}
    np.savez(bundle_copy / "selftest.npz", **arrays)
    reseal(bundle_copy)
    with pytest.raises(dra.BundleFormatError, match="320 texts; expected 1 to 256"):
        dra.Bundle.open(bundle_copy).selftest()


def test_merges_that_unpack_without_bound_or_are_damaged(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(gzip.compress(bytes(33 * 2**20), 9))
    with pytest.raises(dra.UsageError, match="more than"):
        Tokenizer.load(path)
    path.write_bytes(gzip.compress(b"a b\n" * 100)[:12] + b"\xff" * 40)  # zlib's error is no ValueError
    with pytest.raises(dra.UsageError, match="no list of merges"):
        Tokenizer.load(path)


# -- graphs


def refused_graph(folder, data):
    (folder / "x.onnx").write_bytes(data)
    with pytest.raises(dra.BundleFormatError) as caught:
        require_weights_inside(folder / "x.onnx")
    return str(caught.value)


def external():
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def field(number, data, beyond=0):
    return varint((number << 3 | 2) + beyond) + varint(len(data)) + data


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_weights_outside_in_every_place_that_holds_tensors(tmp_path):
    tensor = external().SerializeToString()
    attribute = onnx.AttributeProto(name="t", type=onnx.AttributeProto.TENSOR)
    attribute.t.CopyFrom(external())
    node = helper.make_node("Constant", [], ["c"])
    node.attribute.append(attribute)
    function = helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 18)])
    graph = onnx.GraphProto(initializer=[external()])
    sparse = onnx.SparseTensorProto(values=external())
    models = {
        "initializer": onnx.ModelProto(graph=graph),
        "constant": onnx.ModelProto(graph=onnx.GraphProto(node=[node])),
        "function": onnx.ModelProto(functions=[function]),
        "sparse": onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse])),
        "training": onnx.ModelProto(training_info=[onnx.TrainingInfoProto(initialization=graph)]),
        "algorithm": onnx.ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=graph)]),
    }
    for model in models.values():
        assert "other files" in refused_graph(tmp_path, model.SerializeToString())
    assert "other files" in refused_graph(tmp_path, field(7, field(5, tensor)))


def test_keys_that_other_parsers_cut_to_32_bits(tmp_path):
    """ONNX Runtime reads such a field as the one below 2^32; ours would have skipped it."""
    tensor = external().SerializeToString()
    assert "key" in refused_graph(tmp_path, field(7, field(5, tensor, beyond=2**32)))
    assert "key" in refused_graph(tmp_path, field(7, field(5, tensor), beyond=2**32))


def test_a_graph_that_holds_an_engine(tmp_path):
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="a.bin")
    model = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
    assert "an engine" in refused_graph(tmp_path, model.SerializeToString())


def test_a_graph_of_millions_of_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_FIELDS", 1000)  # reading a million takes a second
    assert "more than 1000 fields" in refused_graph(tmp_path, b"\x08\x00" * 1_002)


def test_a_graph_whose_names_are_no_utf8(bundle_copy):
    data = onnx_bytes(graphs(Reference())["text_encoder"])
    (bundle_copy / "text_encoder.onnx").write_bytes(data.replace(b"tokens", b"\xffokens"))
    reseal(bundle_copy)
    with pytest.raises(dra.DraError):
        dra.Encoder.open(bundle_copy).encode_texts("a")


def test_a_graph_that_gives_other_shapes_than_it_says(bundle_copy):
    """The shape of what Reshape gives isn't known before it runs."""
    nodes, inputs, outputs, constants = graphs(Reference())["text_encoder"]
    nodes[-1].output[0] = "sums"
    nodes += [
        helper.make_node("Shape", ["tokens"], ["size"]),
        helper.make_node("Sub", ["size", "size"], ["none"]),
        helper.make_node("Add", ["none", "wanted"], ["target"]),
        helper.make_node("Expand", ["fill", "target"], ["text_features"]),
    ]
    constants += [
        numpy_helper.from_array(np.array([3, 8]), "wanted"),
        numpy_helper.from_array(np.zeros((1, 1), np.float32), "fill"),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (bundle_copy / "text_encoder.onnx").write_bytes(model.SerializeToString())
    reseal(bundle_copy)
    encoder = dra.Encoder.open(bundle_copy)
    with pytest.raises(dra.BackendError, match=r"shape \(3, 8\) where the manifest says \(1, 8\)"):
        encoder.encode_texts("a")


# -- texts


def test_a_text_that_is_cleaned_a_layer_at_a_time(bundle_path):
    """Ten thousand of these take ftfy 20 seconds: it finds one more to repair in each pass."""
    encoder = dra.Encoder.open(bundle_path)
    for text in ("\xc2" * 9_990 + "\xa0 ", "\xc2" * 2_000 + "\u0153 ", "a" * 9_000 + "\xc2" * 200, "&#194;" * 1_600):
        with pytest.raises(dra.TextError, match="beyond ASCII"):
            encoder.tokenize([text])
    usual = (
        "a" * 10_000,
        "robe \xe0 fleurs tr\xe8s l\xe9g\xe8re, \xe9t\xe9 " * 60,
        "\u7ea2\u8272\u7684\u88d9\u5b50" * 190,
    )
    assert all(len(row) == 77 for row in encoder.tokenize(usual))


# -- what is printed


def test_a_gallery_whose_bundle_id_is_none(bundle_path, tmp_path):
    encoder = dra.Encoder.open(bundle_path)
    dra.Gallery.from_features(encoder, ["a"], np.ones((1, 8))).save(tmp_path / "g")
    data = (tmp_path / "g").read_bytes()
    (tmp_path / "g").write_bytes(data.replace(encoder.bundle_id.encode(), b"\\u001b[2J" + b"x" * 55))
    with pytest.raises(dra.GalleryFormatError, match="64 hexadecimal digits") as caught:
        dra.Gallery.open(tmp_path / "g", encoder)
    assert str(caught.value).isprintable()


def test_no_error_steers_the_terminal(capsys):
    with pytest.raises(SystemExit):
        console._fail("a file says \x1b[2J\x9b2J\u202e and\nmore")
    assert capsys.readouterr().err == "error: a file says \ufffd[2J\ufffd2J\ufffd and more\n"


# -- engines


def engines(folder, library="tensorrt", version_compatible=True):
    """Write an engine of each graph, as a hostile bundle would bring them; return the host that they fit."""
    folder.mkdir(parents=True)
    bundle = dra.Bundle.open(folder.parents[1])
    for graph in bundle.manifest.graphs:
        values = sidecar_values()
        values |= {"graph": graph, "bundle_id": bundle.manifest.bundle_id, "library": library}
        values["plan"]["file"] = f"{graph}.plan"
        values["target"] |= {"version_compatible": version_compatible, "compute_capabilities": ["8.9"], "gpu": None}
        (folder / f"{graph}.plan.json").write_text(json.dumps(values))
        (folder / f"{graph}.plan").write_bytes(bytes(256))
    return Host("linux-x86_64", Gpu("NVIDIA L4", "8.9"), {library: values["library_version"]})


@pytest.mark.parametrize("version_compatible", [True, False])
def test_auto_opens_no_engine_that_brings_code(bundle_copy, monkeypatch, version_compatible):
    host = engines(bundle_copy / "engines" / "key", version_compatible=version_compatible)
    opened = []

    def open_session(backend, *_):
        opened.append(backend)
        raise dra.BackendError("not here")

    monkeypatch.setattr(sessions, "open_session", open_session)
    bundle = dra.Bundle.open(bundle_copy)
    assert sessions.choose_backend("auto", bundle, 1, host=host)[0] == "onnxruntime-cpu"
    assert ("tensorrt" in opened) is not version_compatible
    with pytest.raises(dra.BackendError, match="not here"):  # who names it has it opened
        sessions.choose_backend("tensorrt", bundle, 1, host=host)


@pytest.mark.parametrize("linked", ["engines", "engines/key"])
def test_folders_of_engines_that_are_links(bundle_copy, tmp_path, linked):
    host = engines(bundle_copy / "engines" / "key")
    bundle = dra.Bundle.open(bundle_copy)
    assert len(engines_in(bundle, "tensorrt", host)) == 5
    (bundle_copy / linked).rename(tmp_path / "elsewhere")
    (bundle_copy / linked).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(dra.BackendError, match="holds no engines"):
        engines_in(bundle, "tensorrt", host)


# -- images: each costs hours or gigabytes where it isn't refused


def jpeg():
    return good_images()["JPEG plain"]


def segments(kind, data, count):
    head, rest = jpeg()[:2], jpeg()[2:]
    return head + (b"\xff" + bytes([kind]) + struct.pack(">H", 2 + len(data)) + data) * count + rest


def webp(size):
    edge = (size - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + edge + edge + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def with_scans(count):
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


STRIPS = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: (300_000, 122), 277: 1, 278: 1, 279: 1}
TILES = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32768, 323: 16384, 324: 134, 325: 99}
SHARED = {256: 64, 257: 64, **{50_000 + n: (7, 2**23, 8) for n in range(12)}}
UNPACKS = b"a\0\0" + zlib.compress(bytes(2**21))
SCREEN = b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\10\0\10\0\0\2\0"
COSTLY_IMAGES = {
    "JPEG: segments that are copied for each other": (lambda: segments(0xE1, b"Exif\0\0" + bytes(8), 120), "of EXIF"),
    "JPEG: segments without end": (lambda: segments(0xE5, b"", 6000), "pieces"),
    "JPEG: long header": (lambda: segments(0xE2, bytes(65_000), 600), "longer header"),
    "JPEG: scans that change nothing": (lambda: with_scans(800), "scans over 4000000 pixels"),
    "PNG: chunks without end": (lambda: png(8, 8, before=chunk(b"teSt", b"") * 6000), "pieces"),
    "PNG: chunks behind the pixels": (lambda: png(8, 8, after=chunk(b"teSt", b"") * 60_000), "pieces"),
    "PNG: a text that unpacks": (lambda: png(8, 8, chunk(b"zTXt", UNPACKS)), "too large"),
    "PNG: a profile that unpacks": (
        lambda: png(8, 8, chunk(b"iCCP", UNPACKS)),
        "too large",
    ),
    "PNG: declared size": (lambda: png(2**31 - 1, 2**31 - 1, data=b""), "more than the 100000000"),
    "GIF: blocks without end": (lambda: b"GIF89a\10\0\10\0\0\0\0\x21\xfe" + b"\1c" * 6000 + b"\0", "pieces"),
    "GIF: declared size": (lambda: SCREEN, "4294836225|65535 x 65535"),
    "WEBP: a canvas before its size": (lambda: webp(16_383), "16383 x 16383"),
    "BMP: runs decoded in Python": (lambda: bmp(9999, 9999, 1, b"\0\2\1\0\0\0" * 9999), "bmp_rle"),
    "PPM: texts decoded in Python": (lambda: b"P3 9 9 255\n" + b"#\n" * 100_000, "ppm_plain"),
    "PPM: pixels scaled in Python": (lambda: b"P6 2000 2000 65535\n" + bytes(2000 * 2000 * 6), "ppm slowly"),
    "PPM: a comment read byte by byte": (lambda: b"P6 #" + b"c" * 10_000 + b"\n3 3 255\n" + bytes(27), "pieces"),
    "TIFF: a strip for each byte": (lambda: tiff(STRIPS, bytes(1_200_000)), "300000 values"),
    "TIFF: a tile larger than the image": (lambda: tiff(TILES, zlib.compress(bytes(10**6))), "32768, 16384"),
    "TIFF: tags that share their bytes": (lambda: tiff(SHARED, bytes(2**23)), "ask for"),
}


@pytest.mark.parametrize("name", COSTLY_IMAGES)
def test_an_image_that_costs_far_more_than_its_pixels(name):
    data, words = COSTLY_IMAGES[name]
    with pytest.raises(dra.ImageError, match=words):
        open_image(data())


def test_usual_images_are_far_from_these_limits():
    for data in good_images().values():
        open_image(data)
    open_image(segments(0xE2, bytes(60_000), 200))  # depth maps and profiles of some megabytes
    open_image(segments(0xE1, b"Exif\0\0" + bytes(60_000), 1))
    open_image(with_scans(20))
    open_image(png(8, 8, after=chunk(b"tEXt", b"a\0b") * 1000))
    open_image(bmp(100, 100, 1, b"\x64\1\0\0" * 100))
    rows = {256: 1, 257: 20_000, 258: 8, 259: 1, 262: 1, 273: (20_000, 122), 277: 1, 278: 1, 279: (20_000, 80_122)}
    open_image(tiff(rows, struct.pack("<I", 8) * 20_000 + struct.pack("<I", 1) * 20_000))


def test_the_manifest_is_sealed_as_the_others_expect(bundle_copy):
    # what stands in these tests as a good bundle is one
    write_manifest(bundle_copy, {k: v for k, v in manifest(bundle_copy).items() if k != "bundle_id"})
    assert dra.Encoder.open(bundle_copy, check=True).dim == 8
