"""The choice of parts: what is kept holds the recall and is faster, what isn't stays the float32 file it was."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from dra_export.int8 import search as int8_search
from dra_export.int8.bundle_graphs import Int8Options, quantize_graphs
from dra_export.int8.cpu import cpu_features
from dra_export.int8.dynamic import dynamic_int8
from dra_export.int8.measure import Speed, Split, text_features
from dra_export.int8.search import Trial, best_of
from dra_export.int8.session import open_session
from dra_export.onnx_from_model import ExportError
from dra_runtime.backends.onnxruntime_cpu import open_onnxruntime_cpu
from dra_runtime.encoder import Encoder
from dra_runtime.errors import DatasetError, UsageError
from dra_train.checkpoint import load_checkpoint
from dra_train.data import Dataset, builtin_dataset, load_cirr
from dra_train.model import DRA

LIMIT = 6.0  #: points; the tiny model is untrained, and one of 60 queries is 1.7 points


@pytest.fixture(scope="module")
def split() -> Dataset:
    """Sixty queries of the real validation split, with just the images that they name."""
    whole = load_cirr(builtin_dataset(), "val")
    queries = whole.queries[:: len(whole.queries) // 60][:60]
    names = {name for q in queries for name in (q.reference, q.target, *q.group)}
    return Dataset(whole.name, whole.split, queries, {n: p for n, p in whole.images.items() if n in names})


@pytest.fixture(scope="module")
def calibration() -> list[Path]:
    return list(load_cirr(builtin_dataset(), "train").images.values())[::60][:24]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> DRA:
    return load_checkpoint(tiny_checkpoint).model


@pytest.fixture
def paths(tiny_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    names = ("image_encoder", "text_encoder", "compositor", "reranker")
    return {name: Path(shutil.copy(tiny_bundle / f"{name}.onnx", tmp_path)) for name in names}


@pytest.fixture
def all_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the clock out of the decisions: everything is twice as fast in INT8."""
    monkeypatch.setattr(int8_search, "speed_of", lambda *_: Speed(2.0, 1.0, 2.0))


def is_int8(path: Path) -> bool:
    return any(tensor.data_type == onnx.TensorProto.INT8 for tensor in onnx.load(path).graph.initializer)


@pytest.mark.usefixtures("all_faster")
def test_every_part_that_pays_and_holds_is_replaced(
    paths: dict[str, Path], model: DRA, split: Dataset, calibration: list[Path]
) -> None:
    before = {name: path.read_bytes() for name, path in paths.items()}
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    (expected, *_) = ort.InferenceSession(before["image_encoder"]).run(None, {"image": images})
    result = quantize_graphs(paths, model, Int8Options(calibration, split, LIMIT, threads=1))

    assert result["kept"] == ["image_encoder", "text_encoder", "compositor"]
    assert [name for name, path in paths.items() if is_int8(path)] == result["kept"]
    assert paths["reranker"].read_bytes() == before["reranker"]
    for name, path in paths.items():
        onnx.checker.check_model(str(path), full_check=True)
        old, new = onnx.load_from_string(before[name]).graph, onnx.load(path).graph
        assert (list(old.input), list(old.output)) == (list(new.input), list(new.output))
    (found, *_) = ort.InferenceSession(str(paths["image_encoder"])).run(None, {"image": images})
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0.9 < cosines.min() < 0.999999

    assert json.loads(json.dumps(result)) == result  # plain values
    changes = [abs(result["recall"]["int8"][k] - value) for k, value in result["recall"]["float32"].items()]
    assert max(changes) <= LIMIT
    assert [tuple(trial["int8"]) for trial in result["tried"][:4]] == [
        (), ("text_encoder",), ("compositor",), ("text_encoder", "compositor"),
    ]  # fmt: skip
    assert result["calibration"]["images"] == len(calibration)
    assert result["host"]["speed"]["compositor"]["speedup"] == 2.0


@pytest.mark.usefixtures("all_faster")
def test_ranges_from_blank_images_are_found_out(
    paths: dict[str, Path], model: DRA, split: Dataset, tmp_path: Path
) -> None:
    """The planted fault: real images saturate everything, and the recall tells."""
    blank = []
    for number in range(16):
        blank.append(tmp_path / f"{number}.png")
        Image.new("RGB", (64, 64), (127, 127, 127)).save(blank[-1])
    result = quantize_graphs(paths, model, Int8Options(blank, split, LIMIT, threads=1))
    worst = next(t for t in result["tried"] if t["int8"] == ["image_encoder"] and t["float32_blocks"] == 0)
    assert worst["change"] > LIMIT
    assert not worst["within"]
    assert result["sensitivity"]  # it has tried to mend it with float32 blocks
    assert len(result["float32_blocks"]) >= 4
    kept = next(t for t in result["tried"] if t["int8"] == result["kept"] and t["float32_blocks"] >= 4)
    assert kept["change"] <= LIMIT


