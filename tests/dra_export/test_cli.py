import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from dra_export.cli import main
from dra_runtime.bundle import Bundle, bundle_id_of


def test_verify_prints_json_and_records_the_result(tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    arguments = ["verify", str(bundle), "--checkpoint", str(tiny_checkpoint), "--pairs", "4", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert values["passed"] is True
    assert {"min_cosine", "p01_cosine", "max_abs", "pairs"} == set(values["graphs"]["text_encoder"])
    assert Bundle.open(bundle).manifest.parity == {**values, "recall": None}


def test_verify_exits_with_1_when_a_graph_on_disk_is_wrong(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    swap_a_weight(bundle, "compositor.onnx")
    result = CliRunner().invoke(main, ["verify", str(bundle), "--checkpoint", str(tiny_checkpoint), "--pairs", "4"])
    assert result.exit_code == 1, result.output
    assert "FOUND WANTING" in result.output


def swap_a_weight(bundle: Path, name: str) -> None:
    """Scale one weight of a graph and sign the bundle anew, as a faulty exporter would."""
    import hashlib

    import numpy as np
    from onnx import numpy_helper

    model = onnx.load(bundle / name)
    weight = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    onnx.save(model, bundle / name)
    values = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    content = (bundle / name).read_bytes()
    values["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    values["bundle_id"] = bundle_id_of(values)
    (bundle / "manifest.json").write_text(json.dumps(values), encoding="utf-8")


def one_line_error(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_verify_refuses_another_checkpoint(tiny_bundle: Path, tmp_path: Path) -> None:
    from dra_train.backbones import model_config, untrained_model
    from dra_train.checkpoint import save_checkpoint

    other = tmp_path / "other.pt"
    save_checkpoint(other, untrained_model(model_config("tiny-resnet"), seed=9), {})
    assert "another checkpoint" in one_line_error(["verify", str(tiny_bundle), "--checkpoint", str(other)])


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", "truncated"])
def test_a_checkpoint_that_is_none_gives_one_line_and_leaves_nothing(
    content: bytes | str | None, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ckpt.pt"
    if content == "truncated":
        path.write_bytes(tiny_checkpoint.read_bytes()[:100_000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    before = set(tmp_path.iterdir())
    one_line_error(["onnx", str(path), "-o", str(tmp_path / "bundle")])
    assert set(tmp_path.iterdir()) == before


def test_an_existing_bundle_needs_overwrite(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    assert "--overwrite" in one_line_error(["onnx", str(tiny_checkpoint), "-o", str(tiny_bundle)])


def test_a_place_that_cannot_be_written_is_the_users_to_change(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    error = one_line_error(["onnx", str(tiny_checkpoint), "-o", str(tmp_path / "file" / "bundle")])
    assert "choose another place" in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_folder_for_the_result_is_found_before_the_work(
    tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "nowhere" / "verify.json"
    error = one_line_error(["verify", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint), "-o", str(output)])
    assert "make it first" in error
