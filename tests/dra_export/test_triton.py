"""Model repositories: what is written, what is refused, and what the model file answers. The server is tested apart."""

import ast
import hashlib
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from pbtxt import only, parse
from plan_stand_ins import write_engines

import dra_runtime as dra
from dra_export.cli import main
from dra_export.triton import models as triton_models
from dra_export.triton.repository import RepositoryOptions, write_repository
from dra_runtime.engine_file import BuildOptions

PARTS = ("image_encoder", "text_encoder", "compositor", "reranker")
TYPES = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT32: "TYPE_INT32"}


@pytest.fixture(scope="module")
def repository(tiny_bundle, tmp_path_factory):
    """A repository for Python's backend (read only)."""
    out = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(tiny_bundle, out, RepositoryOptions(instances=2, max_batch=4))
    return out


@pytest.fixture(scope="module")
def model_file():
    """The file model.py, loaded as the server loads it, with a stand-in for what only the server has."""
    server = types.ModuleType("triton_python_backend_utils")
    sys.modules[server.__name__] = server
    from dra_export.triton.models import model

    yield model
    del sys.modules[server.__name__], sys.modules[model.__name__]


def config(repository, model):
    return parse((repository / model / "config.pbtxt").read_text())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(capsys, *words):
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return (exit_info.value.code, *capsys.readouterr())


def assert_one_line(code, out, err, *words):
    assert code == 2
    assert not out
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


# What is written


def test_every_part_takes_and_gives_what_its_graph_does(repository, tiny_bundle):
    for part in PARTS:
        graph = onnx.load(tiny_bundle / f"{part}.onnx").graph
        found = config(repository, part)
        assert only(found["name"]) == part
        for kind, values in (("input", graph.input), ("output", graph.output)):
            expected = [
                {
                    "name": [v.name],
                    "data_type": [TYPES[v.type.tensor_type.elem_type]],
                    "dims": [d.dim_value or -1 for d in v.type.tensor_type.shape.dim[1:]],
                }
                for v in values
            ]
            assert found[kind] == expected


def test_the_composed_query_takes_bytes_and_text(repository, tiny_bundle):
    found = config(repository, "composed_query")
    assert found["input"] == [{"name": [name], "data_type": ["TYPE_STRING"], "dims": [1]} for name in ("image", "text")]
    dim = json.loads((tiny_bundle / "manifest.json").read_text())["embedding"]["dim"]
    assert found["output"] == [{"name": ["query"], "data_type": ["TYPE_FP32"], "dims": [dim]}]


def test_every_model_is_batched_and_has_its_instances(repository):
    assert sorted(path.name for path in repository.iterdir()) == sorted(["composed_query", *PARTS])
    for model in ("composed_query", *PARTS):
        found = config(repository, model)
        assert only(found["max_batch_size"]) == 4
        assert only(found["dynamic_batching"]) == {}
        assert only(found["instance_group"]) == {"count": [2], "kind": ["KIND_CPU"]}
        assert only(found["parameters"]) == {"key": ["model"], "value": [{"string_value": [model]}]}


def test_every_model_has_the_files_that_it_needs(repository, tiny_bundle):
    template = Path(triton_models.__file__).with_name("model.py").read_text()
    for model in ("composed_query", *PARTS):
        version = repository / model / "1"
        assert (version / "model.py").read_text() == template
        assert sha256(version / "manifest.json") == sha256(tiny_bundle / "manifest.json")
    assert sha256(repository / "composed_query/1/merges.txt") == sha256(tiny_bundle / "merges.txt")
    for part in PARTS:
        assert sha256(repository / part / "1/model.onnx") == sha256(tiny_bundle / f"{part}.onnx")