def test_a_part_that_is_not_faster_stays_float32(
    paths: dict[str, Path], model: DRA, split: Dataset, calibration: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = iter([Speed(1.0, 0.5, 2.0), Speed(1.0, 0.98, 1.02), Speed(9.0, 9.9, 0.9)])  # text, Combiner, image
    monkeypatch.setattr(int8_search, "speed_of", lambda *_: next(speeds))
    result = quantize_graphs(paths, model, Int8Options(calibration, split, LIMIT, threads=1))
    assert result["kept"] == ["text_encoder"]
    assert result["parts"]["image_encoder"] == result["parts"]["compositor"] == "float32: not faster in INT8"
    assert [name for name, path in paths.items() if is_int8(path)] == ["text_encoder"]


def test_nothing_kept_is_an_error_and_changes_no_file(
    paths: dict[str, Path], model: DRA, split: Dataset, calibration: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_search, "speed_of", lambda *_: Speed(1.0, 1.0, 1.0))
    before = {name: path.read_bytes() for name, path in paths.items()}
    with pytest.raises(ExportError, match=r"no part of the model is faster in INT8.*not faster in INT8.*fp32"):
        quantize_graphs(paths, model, Int8Options(calibration, split, LIMIT, threads=1))
    assert {name: path.read_bytes() for name, path in paths.items()} == before


def test_the_same_input_gives_the_same_files(
    paths: dict[str, Path], model: DRA, split: Dataset, calibration: list[Path], all_faster: None, tmp_path: Path
) -> None:
    (tmp_path / "again").mkdir()
    again = {name: Path(shutil.copy(path, tmp_path / "again")) for name, path in paths.items()}
    options = Int8Options(calibration, split, LIMIT, threads=1)
    assert quantize_graphs(paths, model, options) == quantize_graphs(again, model, options)
    assert [p.read_bytes() for p in paths.values()] == [p.read_bytes() for p in again.values()]


def trial(parts: tuple[str, ...], change: float, cosine: float, ms: float, blocks: int = 0) -> Trial:
    return Trial(parts, tuple("b" * blocks), {}, change, cosine, ms)


def test_the_fastest_set_within_the_limit_wins_and_the_nearest_of_its_forms() -> None:
    none, text = trial((), 0, 1, 10), trial(("text_encoder",), 0.3, 0.99, 8)
    fast = trial(("image_encoder",), 0.4, 0.97, 4.0)
    near, slow = trial(("image_encoder",), 0.1, 0.99, 4.3, 2), trial(("image_encoder",), 0.1, 0.999, 4.5, 4)
    beyond = trial(("image_encoder", "text_encoder"), 0.51, 0.96, 3)
    trials = [none, text, fast, near, slow, beyond]
    assert best_of(trials, 0.5) == near
    assert best_of(trials, 0.3) == slow
    assert best_of(trials, 0.05) == none
    assert best_of(trials, 0.6) == beyond


def test_options_that_make_no_sense_are_refused(split: Dataset, calibration: list[Path]) -> None:
    with pytest.raises(UsageError, match="3 images to calibrate INT8; give at least 16"):
        Int8Options(calibration[:3], split)
    with pytest.raises(UsageError, match="largest loss of recall is 0; give points above 0"):
        Int8Options(calibration, split, max_recall_loss=0)
    hidden = replace(split, queries=tuple(replace(q, target="", targets=()) for q in split.queries))
    with pytest.raises(DatasetError):
        Int8Options(calibration, hidden)


def test_the_cpus_instructions_are_read_from_its_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n")
    found = cpu_features(cpuinfo)
    assert (found["model"], found["instructions"], found["exact_sums"]) == ("Some CPU", ["avx2", "avx512f"], False)
    cpuinfo.write_text("flags : avx2 avx_vnni\n")
    assert cpu_features(cpuinfo)["exact_sums"] is True
    assert cpu_features(tmp_path / "absent")["exact_sums"] is None


def test_texts_are_encoded_as_the_runtime_encodes_them(
    tiny_bundle: Path, paths: dict[str, Path], model: DRA, split: Dataset
) -> None:
    """With dynamic ranges the batch matters, so the search must see the very vectors that `verify` finds."""
    int8 = dynamic_int8(onnx.load(paths["text_encoder"])).SerializeToString()
    paths["text_encoder"].write_bytes(int8)
    encoder = Encoder.open(tiny_bundle, threads=1)
    encoder._sessions["text_encoder"] = open_onnxruntime_cpu(
        paths["text_encoder"], encoder.bundle.manifest.graphs["text_encoder"], 1
    )
    expected = encoder.encode_texts([query.text for query in split.queries])
    np.testing.assert_array_equal(text_features(open_session(int8, 1), Split.of(split, model)), expected)
