"""One table of good and bad manifests for the parser and for docs/bundle.schema.json."""

import copy
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_runtime.errors import BundleFormatError
from dra_runtime.manifest import (
    bundle_id_of,
    manifest_from_dict,
    manifest_to_dict,
    manifest_values_from_json,
    schema_version_of,
)

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "bundle.schema.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
DELETE = object()


@pytest.fixture(scope="module")
def good(bundle_path):
    return json.loads((bundle_path / "manifest.json").read_text(encoding="utf-8"))


def changed(values, path, value):
    """Copy ``values`` with one place changed; ``path`` is keys and indices, a tuple or separated by slashes."""
    values = copy.deepcopy(values)
    steps = path.split("/") if isinstance(path, str) else path
    *parents, last = [int(step) if step.isdigit() else step for step in steps]
    place = values
    for step in parents:
        place = place[step]
    if value is DELETE:
        del place[last]
    else:
        place[last] = value
    return values


HASH = "a" * 64
ACCEPTED = {
    "minor version": ("schema_version", "1.7"),
    "fp16": ("precision", "fp16"),
    "int8": ("precision", "int8"),
    "further file": ("files/README.md", {"sha256": HASH, "size": 5}),
    "empty file": ("files/README.md", {"sha256": HASH, "size": 0}),
    "free provenance": ("provenance", {"a": [1, 2.5, None, {"b": True}], "c": "ü"}),
    "empty provenance": ("provenance", {}),
    "parity": ("parity", {"min_cosine": 0.99999}),
    "no reranker": ("graphs/reranker", DELETE),
    "no query graph": ("graphs/query", DELETE),
    "pad ratio as a whole number": ("preprocess/pad_ratio", 2),
    "other mean": ("preprocess/mean", [0.5, 0, -0.5]),
    "short context": ("tokenizer/context_length", 2),
}

