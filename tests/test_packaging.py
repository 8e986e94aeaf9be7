"""The wheel with the extra `cpu` alone, in an empty environment: a service's installation, without PyTorch.

Builds with pip and installs from the package index, so it is slow and needs the network; `.ci/run` runs it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "torchvision", "transformers", "open_clip", "timm", "onnx", "matplotlib", "scipy", "sympy")
ANSWER = """
import json, sys
import dra_runtime as dra

gallery_path, bundle, image, text = sys.argv[1:]
encoder = dra.Encoder.open(bundle)
gallery = dra.Gallery.open(gallery_path, encoder)
by_image = gallery.search(text=text, image=image, k=5)
by_id = gallery.search(text=text, id="picture-0", k=5)
loaded = sorted(name for name in sys.modules if "." not in name)
print(json.dumps({
    "by_image": [(hit.id, hit.score) for hit in by_image],
    "by_id": [(hit.id, hit.score) for hit in by_id],
    "loaded": loaded,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-qq", "--no-deps", "--wheel-dir", folder, REPOSITORY], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the programs of an environment that holds the wheel and its extra `cpu`, nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", f"{wheel}[cpu]")
    return programs


def run(*command: str | Path) -> str:
    """Run a command outside of the repository, where only what is installed can be imported."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=Path(str(command[0])).parent,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "dra_bench",
        "dra_export",
        "dra_runtime",
        "dra_train",
    }
    for data in (
        "dra_train/presets/demo.toml",
        "dra_bench/templates/report.html.j2",
        "dra_export/triton/models/model.py",
    ):
        assert data in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/THIRD_PARTY.md") for name in names)
    assert wheel.stat().st_size < 2**20


def test_installation_stays_free_of_pytorch(environment: Path) -> None:
    code = f"import importlib.util; print([n for n in {HEAVY} if importlib.util.find_spec(n)])"
    assert run(environment / "python", "-c", code).strip() == "[]"
    packages = {
        p["name"].lower() for p in json.loads(run(environment / "python", "-m", "pip", "list", "--format=json"))
    }
    assert "onnxruntime" in packages
    assert not {name for name in packages if name.startswith(("torch", "nvidia", "open-clip", "open_clip"))}
    assert run(environment / "dra-search", "--version").strip()


def test_other_commands_say_which_extra_they_lack(environment: Path) -> None:
    for words, extra in (("dra-train", "train"), ("dra-export onnx", "export"), ("dra-bench latency", "bench")):
        command, *more = words.split()
        done = subprocess.run([environment / command, *more, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert f"pip install 'dra-toolkit[{extra}]'" in done.stderr


def test_query_is_answered_as_pytorch_answers_it(
    environment: Path, tiny_bundle: Path, tiny_checkpoint: Path, emoji_images: tuple[Path, ...], tmp_path: Path
) -> None:
    pictures, gallery, text = tmp_path / "pictures", tmp_path / "pictures.gallery", "make her a pilot"
    pictures.mkdir()
    for i, path in enumerate(emoji_images):
        (pictures / f"picture-{i}{path.suffix}").write_bytes(path.read_bytes())
    reference = pictures / f"picture-0{emoji_images[0].suffix}"

    assert "passed" in run(environment / "dra-search", "selfcheck", tiny_bundle)
    assert f"{len(emoji_images)} images" in run(
        environment / "dra-search", "index", tiny_bundle, pictures, "-o", gallery
    )
    expected = pytorch_ranking(tiny_checkpoint, pictures, text)

    query = (environment / "dra-search", "query", gallery, "--text", text, "-k", "5", "--json")
    by_image = json.loads(run(*query, "--image", reference))["hits"]
    by_id = json.loads(run(*query, "--id", "picture-0"))["hits"]
    answer = json.loads(run(environment / "python", "-c", ANSWER, gallery, tiny_bundle, reference, text))

    without_reference = [row for row in expected if row[0] != "picture-0"]
    assert_same([(hit["id"], hit["score"]) for hit in by_image], expected[:5])
    assert_same(answer["by_image"], expected[:5])
    assert_same([(hit["id"], hit["score"]) for hit in by_id], without_reference[:5])
    assert_same(answer["by_id"], without_reference[:5])
    assert "onnxruntime" in answer["loaded"]
    assert not set(HEAVY) & set(answer["loaded"])


def pytorch_ranking(checkpoint: Path, pictures: Path, text: str) -> list[tuple[str, float]]:
    """Rank the pictures with the model itself: ids and cosines, best first."""
    import torch

    from dra_train.checkpoint import load_checkpoint
    from dra_train.features import image_features, text_features

    model = load_checkpoint(checkpoint).model
    paths = sorted(pictures.iterdir())
    with torch.inference_mode():
        features = image_features(model, paths)
        names = [path.stem for path in paths]
        composed = model.compose(features[[names.index("picture-0")]], text_features(model, [text]))
        cosines = torch.nn.functional.cosine_similarity(composed, features).numpy()
    order = np.argsort(-cosines)
    return [(names[i], float(cosines[i])) for i in order]


def assert_same(found: list[tuple[str, float]], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in expected]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in expected], atol=1e-5)
