"""dra-export onnx: which images calibrate, what it refuses, and what it says of the three precisions."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from dra_export.cli import main
from dra_export.commands import onnx as command
from dra_runtime.bundle import Bundle
from dra_runtime.errors import UsageError
from dra_train.data import open_dataset


def test_calibration_images_are_spread_over_a_folder_or_the_training_split(
    tmp_path: Path, emoji_images: tuple[Path, ...]
) -> None:
    for image in emoji_images:
        shutil.copy(image, tmp_path)
    assert len(command.calibration_images("builtin", tmp_path)) == len(emoji_images)
    found = command.calibration_images("builtin", None)
    training = list(open_dataset("builtin", "train")[0].images.values())
    assert len(found) == len(set(found)) == command.CALIBRATION_IMAGES
    assert set(found) <= set(training)
    assert training.index(found[-1]) > 0.8 * len(training)


def test_a_data_set_without_training_images_asks_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pass --calibration DIR"):
        command.calibration_images(str(tmp_path), None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--calibration", "photos"], "--calibration is for int8, and the precision is fp32"),
        (["--precision", "half"], "'half' is not one of 'fp32', 'fp16', 'int8'"),
        (["--precision", "int8", "--max-recall-loss", "0"], "0.0 is not in the range"),
        (["--precision", "fp16", "--dataset", "nowhere"], "nowhere"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    result = CliRunner().invoke(main, ["onnx", str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), *words])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_json_says_sizes_time_and_what_was_measured_and_the_id_keeps_out_of_the_times(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenances = []

    def without_tracing(checkpoint, out, overwrite, precision, lower, image_input):  # type: ignore[no-untyped-def]
        provenances.append(lower({}, checkpoint.model))
        return Bundle.open(tiny_bundle)

    measured = {"parts": {"compositor": "kept"}, "host": {"speed": {"compositor": {"speedup": 1.5}}}}
    monkeypatch.setattr(command, "write_bundle", without_tracing)
    monkeypatch.setattr(command, "quantize_graphs", lambda *_: measured)
    words = ["onnx", str(tiny_checkpoint), "-o", str(tmp_path / "bundle"), "--precision", "int8"]
    values = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert values["measured"] == measured
    assert values["graph_bytes"]["query"] == (tiny_bundle / "query.onnx").stat().st_size
    assert values["seconds"] >= 0
    assert values["peak_memory_mb"] > 10
    assert provenances == [{"parts": {"compositor": "kept"}}]
    assert "compositor: kept; 1.50 times as fast as float32" in CliRunner().invoke(main, words).stdout