# (path, value) that both refuse
REFUSED = {
    "unknown key": ("extra", 1),
    "unknown key in a file": ("files/merges.txt/md5", "x"),
    "unknown key in a graph": ("graphs/compositor/opset", 18),
    "unknown key in a tensor": ("graphs/compositor/inputs/0/doc", ""),
    "unknown key in preprocess": ("preprocess/crop", "centre"),
    "unknown key in tokenizer": ("tokenizer/unk", 0),
    "unknown key in embedding": ("embedding/unit", True),
    "unknown graph": ("graphs/decoder", {"file": "query.onnx", "inputs": [], "outputs": []}),
    "major version": ("schema_version", "2.0"),
    "major version 0": ("schema_version", "0.9"),
    "version without minor": ("schema_version", "1"),
    "version with a space": ("schema_version", "1.0 "),
    "version as a number": ("schema_version", 1.0),
    "bundle id too short": ("bundle_id", "abc"),
    "bundle id in capitals": ("bundle_id", "A" * 64),
    "precision": ("precision", "fp64"),
    "precision null": ("precision", None),
    "file with a path": ("files/a\\b.onnx", {"sha256": HASH, "size": 1}),
    "file dots": ("files/..", {"sha256": HASH, "size": 1}),
    "file hidden": ("files/.hidden", {"sha256": HASH, "size": 1}),
    "file empty name": ("files/", {"sha256": HASH, "size": 1}),
    "file non-ascii": ("files/ü.txt", {"sha256": HASH, "size": 1}),
    "file in a folder": (("files", "a/b.onnx"), {"sha256": HASH, "size": 1}),
    "file above": (("files", "../b.onnx"), {"sha256": HASH, "size": 1}),
    "file absolute": (("files", "/etc/passwd"), {"sha256": HASH, "size": 1}),
    "file long name": ("files/" + "a" * 129, {"sha256": HASH, "size": 1}),
    "file is the manifest": ("files/manifest.json", {"sha256": HASH, "size": 1}),
    "file drive": ("files/C:x", {"sha256": HASH, "size": 1}),
    "file without size": ("files/merges.txt/size", DELETE),
    "file without hash": ("files/merges.txt/sha256", DELETE),
    "file negative size": ("files/merges.txt/size", -1),
    "file size text": ("files/merges.txt/size", "12"),
    "file size true": ("files/merges.txt/size", True),
    "file hash": ("files/merges.txt/sha256", "z" * 64),
    "file as text": ("files/merges.txt", "abc"),
    "files as list": ("files", []),
    "no selftest": ("files/selftest.npz", DELETE),
    "graph leads outside": ("graphs/compositor/file", "../x.onnx"),
    "graph absolute": ("graphs/compositor/file", "/etc/x.onnx"),
    "graph other format": ("graphs/compositor/file", "merges.txt"),
    "no text encoder": ("graphs/text_encoder", DELETE),
    "graphs null": ("graphs", None),
    "graph null": ("graphs/query", None),
    "inputs missing": ("graphs/compositor/inputs", DELETE),
    "inputs empty": ("graphs/compositor/inputs", []),
    "input too many": ("graphs/text_encoder/inputs/1", "?"),
    "input name": ("graphs/text_encoder/inputs/0/name", "input_ids"),
    "input type": ("graphs/text_encoder/inputs/0/dtype", "int64"),
    "input half": ("graphs/image_encoder/inputs/0/dtype", "float16"),
    "input rank": ("graphs/text_encoder/inputs/0/shape", ["batch"]),
    "fixed batch": ("graphs/text_encoder/inputs/0/shape", [1, "length"]),
    "fixed length": ("graphs/text_encoder/inputs/0/shape", ["batch", 77]),
    "free channels": ("graphs/image_encoder/inputs/0/shape", ["batch", "c", 16, 16]),
    "four channels": ("graphs/image_encoder/inputs/0/shape", ["batch", 4, 16, 16]),
    "zero size": ("graphs/image_encoder/inputs/0/shape", ["batch", 3, 0, 16]),
    "free width": ("graphs/text_encoder/outputs/0/shape", ["batch", "dim"]),
    "symbol": ("graphs/text_encoder/inputs/0/shape", ["batch", "a b"]),
    "symbol empty": ("graphs/text_encoder/inputs/0/shape", ["", "length"]),
    "outputs missing": ("graphs/image_encoder/outputs", []),
    "image size": ("preprocess/image_size", 0),
    "image size true": ("preprocess/image_size", True),
    "pad ratio": ("preprocess/pad_ratio", 0.9),
    "pad ratio text": ("preprocess/pad_ratio", "1.25"),
    "interpolation": ("preprocess/interpolation", "bilinear"),
    "two means": ("preprocess/mean", [0.1, 0.2]),
    "mean true": ("preprocess/mean", [True, 0.1, 0.1]),
    "mean as number": ("preprocess/mean", 0.5),
    "std zero": ("preprocess/std", [0.1, 0, 0.1]),
    "no std": ("preprocess/std", DELETE),
    "tokenizer type": ("tokenizer/type", "wordpiece"),
    "merges outside": ("tokenizer/merges", "../merges.txt"),
    "context": ("tokenizer/context_length", 1),
    "vocabulary": ("tokenizer/vocab_size", 5),
    "start token": ("tokenizer/start_token", -1),
    "dim": ("embedding/dim", 0),
    "embedding as number": ("embedding", 8),
    "provenance null": ("provenance", None),
    "provenance list": ("provenance", []),
    "parity text": ("parity", "good"),
    **{
        f"no {key}": (key, DELETE)
        for key in (
            *("schema_version", "bundle_id", "precision", "files", "graphs", "preprocess", "tokenizer"),
            *("embedding", "provenance", "parity"),
        )
    },
}

