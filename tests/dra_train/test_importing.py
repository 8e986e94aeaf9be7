"""What is imported answers as the published models do, evaluates, exports, verifies and serves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import clip_files
import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner, Result
from clip_files import combiner_tensors, openai_tensors, reference
from PIL import Image
from torch import Tensor
from torchvision import transforms

from dra_export.bundle_writer import write_bundle
from dra_export.parity.verify import verify
from dra_runtime.console import command_group
from dra_runtime.encoder import Encoder
from dra_runtime.errors import CheckpointError, DraError, UsageError
from dra_runtime.preprocess import CLIP_MEAN, CLIP_STD
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.import_ import import_command
from dra_train.commands.init import init_command
from dra_train.data import builtin_dataset, load_cirr
from dra_train.evaluate import evaluate
from dra_train.importing import NO_PADDING, import_clip
from dra_train.model import DRA

MAIN = command_group("dra-train", "The commands under test.")
for _command in (import_command, init_command):
    MAIN.add_command(_command)


def run(*args: object) -> Result:
    return CliRunner().invoke(MAIN, [str(a) for a in args])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold CLIP4Cir's pair and a plain CLIP, in the published forms."""
    folder = tmp_path_factory.mktemp("published")
    clip_files.write(folder / "clip4cir.pt", "clip4cir", "resnet")
    clip_files.write(folder / "plain.pt", "torchscript", "resnet")
    clip_files.write(folder / "vit.pt", "openai", "vit")
    torch.save({"epoch": 3, "Combiner": combiner_tensors()}, folder / "combiner.pt")
    return folder