def test_parts_warm_up_with_the_selftest(repository, tiny_bundle):
    selftest = np.load(tiny_bundle / "selftest.npz")
    expected = {
        ("text_encoder", "full", "tokens"): selftest["tokens"][-1],
        ("compositor", "one", "image_features"): selftest["image_features"][0],
        ("compositor", "full", "text_features"): selftest["text_features"][-1],
    }
    for part in PARTS:
        inputs = {only(i["name"]): i for i in config(repository, part)["input"]}
        warmups = {only(w["name"]): w for w in config(repository, part)["model_warmup"]}
        assert {name: only(w["batch_size"]) for name, w in warmups.items()} == {"one": 1, "full": 4}
        for title, warmup in warmups.items():
            assert {only(i["key"]) for i in warmup["inputs"]} == set(inputs)
            for entry in warmup["inputs"]:
                name, value = only(entry["key"]), only(entry["value"])
                assert value["data_type"] == inputs[name]["data_type"]
                content = (repository / part / "warmup" / only(value["input_data_file"])).read_bytes()
                assert len(content) == 4 * np.prod(value["dims"])
                assert all(free in (-1, size) for free, size in zip(inputs[name]["dims"], value["dims"], strict=True))
                if (part, title, name) in expected:
                    vector = expected[part, title, name]
                    np.testing.assert_array_equal(np.frombuffer(content, vector.dtype)[: len(vector)], vector)
    assert "model_warmup" not in config(repository, "composed_query")


def test_a_bundle_with_uint8_images_is_served_with_them(tiny_uint8_bundle, model_file, emoji_images, tmp_path):
    write_repository(tiny_uint8_bundle, tmp_path / "r")
    assert only(config(tmp_path / "r", "image_encoder")["input"])["data_type"] == ["TYPE_UINT8"]
    warmup = config(tmp_path / "r", "image_encoder")["model_warmup"][0]["inputs"][0]["value"][0]
    assert warmup["data_type"] == ["TYPE_UINT8"]
    content = (tmp_path / "r/image_encoder/warmup" / only(warmup["input_data_file"])).read_bytes()
    assert len(content) == np.prod(warmup["dims"])
    image = emoji_images[0].read_bytes()
    (answer,) = composed(model_file, tmp_path / "r")([{"image": strings(image), "text": strings(b"in red")}])
    expected = dra.Encoder.open(tiny_uint8_bundle, threads=1).encode_queries(image, "in red")
    np.testing.assert_allclose(answer["query"], expected, atol=1e-6)


def test_onnxruntime_runs_the_parts_on_the_gpu(tiny_bundle, tmp_path):
    served = write_repository(tiny_bundle, tmp_path / "r", RepositoryOptions("onnxruntime"))
    assert [(model.name, model.backend) for model in served] == [
        ("composed_query", "python"),
        *((part, "onnxruntime") for part in PARTS),
    ]
    for part in PARTS:
        found = config(tmp_path / "r", part)
        assert only(found["backend"]) == "onnxruntime"
        assert only(found["instance_group"]) == {"count": [1], "kind": ["KIND_GPU"]}
        assert only(found["max_batch_size"]) == 16
        assert "parameters" not in found
        assert not (tmp_path / "r" / part / "1/model.py").exists()
        assert sha256(tmp_path / "r" / part / "1/model.onnx") == sha256(tiny_bundle / f"{part}.onnx")
    assert only(config(tmp_path / "r", "composed_query")["instance_group"])["kind"] == ["KIND_CPU"]


# Engines


@pytest.fixture
def with_engines(tiny_bundle, tmp_path):
    """A bundle with engines that a test may damage."""
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    write_engines(bundle)
    return bundle


def test_tensorrt_gets_the_plans_and_all_their_profiles(with_engines, tmp_path):
    write_repository(with_engines, tmp_path / "r", RepositoryOptions("tensorrt", instances=3))
    for part in PARTS:
        found = config(tmp_path / "r", part)
        assert only(found["backend"]) == "tensorrt"
        assert only(found["instance_group"]) == {"count": [3], "kind": ["KIND_GPU"], "profile": ["0", "1"]}
        assert only(found["max_batch_size"]) == 12  # what the engines take, though 16 is the default
        assert (tmp_path / "r" / part / "1/model.plan").read_bytes() == f"the plan of {part}".encode()
        assert not (tmp_path / "r" / part / "1/model.onnx").exists()
    assert only(config(tmp_path / "r", "composed_query")["max_batch_size"]) == 12