# What compares two places, or tells 16 from 16.0: beyond JSON Schema
REFUSED_BY_THE_PARSER_ALONE = {
    "graph's file not in files": ("graphs/compositor/file", "other.onnx"),
    "merges not in files": ("tokenizer/merges", "other.txt"),
    "image size differs": ("preprocess/image_size", 32),
    "width differs": ("embedding/dim", 9),
    "tokens differ": ("graphs/reranker/inputs/1/shape", ["batch", 6, 8]),
    "output width differs": ("graphs/query/outputs/0/shape", ["batch", 9]),
    "batch named twice": ("graphs/query/inputs/1/shape", ["other", "length"]),
    "length is batch": ("graphs/query/inputs/1/shape", ["batch", "batch"]),
    "start token beyond": ("tokenizer/start_token", 49408),
    "whole number as a float": ("preprocess/image_size", 16.0),
    # Python's `$` matches before a last new line, JSON Schema's doesn't
    "file new line": ("files/a\n", {"sha256": HASH, "size": 1}),
    "not finite": ("preprocess/pad_ratio", float("inf")),
    "provenance not finite": ("provenance", {"a": [float("nan")]}),
    "image tokens missing": ("graphs/image_encoder/outputs/1", DELETE),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(good, case):
    values = changed(good, *ACCEPTED[case])
    VALIDATOR.validate(values)
    assert manifest_to_dict(manifest_from_dict(values)) == values


@pytest.mark.parametrize("case", REFUSED)
def test_refused(good, case):
    values = changed(good, *REFUSED[case]) if case != "input too many" else _with_another_input(good)
    with pytest.raises(BundleFormatError) as caught:
        manifest_from_dict(values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not VALIDATOR.is_valid(values)


@pytest.mark.parametrize("case", REFUSED_BY_THE_PARSER_ALONE)
def test_refused_by_the_parser_alone(good, case):
    with pytest.raises(BundleFormatError):
        manifest_from_dict(changed(good, *REFUSED_BY_THE_PARSER_ALONE[case]))


def taking_uint8(good, version="1.1"):
    values = changed(good, "schema_version", version)
    for name in ("image_encoder", "query"):
        values["graphs"][name]["inputs"][0]["dtype"] = "uint8"
    return values


def test_uint8_pixels_need_version_1_1(good):
    for version in ("1.1", "1.2"):
        values = taking_uint8(good, version)
        VALIDATOR.validate(values)
        manifest = manifest_from_dict(values)
        assert manifest_to_dict(manifest) == values
        assert schema_version_of(manifest.graphs) == "1.1"
    values = taking_uint8(good, "1.0")
    assert not VALIDATOR.is_valid(values)
    with pytest.raises(BundleFormatError, match=r"image_encoder.inputs.0..dtype has 'uint8'; expected 'float32'"):
        manifest_from_dict(values)
    assert schema_version_of(manifest_from_dict(good).graphs) == "1.0"


def test_both_graphs_take_the_same_pixels(good):
    values = changed(taking_uint8(good), "graphs/query/inputs/0/dtype", "float32")
    with pytest.raises(BundleFormatError, match="expected 'uint8'"):
        manifest_from_dict(values)


@pytest.mark.parametrize("place", ["graphs/text_encoder/inputs/0/dtype", "graphs/compositor/inputs/0/dtype"])
def test_nothing_but_the_image_is_uint8(good, place):
    values = changed(taking_uint8(good), place, "uint8")
    assert not VALIDATOR.is_valid(values)
    with pytest.raises(BundleFormatError):
        manifest_from_dict(values)


def _with_another_input(good):
    values = copy.deepcopy(good)
    values["graphs"]["text_encoder"]["inputs"] *= 2
    return values


@pytest.mark.parametrize("values", [None, [], "text", 3, {}, {1: 2}])
def test_no_object(values):
    with pytest.raises(BundleFormatError):
        manifest_from_dict(values)


def test_schema_is_a_schema(good):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(good)


def test_round_trip(good):
    manifest = manifest_from_dict(good)
    assert manifest_to_dict(manifest) == good
    assert list(manifest.graphs) == ["image_encoder", "text_encoder", "compositor", "reranker", "query"]
    assert manifest.graphs["text_encoder"].inputs[0].shape == ("batch", "length")
    assert manifest.preprocess.image_size == 16


def test_bundle_id_covers_all_but_itself_and_parity(good):
    manifest = manifest_from_dict(good)
    assert bundle_id_of(manifest) == bundle_id_of(good) == good["bundle_id"]
    assert bundle_id_of(changed(good, "parity", {"a": 1})) == good["bundle_id"]
    assert bundle_id_of(changed(good, "bundle_id", HASH)) == good["bundle_id"]
    for case in ("fp16", "further file", "free provenance", "no query graph", "other mean"):
        assert bundle_id_of(changed(good, *ACCEPTED[case])) != good["bundle_id"]


def test_bundle_id_is_the_documented_hash():
    import hashlib

    # as docs/bundle.md says it: sorted keys, no spaces, ASCII
    assert bundle_id_of({"b": {"d": 1, "c": "ü"}, "a": 1.5, "bundle_id": "x", "parity": None}) == (
        hashlib.sha256(b'{"a":1.5,"b":{"c":"\\u00fc","d":1}}').hexdigest()
    )


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"a": 1, "a": 2}',
        b'{"x": {"a": 1, "a": 1}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5_000 + b"}",
        b"{'a': 1}",
        b'{"a": 1} x',
    ],
    ids=range(12),
)
def test_no_json(text):
    with pytest.raises(BundleFormatError) as caught:
        manifest_values_from_json(text)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _places(values, path=()):
    yield path
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_refused_or_a_manifest(good, data):
    values = copy.deepcopy(good)
    *parents, last = data.draw(st.sampled_from([p for p in _places(good) if p]))
    place = values
    for step in parents:
        place = place[step]
    if data.draw(st.booleans()):
        place[last] = data.draw(JSON)
    else:
        del place[last]
    try:
        manifest = manifest_from_dict(values)
    except BundleFormatError:
        return
    # NaN apart, which is never equal, what was accepted comes back as it was; and the schema accepts it too
    assert manifest_to_dict(manifest) == values
    assert VALIDATOR.is_valid(values)
