"""`dra-export inspect`: what each artifact is said to be, and what is no artifact."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from dra_export.cli import main
from dra_export.half.convert import first_islands, half_from_float
from dra_export.inspect.artifact import describe
from dra_export.inspect.onnx_file import describe_onnx
from dra_runtime.encoder import Encoder
from dra_runtime.engine_file import BuildOptions, EngineSidecar, Island, Proof, Target, with_plan, write_sidecar
from dra_runtime.engine_host import TENSORRT_RTX, Gpu, Host
from dra_runtime.gallery import Gallery

HERE = Host("linux-x86_64", Gpu("Test GPU", "8.9"), {TENSORRT_RTX: "1.7.1.13"})


def text_of(path: Path) -> str:
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def error_of(path: Path) -> str:
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_bundle(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = text_of(tiny_bundle)
    manifest = Encoder.open(tiny_bundle).bundle.manifest
    assert f"{tiny_bundle}: a bundle, fp32, " in text
    assert manifest.bundle_id[:12] in text
    assert "text tower of 2 layers" in text
    assert "made from  checkpoint" in text
    assert f"not measured: dra-export verify {tiny_bundle} --checkpoint CHECKPOINT" in text
    assert "| text_encoder " in text
    assert "tokens int32 (batch, length)" in text
    values = json.loads(CliRunner().invoke(main, ["inspect", str(tiny_bundle), "--json"]).stdout)
    assert (values["kind"], values["precision"], values["engines"]) == ("bundle", "fp32", [])
    assert values["graphs"]["compositor"]["outputs"] == [{"name": "query", "dtype": "float32", "shape": ["batch", 32]}]
    assert values["size"] == sum(path.stat().st_size for path in tiny_bundle.iterdir())

    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    arguments = ["verify", str(folder), "--checkpoint", str(tiny_checkpoint), "--pairs", "3"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert "parity     passed, 3 queries of emoji_cir / val, smallest cosine 1.000000" in text_of(folder)


def test_a_checkpoint(tiny_checkpoint: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    values = describe(tiny_checkpoint)
    assert values["parameters"] == sum(weight.numel() for weight in content["model"].values())
    assert (values["kind"], values["weights"]) == ("checkpoint", ["float32"])
    text = text_of(tiny_checkpoint)
    assert "tiny-resnet: ResNet at 64 px" in text
    assert "made by  tests" in text
    assert f"dra-export onnx {tiny_checkpoint}" in text


def test_a_gallery_and_where_its_bundle_is(tiny_bundle: Path, emoji_images: tuple[Path, ...], tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    path = tmp_path / "shop.gallery"
    Gallery.build(Encoder.open(bundle), {f"id\x1b{i}": image for i, image in enumerate(emoji_images[:4])}).save(path)
    text = text_of(path)
    assert "images     4, vectors of 32 in float32" in text
    assert "index      none" in text
    assert "tokens" not in text
    assert r"'id\x1b0', 'id\x1b1', 'id\x1b2', …" in text
    assert "it is there" in text
    bundle.rename(tmp_path / "elsewhere")
    assert "it isn't there now" in text_of(path)
    assert describe(path)["bundle_found"] == "missing"


def test_a_gallery_with_everything(tiny_bundle: Path, emoji_images: tuple[Path, ...], tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    path = tmp_path / "shop.gallery"
    images = {f"{i}": image for i, image in enumerate(emoji_images[:4])}
    metadata = {"0": {"tone": "light"}, "1": {"hair": True}}
    encoder = Encoder.open(tiny_bundle)
    Gallery.build(encoder, images, metadata=metadata, storage="float16", index="flat", tokens=True).save(path)
    values = describe(path)
    assert (values["storage"], values["tokens"], values["metadata"]) == ("float16", True, ["hair", "tone"])
    assert values["index"]["kind"] == "flat"
    text = text_of(path)
    assert "vectors of 32 in float16" in text
    assert "index      flat, recall@10 1.0000 on 4 queries" in text
    assert "tokens     kept" in text
    assert "'hair', 'tone'" in text


def test_an_onnx_file_of_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tiny_bundle / "text_encoder.onnx"
    values = describe(path)
    assert values["inputs"] == [{"name": "tokens", "dtype": "int32", "shape": ["batch", "length"]}]
    assert values["half_share"] == 0
    assert values["bundle"]["graph"] == "text_encoder"
    reference = onnx.load(path)
    weights = [numpy_helper.to_array(t) for t in reference.graph.initializer]
    assert values["weights"]["float32"]["bytes"] == sum(w.nbytes for w in weights if w.dtype == np.float32)
    assert "no half values" in text_of(path)

    half = tmp_path / "half.onnx"
    onnx.save(half_from_float(reference, first_islands(reference)), half)
    values = describe(half)
    assert 0.5 < values["half_share"] < 1
    assert values["weights"]["float16"]["elements"] > values["weights"].get("float32", {"elements": 0})["elements"]
    assert f"{values['half_share']:.0%} of the floating-point values are half" in text_of(half)
    assert "computes half graphs in float32" in text_of(half)


def test_shares_are_counted_by_hand(tmp_path: Path) -> None:
    """Two half values and one float32; one product of two in 8 bits."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),  # casts don't count
        helper.make_node("Relu", ["h"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w"], ["h2"]),
        helper.make_node("Cast", ["h2"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["v", "s", "zv"], ["dv"]),
        helper.make_node("MatMul", ["d", "dv"], ["y"]),
    ]
    constants = {
        "w": np.ones((4, 4), np.float16), "s": np.array(0.5, np.float32), "z": np.array(0, np.uint8),
        "zv": np.array(0, np.int8), "v": np.ones((4, 4), np.int8),
    }  # fmt: skip
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(a, n) for n, a in constants.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "g.onnx")
    values = describe_onnx(tmp_path / "g.onnx")
    assert values["half_share"] == pytest.approx(2 / 3, abs=1e-4)
    assert (values["products"], values["int8_products"]) == (2, 1)
    assert values["weights"]["float16"] == {"tensors": 1, "elements": 16, "bytes": 32}
    assert values["weights"]["int8"]["bytes"] == 17
    assert "1 of 2 products take 8-bit numbers" in text_of(tmp_path / "g.onnx")


def make_plan(folder: Path, bundle: Path) -> Path:
    manifest = Encoder.open(bundle, integrity="size").bundle.manifest
    graph = manifest.graphs["compositor"]
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "compositor.plan"
    plan.write_bytes(b"not a real plan")
    sidecar = EngineSidecar(
        graph="compositor", bundle_id=manifest.bundle_id, onnx_sha256=manifest.files[graph.file].sha256, plan="",
        plan_sha256="", plan_size=0, library=TENSORRT_RTX, library_version="1.7.1.13",
        target=Target("linux-x86_64", ("8.9",), None), precision="fp16",
        proof=Proof(8, 2, 3, 0, (Island("Softmax", "softmax", ("a", "b")),)),
        profiles=({t.name: ((1, 32), (8, 32), (64, 32)) for t in graph.inputs},), inputs=graph.inputs,
        outputs=graph.outputs, build=BuildOptions(1, 8, 64), versions={},
    )  # fmt: skip
    write_sidecar(folder, with_plan(sidecar, plan))
    return plan


def test_a_plan_and_whether_it_runs_here(tiny_bundle: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "made", tiny_bundle)
    assert describe(plan, HERE)["runs_here"] is True
    other = describe(plan, Host("linux-x86_64", Gpu("Other GPU", "12.0"), {TENSORRT_RTX: "1.7.1.13"}))
    assert other["runs_here"] is False
    assert "here is Other GPU" in other["why_not"]
    assert "--target sm120" in other["rebuild"]
    text = text_of(plan)  # on the machine that runs the tests, whatever it has
    assert "fp16: 80% of the floating-point tensors are half" in text
    assert "softmax (2 layers)" in text
    assert "rebuild     dra-export engine" in text

    plan.write_bytes(b"NOT a real plan")
    assert "its SHA-256 starts with" in describe(plan, HERE)["why_not"]
    plan.with_name("compositor.plan.json").unlink()
    assert "sidecar can't be read" in error_of(plan)


def test_a_bundle_lists_its_engines(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    make_plan(bundle / "engines" / "some", bundle)
    [engine] = describe(bundle, HERE)["engines"]
    assert (engine["name"], engine["runs_here"], engine["why_not"]) == ("some/compositor.plan", True, "")
    [engine] = describe(bundle, Host("linux-x86_64", None, {}))["engines"]
    assert (engine["runs_here"], "isn't installed here" in engine["why_not"]) == (False, True)
    assert "| some/compositor.plan |" in text_of(bundle)


def test_what_is_no_artifact_gets_one_kind_line(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"format": "dra-train-state", "version": 1}, tmp_path / "train_state.pt")
    assert f"did you mean {tmp_path / 'ckpt.pt'}?" in error_of(tmp_path / "train_state.pt")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    assert f"dra-train import {tmp_path / 'other.pt'}" in error_of(tmp_path / "other.pt")
    assert f"did you mean its folder, {tiny_bundle}?" in error_of(tiny_bundle / "selftest.npz")
    assert f"give its folder, {tiny_bundle}" in error_of(tiny_bundle / "manifest.json")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(pictures / f"{name}.png")
    assert f"a folder with 2 images; did you mean dra-search index BUNDLE {pictures}?" in error_of(pictures)
    assert "an image; to put images into a gallery" in error_of(pictures / "a.png")
    run = tiny_checkpoint.parent
    assert f"did you mean {run / 'ckpt.pt'} or {run / 'bundle'}?" in error_of(run)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "cut.pt").write_bytes(tiny_checkpoint.read_bytes()[:1000])
    for name in ("empty", "note.txt", "nothing", "empty.onnx", "text.onnx", "cut.pt", "x.plan.json", "pic.plan"):
        assert error_of(tmp_path / name).startswith(f"error: {tmp_path / name}: ")


def test_pytorch_is_loaded_for_a_checkpoint_alone(tiny_bundle: Path) -> None:
    code = """
import sys
from click.testing import CliRunner
from dra_export.cli import main
for path in sys.argv[1:]:
    result = CliRunner().invoke(main, ["inspect", path])
    assert result.exit_code == 0, result.output
print(sorted({"torch", "tensorrt", "tensorrt_rtx", "onnxruntime", "polygraphy"} & set(sys.modules)))
"""
    paths = [str(tiny_bundle), str(tiny_bundle / "text_encoder.onnx")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_page_knows_every_command_without_importing_it() -> None:
    result = CliRunner().invoke(main, ["--help"])
    for name, later in main.later.items():
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.short_help == later.short_help
        assert f"  {name}" in result.stdout
        assert later.short_help in result.stdout
