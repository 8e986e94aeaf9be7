"""Faults are planted in bundles on disk, and `dra-export verify` must call each of them by its name."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from dra_export.cli import main
from dra_export.graphs import graphs_of
from dra_export.half.convert import first_islands, half_from_float
from dra_export.onnx_from_model import write_onnx, write_query_onnx
from dra_export.parity.ranks import Answers, compare_ranks
from dra_export.parity.reference import reference_from_model
from dra_runtime.bundle import Bundle, bundle_id_of
from dra_train.checkpoint import load_checkpoint
from dra_train.data import Dataset, builtin_dataset, load_cirr

PARTS = ("image_encoder", "text_encoder", "compositor", "reranker")


def verify(bundles: Path | list[Path], checkpoint: Path, *more: str) -> Result:
    given = [str(path) for path in (bundles if isinstance(bundles, list) else [bundles])]
    arguments = ["verify", *given, "--checkpoint", str(checkpoint), *more]
    return CliRunner().invoke(main, arguments if "--dataset" in more else [*arguments, "--pairs", "6"])


def sign(bundle: Path, precision: str | None = None, **provenance: object) -> Path:
    """Write a manifest that fits the files, as a faulty exporter would."""
    values = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    for name in values["files"]:
        content = (bundle / name).read_bytes()
        values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    values["precision"] = precision or values["precision"]
    values["provenance"] |= provenance
    values["bundle_id"] = bundle_id_of(values)
    (bundle / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    return bundle


def change(bundle: Path, graph: str, edit: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    onnx.save(edit(onnx.load(bundle / f"{graph}.onnx")), bundle / f"{graph}.onnx")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def half_bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle in half precision, without a joined query graph (read only)."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("half") / "half")
    for name in PARTS:
        change(folder, name, lambda model: half_from_float(model, first_islands(model)))
    query = next(g for g in graphs_of(load_checkpoint(tiny_checkpoint).model) if g.name == "query")
    write_query_onnx({name: folder / f"{name}.onnx" for name in PARTS}, query, folder / "query.onnx")
    return sign(folder, "fp16")


@pytest.fixture(scope="module")
def questions(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 40 queries whose right answers are PyTorch's own first ones, so that its recall is 100 %."""
    whole = load_cirr(builtin_dataset(), "val")
    queries = tuple(replace(q, group=()) for q in whole.queries[:: len(whole.queries) // 40][:40])
    images = {n: whole.images[n] for q in queries for n in (q.reference, q.target)}
    reference = reference_from_model(
        load_checkpoint(tiny_checkpoint).model, Dataset("picked", "val", queries, images, format="jsonl")
    )
    worst = Answers(reference.image_features, -reference.composed)
    found = {c["id"]: c["was"] for c in compare_ranks(reference, worst)["changed"]}
    folder = tmp_path_factory.mktemp("questions")
    (folder / "images").mkdir()
    for path in images.values():
        shutil.copy(path, folder / "images")
    lines = [
        {"reference": images[q.reference].name, "text": q.text, "target": images[found[q.id]].name} for q in queries
    ]
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_several_bundles_are_compared_with_one_reference(
    bundle: Path, half_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, questions: Path
) -> None:
    half = shutil.copytree(half_bundle, tmp_path / "half")
    output = tmp_path / "verify.json"
    result = verify([bundle, half], tiny_checkpoint, "--dataset", str(questions), "-o", str(output))
    assert result.exit_code == 0, result.output
    single, halved = json.loads(output.read_text())
    assert (single["name"], single["precision"], single["variants"]) == ("bundle", "fp32", [])
    assert (halved["name"], halved["precision"]) == ("half", "fp16")
    assert halved["threshold"] == {"min_cosine": 0.999, "recall": "at most 0.1 points lower", "top10_overlap": 99.0}
    [emulated] = halved["variants"]
    assert emulated["name"] == "half emulated"
    cosines = [run["graphs"]["image_encoder"]["min_cosine"] for run in (single, halved, emulated)]
    assert cosines[0] > cosines[1] > cosines[2] > 0.999  # weights rounded; then all values as well
    assert "half, half emulated: passed" in result.output
    assert "rounds nothing but the weights" in result.output
    for folder, values in ((bundle, single), (half, halved)):
        parity = Bundle.open(folder).manifest.parity
        assert parity is not None
        assert "changed" not in parity["recall"]
        assert parity["graphs"] == values["graphs"]
        assert [v["name"] for v in parity["variants"]] == [v["name"] for v in values["variants"]]


def test_half_that_overflows_is_found_though_the_cpu_hides_it(
    half_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(half_bundle, tmp_path / "overflow")
    change(folder, "text_encoder", overflowing)
    result = verify(sign(folder), tiny_checkpoint, "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["missed"] == []  # what ONNX Runtime's CPU computes is fine
    [emulated] = found["variants"]
    assert "text_encoder: 6 of 6 vectors hold NaN or infinity" in emulated["missed"]
    assert not any(line.startswith(("image_encoder", "compositor", "reranker", "query")) for line in emulated["missed"])
    assert Bundle.open(folder).manifest.parity["passed"] is False  # plain JSON numbers, so the bundle still opens


def overflowing(model: onnx.ModelProto) -> onnx.ModelProto:
    """Scale a half value by 60,000 and back, which no float32 computation notices."""
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    place, node = next(
        (i, n) for i, n in enumerate(graph.node) if n.op_type == "MatMul" and types[n.output[0]] == TensorProto.FLOAT16
    )
    name, node.output[0] = node.output[0], f"{node.output[0]}/before"
    graph.initializer.append(numpy_helper.from_array(np.array(60_000, np.float16), "huge"))
    graph.node.insert(place + 1, helper.make_node("Mul", [node.output[0], "huge"], [f"{name}/huge"], "scale"))
    graph.node.insert(place + 2, helper.make_node("Div", [f"{name}/huge", "huge"], [name], "scale_back"))
    return model


def test_a_graph_without_its_causal_mask_is_found(bundle: Path, tiny_checkpoint: Path) -> None:
    model = load_checkpoint(tiny_checkpoint).model
    model.text.attn_mask.zero_()
    write_onnx(next(g for g in graphs_of(model) if g.name == "text_encoder"), bundle / "text_encoder.onnx")
    result = verify(sign(bundle), tiny_checkpoint)
    assert result.exit_code == 1, result.output
    assert "  text_encoder: smallest cosine " in result.output
    assert "  image_encoder: " not in result.output
    assert "  query: " not in result.output  # it holds its own text tower


def test_a_batch_size_that_is_fixed_inside_is_found(bundle: Path, tiny_checkpoint: Path) -> None:
    def fix(model: onnx.ModelProto) -> onnx.ModelProto:
        output = model.graph.output[0]
        last = next(node for node in model.graph.node if output.name in node.output)
        last.output[list(last.output).index(output.name)] = "unfixed"
        shape = numpy_helper.from_array(np.array([1, output.type.tensor_type.shape.dim[1].dim_value]), "fixed_shape")
        model.graph.initializer.append(shape)
        model.graph.node.extend(
            [
                helper.make_node("Shape", ["image_features"], ["shape"], "shape"),
                helper.make_node("Reshape", ["unfixed", "fixed_shape"], ["fixed"], "fix"),
                helper.make_node("Reshape", ["fixed", "shape"], [output.name], "hide"),
            ]
        )
        return model

    change(bundle, "compositor", fix)
    result = verify(sign(bundle), tiny_checkpoint)
    assert result.exit_code == 1, result.output
    assert "  compositor: compositor.onnx failed on {'image_features': (2, 32)" in result.output
    assert "  encode_queries: compositor.onnx failed" in result.output
    assert "  text_encoder: " not in result.output


def coarse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave every large weight three values, as a bad calibration would."""
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32 and value.ndim >= 2:
            step = np.abs(value).max()
            tensor.CopyFrom(numpy_helper.from_array((np.round(value / step) * step).astype(np.float32), tensor.name))
    return model


def test_int8_that_loses_recall_is_found_by_its_own_limit(bundle: Path, tiny_checkpoint: Path, questions: Path) -> None:
    change(bundle, "compositor", coarse)
    sign(bundle, "int8", int8={"max_recall_loss": 0.25})
    result = verify(bundle, tiny_checkpoint, "--dataset", str(questions), "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["recall"]["reference"]["R@1"] == 100.0
    assert found["recall"]["candidate"]["R@1"] < 90
    assert found["recall"]["ranks"]["worse"] == found["recall"]["changed_queries"] > 4
    assert any(line.startswith("R@1: ") and line.endswith("more than 0.25 points lower") for line in found["missed"])
    assert not any("cosine" in line for line in found["missed"])  # shown, not judged

    sign(bundle, "int8", int8={"max_recall_loss": 100})
    assert verify(bundle, tiny_checkpoint, "--dataset", str(questions)).exit_code == 0


def test_int8_without_recall_says_that_nothing_was_judged(bundle: Path, tiny_checkpoint: Path) -> None:
    result = verify(sign(bundle, "int8"), tiny_checkpoint)
    assert result.exit_code == 0, result.output
    assert "bundle: NOT JUDGED" in result.output
    assert "judged by recall, which --pairs leaves out" in result.output


def test_a_float32_bundle_must_keep_every_recall(bundle: Path, tiny_checkpoint: Path, questions: Path) -> None:
    change(bundle, "compositor", coarse)
    result = verify(sign(bundle), tiny_checkpoint, "--dataset", str(questions))
    assert result.exit_code == 1, result.output
    assert "  R@1: " in result.output
    assert "where PyTorch has 100.00 %" in result.output
    assert "bundle: first answers that changed (5 of " in result.output
