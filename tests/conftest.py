"""What the rooms' tests share: a small checkpoint, the bundle made from it, and real pictures.

Imports stand inside the fixtures, so that a room's tests load only what they use.
"""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: its threads shall not spin (dra_train)
_CACHE = tempfile.TemporaryDirectory(prefix="dra-tests-")  # the tests' image features, gone with the process
os.environ["DRA_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an untrained checkpoint with every part of the paper's model, but small (read only)."""
    from dra_train.backbones import model_config, untrained_model
    from dra_train.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("tiny") / "ckpt.pt"
    save_checkpoint(path, untrained_model(model_config("tiny-resnet"), seed=0), {"made_by": "tests"})
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path) -> Path:
    """Path of the bundle made from `tiny_checkpoint` (read only: copy it before you damage it)."""
    from dra_export.bundle_writer import write_bundle
    from dra_train.checkpoint import load_checkpoint

    return write_bundle(load_checkpoint(tiny_checkpoint), tiny_checkpoint.with_name("bundle")).path


@pytest.fixture(scope="session")
def tiny_uint8_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of `tiny_bundle` with an image encoder that takes uint8 pixels, and without the query graph (read only)."""
    import hashlib
    import shutil
    from dataclasses import replace

    from dra_export.passes.uint8_image import take_uint8
    from dra_runtime.bundle import Bundle, FileEntry
    from dra_runtime.files import write_json
    from dra_runtime.manifest import MANIFEST, bundle_id_of, manifest_to_dict, schema_version_of

    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("tiny-uint8") / "bundle")
    manifest = Bundle.open(tiny_bundle).manifest
    graph = manifest.graphs["image_encoder"]
    path = folder / graph.file
    take_uint8(path, manifest.preprocess)
    graphs = {name: spec for name, spec in manifest.graphs.items() if name != "query"}
    graphs["image_encoder"] = replace(graph, inputs=(replace(graph.inputs[0], dtype="uint8"),))
    entry = FileEntry(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    changed = replace(
        manifest,
        graphs=graphs,
        files={**manifest.files, graph.file: entry},
        schema_version=schema_version_of(graphs),
    )
    write_json(folder / MANIFEST, manifest_to_dict(replace(changed, bundle_id=bundle_id_of(changed))))
    return folder


@pytest.fixture(scope="session")
def emoji_images() -> tuple[Path, ...]:
    """Sixteen pictures of the built-in data set's validation split, spread over it."""
    from dra_train.data import builtin_dataset, load_cirr

    paths = tuple(load_cirr(builtin_dataset(), "val").images.values())
    return paths[:: max(1, len(paths) // 16)][:16]