def composed(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """One query of CLIP4Cir's Combiner, restated from its description with the tensors of its file."""
    weights = {name: value.double().numpy() for name, value in combiner_tensors().items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    def relu(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0)

    joined = np.concatenate([relu(layer("text_projection_layer", text)), relu(layer("image_projection_layer", image))])
    residual = layer("output_layer", relu(layer("combiner_layer", joined)))
    share = 1 / (1 + np.exp(-layer("dynamic_scalar.3", relu(layer("dynamic_scalar.0", joined)))))
    query = residual + share * text + (1 - share) * image
    return query / np.linalg.norm(query)


def summed(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    return (image + text) / np.linalg.norm(image + text)


TEXTS = ["in red", "is shorter, with long sleeves", "x"]


@torch.inference_mode()
def golden(pixels: Tensor, compose: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Queries of the small CLIP by open_clip alone, composed one by one."""
    clip = reference(openai_tensors("resnet"), "resnet", quick_gelu=True)
    images = clip.encode_image(pixels).double().numpy()
    texts = clip.encode_text(open_clip.tokenize(TEXTS)).double().numpy()
    return np.stack([compose(image, text) for image, text in zip(images, texts, strict=True)])


@torch.inference_mode()
def queries(model: DRA, pixels: Tensor) -> np.ndarray:
    return model.compose(model.encode_image(pixels)[0], model.encode_text(open_clip.tokenize(TEXTS))).numpy()


@pytest.mark.parametrize("pair", ["clip4cir with combiner", "plain with combiner", "plain", "clip4cir"])
def test_imported_queries_are_the_published_ones(pair: str, files: Path) -> None:
    clip, _, combiner = pair.partition(" with ")
    model = import_clip(files / f"{clip}.pt", files / "combiner.pt" if combiner else None).model
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = golden(pixels, composed if combiner else summed)
    np.testing.assert_allclose(queries(model, pixels), expected, rtol=0, atol=1e-5)
    assert not model.has_tac
    assert model.config.clip["quick_gelu"]
    assert model.config.compositor == ("combiner" if combiner else "sum")
    if combiner:
        assert (model.config.combiner_projection, model.config.combiner_hidden) == (48, 80)
    assert model.preprocess.pad_ratio == (NO_PADDING if pair == "plain" else 1.25)


@pytest.mark.slow  # two bundles more; imported queries are compared above, graphs of each kind in dra_export
@pytest.mark.parametrize("kind", ["combiner", "sum"])
def test_what_was_imported_evaluates_exports_verifies_and_serves(kind: str, files: Path, tmp_path: Path) -> None:
    args = ["--clip", files / "clip4cir.pt", "--combiner", files / "combiner.pt"]
    if kind == "sum":
        args = ["--clip", files / "plain.pt", "--pad-ratio", "1.25"]
    result = run("import", *args, "--out", tmp_path / "ckpt.pt")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1), result.output
    checkpoint = load_checkpoint(tmp_path / "ckpt.pt")
    dataset = load_cirr(builtin_dataset(), "val")

    bundle = write_bundle(checkpoint, tmp_path / "bundle")
    assert set(bundle.manifest.graphs) == {"image_encoder", "text_encoder", "compositor", "query"}
    assert bundle.manifest.provenance["checkpoint"]["provenance"]["files"]["clip"]["name"] == Path(args[1]).name
    encoder = Encoder.open(bundle.path)
    verified = verify(checkpoint.model, encoder, dataset, pairs=12)
    assert verified["passed"], verified["graphs"]

    paths = list(dataset.images.values())[:3]
    pixels = torch.from_numpy(np.stack([checkpoint.model.preprocess(Image.open(path)) for path in paths]))
    expected = golden(pixels, composed if kind == "combiner" else summed)
    np.testing.assert_allclose(encoder.encode_queries(paths, TEXTS), expected, rtol=0, atol=1e-5)


def test_imported_model_evaluates(files: Path, cirr_folder: Callable[..., object]) -> None:
    folder = cirr_folder()
    result = evaluate(import_clip(files / "plain.pt").model, load_cirr(folder.root, "val"))  # type: ignore[attr-defined]
    assert result["queries"] == 24
    assert 0 <= result["metrics"]["R@10"] <= 100


def test_plain_clip_keeps_clips_own_preprocessing(files: Path) -> None:
    """CLIP's own: shorter side to 64, bicubic, centre, no padding whatever the shape."""
    preprocess = import_clip(files / "plain.pt").model.preprocess
    clips = transforms.Compose(
        [
            transforms.Resize(64, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    generator = np.random.default_rng(0)
    for height, width in ((90, 300), (301, 77), (64, 64), (1000, 20)):
        image = Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
        np.testing.assert_array_equal(preprocess(image), clips(image).numpy())


@pytest.mark.parametrize(("typed", "ratio"), [("1", 1.0), ("1.5", 1.5), ("none", NO_PADDING)])
def test_padding_can_be_chosen(typed: str, ratio: float, files: Path, tmp_path: Path) -> None:
    out = tmp_path / "ckpt.pt"
    result = run("import", "--clip", files / "clip4cir.pt", "--pad-ratio", typed, "--out", out)
    assert result.exit_code == 0
    assert load_checkpoint(out).config.preprocess.pad_ratio == ratio


def test_provenance_names_the_files_and_the_output_what_was_found(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "ckpt.pt"
    result = run("import", "--clip", files / "clip4cir.pt", "--combiner", files / "combiner.pt", "--out", out)
    assert result.stdout.startswith(f"{out} written: custom, ")
    assert "clip4cir.pt is CLIP4Cir's fine-tuned CLIP: both towers loaded, with QuickGELU" in result.stderr
    assert "combiner.pt: CLIP4Cir's Combiner" in result.stderr
    assert "images: padded to a ratio of 1.25, 64 pixels" in result.stderr
    provenance = load_checkpoint(out).provenance
    assert provenance["made_by"] == "dra-train import"
    for part, name in (("clip", "clip4cir.pt"), ("combiner", "combiner.pt")):
        digest = hashlib.sha256((files / name).read_bytes()).hexdigest()
        assert provenance["files"][part] == {"name": name, "sha256": digest}


def wide_combiner(path: Path) -> Path:
    torch.save({"Combiner": combiner_tensors(dim=40)}, path)
    return path


def part_of_a_combiner(path: Path) -> Path:
    torch.save({"Combiner": {k: v for k, v in combiner_tensors().items() if not k.startswith("dynamic")}}, path)
    return path


def classifier(path: Path) -> Path:
    torch.save({f"layer1.{i}.conv1.weight": torch.ones(2, 2, 3, 3) for i in range(3)}, path)
    return path


def imported(files: Path, tmp_path: Path) -> Path:
    run("import", "--clip", files / "plain.pt", "--out", tmp_path / "own.pt")
    return tmp_path / "own.pt"


REFUSED: dict[str, tuple[Callable[[Path, Path], list[object]], type[DraError], str]] = {
    "no such file": (lambda f, t: ["--clip", t / "none.pt"], CheckpointError, "doesn't exist"),
    "swapped files": (
        lambda f, t: ["--clip", f / "combiner.pt", "--combiner", f / "clip4cir.pt"],
        CheckpointError,
        "holds CLIP4Cir's Combiner, not a CLIP",
    ),
    "a CLIP as Combiner": (
        lambda f, t: ["--clip", f / "plain.pt", "--combiner", f / "clip4cir.pt"],
        CheckpointError,
        "holds no Combiner of CLIP4Cir's but epoch, CLIP; expected a key 'Combiner'",
    ),
    "a Combiner of another width": (
        lambda f, t: ["--clip", f / "plain.pt", "--combiner", wide_combiner(t / "wide.pt")],
        CheckpointError,
        "this Combiner takes features of width 40, the CLIP gives 32: they don't belong together",
    ),
    "half a Combiner": (
        lambda f, t: ["--clip", f / "plain.pt", "--combiner", part_of_a_combiner(t / "part.pt")],
        CheckpointError,
        r"4 are missing \(dynamic_scalar\.0\.weight",
    ),
    "a classifier": (
        lambda f, t: ["--clip", classifier(t / "cifar.pt")],
        UsageError,
        "its backbone can't be read off its weights; name it with --backbone",
    ),
    "a classifier with a backbone named": (
        lambda f, t: ["--clip", classifier(t / "cifar.pt"), "--backbone", "tiny-resnet"],
        CheckpointError,
        "it holds no CLIP",
    ),
    "another backbone": (
        lambda f, t: ["--clip", f / "vit.pt", "--backbone", "tiny-vit"],
        CheckpointError,
        "its weights don't fit: .* are of another shape",
    ),
    "an unknown backbone": (lambda f, t: ["--clip", f / "vit.pt", "--backbone", "RN5"], UsageError, "is unknown"),
    "a checkpoint": (lambda f, t: ["--clip", imported(f, t)], UsageError, "is a checkpoint of dra-train already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_imported_is_one_line_and_exit_code_two(name: str, files: Path, tmp_path: Path) -> None:
    args, kind, message = REFUSED[name]
    given = args(files, tmp_path)
    options = {str(given[i]).removeprefix("--"): given[i + 1] for i in range(0, len(given), 2)}
    with pytest.raises(kind, match=message):
        import_clip(**options)  # type: ignore[arg-type]
    result = run("import", *given, "--out", tmp_path / "out.pt")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


def test_pad_ratios_that_are_none_are_refused(files: Path, tmp_path: Path) -> None:
    for typed in ("0.5", "wide", "nan"):
        result = run("import", "--clip", files / "plain.pt", "--pad-ratio", typed, "--out", tmp_path / "out.pt")
        assert result.exit_code == 2
        assert f"{typed!r} is no ratio; give a number from 1 up, or none" in result.stderr


def test_init_takes_weights_for_the_towers(tmp_path: Path) -> None:
    run("init", "--backbone", "tiny-vit", "--seed", 1, "--out", tmp_path / "a.pt")
    result = run("init", "--backbone", "tiny-vit", "--weights", tmp_path / "a.pt", "--out", tmp_path / "b.pt")
    assert result.exit_code == 0, result.output
    assert "a.pt is a checkpoint of dra-train: both towers, the Combiner, TAC" in result.stderr
    provenance = load_checkpoint(tmp_path / "b.pt").provenance
    assert provenance["weights"]["sha256"] == load_checkpoint(tmp_path / "a.pt").sha256
    a, b = (load_checkpoint(tmp_path / f"{name}.pt").model.visual.state_dict() for name in "ab")
    assert all(torch.equal(value, b[name]) for name, value in a.items())