def test_engines_that_triton_can_not_serve_are_one_line(capsys, tiny_bundle, with_engines, tmp_path):
    out = tmp_path / "r"

    def refused(bundle, *words):
        words, found = words[:-1], words[-1]
        result = run(capsys, "triton", bundle, "-o", out, "--backend", "tensorrt", *words)
        assert_one_line(*result, *found)
        assert not out.exists()
        assert not list(tmp_path.glob(".r*"))

    refused(tiny_bundle, ("holds no engines", "dra-export engine", "--backend tensorrt"))
    refused(with_engines, "--max-batch", 13, ("max_batch is 13", "at most 12", "--max 13"))
    refused(with_engines, "--engines", "other", ("no 'other'", "some-gpu"))
    plan = with_engines / "engines/some-gpu/text_encoder.plan"
    content = plan.read_bytes()
    plan.write_bytes(content[::-1])
    refused(with_engines, ("text_encoder.plan", "SHA-256", "dra-export engine"))
    plan.unlink()
    refused(with_engines, ("no text_encoder.plan", "--graph text_encoder"))
    write_engines(with_engines, "second")
    refused(with_engines, ("several targets", "--engines", "second, some-gpu"))
    for change, words in (
        ({"library": "tensorrt-rtx"}, ("tensorrt-rtx", "TensorRT backend opens tensorrt's plans alone")),
        ({"bundle_id": "0" * 64}, ("built from bundle 000000000000",)),
        ({"build": BuildOptions(2, 8, 12)}, ("takes batches from 2", "--min 1")),
    ):
        shutil.rmtree(with_engines / "engines")
        write_engines(with_engines, **change)
        refused(with_engines, words)


# What is refused


