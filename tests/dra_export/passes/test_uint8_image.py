"""A bundle that takes uint8 pixels answers as the one that takes preprocessed ones."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from dra_export import bundle_writer
from dra_export.graphs import Graph
from dra_export.onnx_from_model import Step
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.gallery import Gallery
from dra_runtime.selfcheck import selfcheck
from dra_train.checkpoint import load_checkpoint


@pytest.fixture(scope="module")
def uint8_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the bundle as the exporter does, from graphs that are there already."""
    folder = tmp_path_factory.mktemp("uint8") / "bundle"

    def copy(graph: Graph, path: Path, step: Step) -> None:
        shutil.copyfile(tiny_bundle / path.name, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_writer, "write_onnx", copy)
        checkpoint = load_checkpoint(tiny_bundle.with_name("ckpt.pt"))
        return bundle_writer.write_bundle(checkpoint, folder, image_input="uint8").path


def test_the_manifest_says_what_the_graphs_take(uint8_bundle: Path, tiny_bundle: Path) -> None:
    values = json.loads((uint8_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert values["schema_version"] == "1.1"
    for name in ("image_encoder", "query"):
        assert values["graphs"][name]["inputs"][0] == {
            "name": "image",
            "dtype": "uint8",
            "shape": ["batch", 3, 64, 64],
        }
        onnx.checker.check_model(str(uint8_bundle / f"{name}.onnx"), full_check=True)
    before = json.loads((tiny_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert before["schema_version"] == "1.0"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_vectors_are_those_of_the_float32_bundle(uint8_bundle: Path, tiny_bundle: Path, count: int) -> None:
    sizes = [(40, 90), (64, 64), (200, 65)]
    rng = np.random.default_rng(count)
    images = [rng.integers(0, 256, (*sizes[i % 3], 3), np.uint8) for i in range(count)]
    ours, reference = Encoder.open(uint8_bundle, threads=1), Encoder.open(tiny_bundle, threads=1)
    found, expected = (encoder.encode_images(images) for encoder in (ours, reference))
    np.testing.assert_allclose(found / expected.std(), expected / expected.std(), atol=2e-5)
    pixels = np.stack([ours.pixels(image) for image in images])
    assert pixels.dtype == np.uint8
    tokens = ours.tokenizer(["in red"] * count)
    queries = ours.session("query").run({"image": pixels, "tokens": tokens})["query"]
    np.testing.assert_allclose(queries, reference.encode_queries(images, ["in red"] * count), atol=2e-5)


def test_selfcheck_and_gallery_give_the_graph_what_it_takes(uint8_bundle: Path) -> None:
    encoder = Encoder.open(uint8_bundle, threads=1)
    assert selfcheck(encoder).passed
    images = {str(i): np.full((70, 80, 3), 40 * i, np.uint8) for i in range(3)}
    assert [hit.id for hit in Gallery.build(encoder, images).search(id="1", text="in red", k=3)]


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_pixels_of_the_other_type_are_refused(uint8_bundle: Path, tiny_bundle: Path, kind: str) -> None:
    encoder = Encoder.open(tiny_bundle if kind == "uint8" else uint8_bundle, threads=1)
    with pytest.raises(UsageError, match=f"the pixels are {kind} where .* make them with Encoder.pixels"):
        encoder.encode_pixels(np.zeros((1, 3, 64, 64), kind))