def test_a_target_that_exists_is_kept(capsys, tiny_bundle, repository, tmp_path):
    out = shutil.copytree(repository, tmp_path / "r")
    (out / "note").write_text("mine")
    assert_one_line(*run(capsys, "triton", tiny_bundle, "-o", out), "exists", "--overwrite")
    assert (out / "note").exists()
    assert_one_line(*run(capsys, "triton", tiny_bundle, "-o", tmp_path, "--overwrite"), "no model repository")
    code, printed, _ = run(capsys, "triton", tiny_bundle, "-o", out, "--overwrite")
    assert code == 0
    assert "composed_query" in printed
    assert not (out / "note").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_wrong_use_is_one_line(capsys, tiny_bundle, tmp_path):
    out = ("-o", tmp_path / "r")
    assert_one_line(*run(capsys, "triton", tmp_path / "none", *out), "no such folder")
    assert_one_line(*run(capsys, "triton", tiny_bundle, *out, "--backend", "openvino"), "openvino", "--backend")
    assert_one_line(*run(capsys, "triton", tiny_bundle, *out, "--engines", "x"), "--engines")
    assert_one_line(*run(capsys, "triton", tiny_bundle, *out, "--max-batch", 0), "--max-batch")
    assert_one_line(*run(capsys, "triton", tiny_bundle, "-o", tiny_bundle / "manifest.json" / "r"), "can't be written")
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_fails_its_selftest_gets_no_repository(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(dra.Encoder, "compose", lambda self, image_features, text_features: -image_features)
    with pytest.raises(dra.SelfCheckError):
        write_repository(tiny_bundle, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_what_is_half_written_goes_when_it_is_interrupted(tiny_bundle, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dra_export.triton.repository._write_warmups", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_repository(tiny_bundle, tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


# What the model file answers


def strings(*values):
    return np.array(values, object)[:, None]


@pytest.fixture(scope="module")
def answers(repository, model_file):
    return composed(model_file, repository)


def composed(model_file, repository):
    """Return the composed query over its parts, as the server joins them."""
    parts = {name: model_file.part(name, repository / name / "1", 1) for name in PARTS}

    def ask(model, inputs, output):
        (answer,) = parts[model]([inputs])
        return answer[output]

    return model_file.composed_query(repository / "composed_query" / "1", 2, ask)


TEXTS = ("in red", "the same, but as a chef & with a “big” smile and a longer description of the hat", "blue")


def test_queries_are_the_encoders(answers, tiny_bundle, emoji_images):
    images = [path.read_bytes() for path in emoji_images[:3]]
    expected = dra.Encoder.open(tiny_bundle, threads=1).encode_queries(images, TEXTS)
    texts = [text.encode() for text in TEXTS]
    together = answers([{"image": strings(*images), "text": strings(*texts)}])
    np.testing.assert_allclose(together[0]["query"], expected, atol=1e-6)
    apart = answers([{"image": strings(i), "text": strings(t)} for i, t in zip(images, texts, strict=True)])
    np.testing.assert_allclose(np.concatenate([answer["query"] for answer in apart]), expected, atol=1e-6)
    uneven = answers(
        [
            {"image": strings(*images[:2]), "text": strings(*texts[:2])},
            {"image": strings(images[2]), "text": strings(texts[2])},
        ]
    )
    assert [len(answer["query"]) for answer in uneven] == [2, 1]
    np.testing.assert_allclose(np.concatenate([answer["query"] for answer in uneven]), expected, atol=1e-6)


def test_a_broken_input_is_its_requests_error_alone(answers, tiny_bundle, emoji_images):
    image = emoji_images[0].read_bytes()
    expected = dra.Encoder.open(tiny_bundle, threads=1).encode_queries([image], ["in red"])
    good = {"image": strings(image), "text": strings(b"in red")}
    found = answers(
        [
            {"image": strings(b"no image"), "text": strings(b"in red")},
            good,
            {"image": strings(image), "text": strings(b"  ")},
            {"image": strings(image), "text": strings(b"\xff")},
            {"image": strings(str(emoji_images[0]).encode()), "text": strings(b"in red")},  # a path never opens a file
            good,
        ]
    )
    kinds = [type(answer) for answer in found]
    assert kinds == [dra.ImageError, dict, dra.TextError, dra.TextError, dra.ImageError, dict]
    for answer in (found[1], found[5]):
        np.testing.assert_allclose(answer["query"], expected, atol=1e-6)
    assert [type(answer) for answer in answers([{"image": strings(b""), "text": strings(b"x")}])] == [dra.ImageError]


def test_a_failing_part_is_the_error_of_all_that_were_together(repository, model_file, emoji_images):
    def ask(model, inputs, output):
        raise dra.BackendError(f"{model} failed")

    answer = model_file.composed_query(repository / "composed_query" / "1", 1, ask)
    image = emoji_images[0].read_bytes()
    good = {"image": strings(image), "text": strings(b"in red")}
    kinds = [type(a) for a in answer([good, {"image": strings(b"x"), "text": strings(b"y")}, good])]
    assert kinds == [dra.BackendError, dra.ImageError, dra.BackendError]


def test_parts_are_asked_for_texts_in_steps_of_eight(repository, model_file, emoji_images):
    lengths = []

    def ask(model, inputs, output):
        if model == "text_encoder":
            lengths.append(inputs["tokens"].shape[1])
            assert inputs["tokens"].dtype == np.int32
        return np.zeros((len(next(iter(inputs.values()))), 32), np.float32)

    answer = model_file.composed_query(repository / "composed_query" / "1", 1, ask)
    for words in (1, 6, 7, 200):
        answer([{"image": strings(emoji_images[0].read_bytes()), "text": strings(b"red " * words)}])
    assert lengths == [8, 8, 16, 77]


def test_a_swapped_file_is_refused(repository, model_file, tmp_path):
    folder = shutil.copytree(repository / "compositor" / "1", tmp_path / "compositor")
    shutil.copy(repository / "text_encoder" / "1" / "model.onnx", folder / "model.onnx")
    with pytest.raises(dra.BundleIntegrityError, match=r"compositor\.onnx.*dra-export triton"):
        model_file.part("compositor", folder, 1)
    folder = shutil.copytree(repository / "composed_query" / "1", tmp_path / "composed_query")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocess"]["mean"][0] += 0.1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(dra.BundleFormatError, match="was changed"):
        model_file.composed_query(folder, 1, None)


def test_the_model_file_needs_the_runtime_alone():
    tree = ast.parse(Path(triton_models.__file__).with_name("model.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert ours == {"numpy", "dra_runtime", "triton_python_backend_utils"}
