"""Weights in every published layout give open_clip's own features; everything else is refused in one line."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clip_files
import open_clip
import pytest
import timm
import torch
from clip_files import LAYOUTS, clip_config, openai_tensors, reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dra_runtime.errors import CheckpointError
from dra_runtime.preprocess import Preprocess
from dra_train.backbones import model_config, name_of_clip, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.model import DRA, DRAConfig
from dra_train.torchscript_archive import is_torchscript, tensors_from_torchscript
from dra_train.weight_files import read_weights
from dra_train.weights import clip_from_shapes, load_weights, set_quick_gelu

TOWERS = ("resnet", "vit")
TEXTS = ["in red", "is shorter, with long sleeves and a belt"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Write a layout once; tests read it only."""
    folder = tmp_path_factory.mktemp("weights")

    def path(layout: str, tower: str) -> Path:
        file = folder / f"{layout}-{tower}.pt"
        if not file.exists():
            clip_files.write(file, layout, tower)
        return file

    return path


@torch.inference_mode()
def features(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return features of two images and two texts, of a DRA model or one of open_clip's."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = open_clip.tokenize(TEXTS)
    if isinstance(model, DRA):
        return model.encode_image(images)[0], model.encode_text(tokens)
    return model.encode_image(images), model.encode_text(tokens)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_open_clips_features(layout: str, tower: str, written: Callable[[str, str], Path]) -> None:
    model = DRA(clip_config(tower)).eval()
    said = load_weights(model, written(layout, tower))
    expected = reference(openai_tensors(tower), tower, quick_gelu=LAYOUTS[layout])
    for got, wanted in zip(features(model), features(expected), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        assert (wanted[0] - wanted[1]).abs().max() > 1e-3
    assert model.config.clip.get("quick_gelu", False) == LAYOUTS[layout]
    assert ("with QuickGELU, as they were trained" in said) == LAYOUTS[layout]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_openai_state_dicts_equal_open_clips_openai_loader() -> None:
    """The same weights through open_clip's loader for OpenAI's files, which knows the activation by itself."""
    for tower in TOWERS:
        loaded = open_clip.model.build_model_from_openai_state_dict(openai_tensors(tower), cast_dtype=torch.float32)
        expected = reference(openai_tensors(tower), tower, quick_gelu=True)
        for got, wanted in zip(features(loaded.float()), features(expected), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)  # it rounds the biases to half precision


def test_the_wrong_activation_would_show(written: Callable[[str, str], Path]) -> None:
    model = DRA(clip_config("vit")).eval()
    load_weights(model, written("openai", "vit"))
    wrong = reference(openai_tensors("vit"), "vit", quick_gelu=False)
    for got, other in zip(features(model), features(wrong), strict=True):
        assert (got - other).abs().max() > 1e-3


def test_a_changed_activation_travels_in_the_checkpoint(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    model = DRA(clip_config("vit")).eval()
    load_weights(model, written("openai", "vit"))
    save_checkpoint(tmp_path / "ckpt.pt", model, {})
    again = load_checkpoint(tmp_path / "ckpt.pt").model
    for got, wanted in zip(features(again), features(model), strict=True):
        assert torch.equal(got, wanted)


def test_quick_gelu_can_be_set_and_taken_back() -> None:
    with torch.device("meta"):
        model = DRA(model_config("ViT-B-32", tac_layers=0, compositor="sum"))
    assert not any("QuickGELU" in type(m).__name__ for m in model.modules())
    set_quick_gelu(model, True)
    assert model.config.backbone == "ViT-B-32-quickgelu"
    assert sum("QuickGELU" in type(m).__name__ for m in model.modules()) == 24
    set_quick_gelu(model, False)
    assert model.config.backbone == "ViT-B-32"
    assert not any("QuickGELU" in type(m).__name__ for m in model.modules())


def test_a_file_that_does_not_tell_its_activation_says_so(written: Callable[[str, str], Path]) -> None:
    said = load_weights(DRA(clip_config("vit")), written("bin", "vit"))
    assert "GELU as the backbone says: the file doesn't tell" in said
    assert "-quickgelu" in said


@pytest.mark.parametrize(
    ("name", "config", "quick", "said"),
    [
        ("open_clip_model.safetensors", '{"model_cfg": {"quick_gelu": true}}', True, "with QuickGELU, as they were"),
        ("open_clip_model.safetensors", '{"model_cfg": {"embed_dim": 32}}', False, "with GELU, as they were trained"),
        ("open_clip_model.safetensors", '{"model_cfg": [', False, "the file doesn't tell"),
        ("another.safetensors", '{"model_cfg": {"quick_gelu": true}}', False, "the file doesn't tell"),
    ],
)
def test_the_configuration_beside_open_clips_weights_tells_the_activation(
    name: str, config: str, quick: bool, said: str, tmp_path: Path, written: Callable[[str, str], Path]
) -> None:
    path = Path(shutil.copy(written("safetensors", "vit"), tmp_path / name))
    path.with_name("open_clip_config.json").write_text(config)
    model = DRA(clip_config("vit"))
    assert said in load_weights(model, path)
    assert bool(model.config.clip.get("quick_gelu")) == quick


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:FutureWarning")
@pytest.mark.parametrize("tower", TOWERS)
def test_torchscript_is_read_without_running_it(
    tower: str, written: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written("torchscript", tower)
    expected = torch.jit.load(path, map_location="cpu").state_dict()
    monkeypatch.setattr(torch.jit, "load", None)
    monkeypatch.setattr(torch._C, "import_ir_module", None)
    found = tensors_from_torchscript(path)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert is_torchscript(path)
    assert not is_torchscript(written("openai", tower))


class Views(nn.Module):
    """Two parameters in one storage, one of them transposed and one with an offset, beside an empty one."""

    def __init__(self) -> None:
        super().__init__()
        base = torch.arange(12.0)
        self.transposed = nn.Parameter(base[:6].view(2, 3).t())
        self.behind = nn.Parameter(base[6:])
        self.register_buffer("empty", torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.behind


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_views_into_a_storage_are_read_where_they_lie(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(Views(), torch.zeros(6)), tmp_path / "views.pt")
    expected = torch.jit.load(tmp_path / "views.pt").state_dict()
    found = tensors_from_torchscript(tmp_path / "views.pt")
    assert set(found) == {"transposed", "behind", "empty"}
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    assert found["behind"].tolist() == [6, 7, 8, 9, 10, 11]


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "torchscript"])
def test_code_in_a_file_never_runs(kind: str, tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    path, witness = tmp_path / "clip.pt", tmp_path / "it-ran"
    if kind == "torchscript":
        with zipfile.ZipFile(written("torchscript", "vit")) as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                evil = name.endswith("/data.pkl")
                bad.writestr(name, pickle.dumps(Bomb(witness), protocol=2) if evil else good.read(name))
    else:
        torch.save({"CLIP": Bomb(witness)}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match="asks for code to be run") as caught:
        load_weights(DRA(clip_config("vit")), path)
    assert "\n" not in str(caught.value)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "pickle|bytes|instruction"),  # a terabyte of bytes
        (b"\x80\x02}r" + (2**31).to_bytes(4, "little") + b".", "numbers more objects than it can hold"),
        (b"\x80\x02\x82\x01.", "the pickle instruction EXT1, which no weights need"),
        (pickle.dumps({"a": 1}, protocol=4), "the pickle instruction FRAME, which no weights need"),
    ],
)
def test_a_torchscript_archive_cannot_ask_for_memory(program: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    with zipfile.ZipFile(path, "w") as bad:
        bad.writestr("clip/constants.pkl", b"")
        bad.writestr("clip/data.pkl", program)
    with pytest.raises(CheckpointError, match=message):
        load_weights(DRA(clip_config("vit")), path)


def test_compressed_archives_are_refused(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    path = tmp_path / "clip.pt"
    with (
        zipfile.ZipFile(written("torchscript", "vit")) as good,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad,
    ):
        for name in good.namelist():
            bad.writestr(name, good.read(name))
    with pytest.raises(CheckpointError, match="is compressed"):
        load_weights(DRA(clip_config("vit")), path)


def test_a_torchscript_archive_whose_weights_are_cut_off_is_refused(
    tmp_path: Path, written: Callable[[str, str], Path]
) -> None:
    path = tmp_path / "clip.pt"
    with zipfile.ZipFile(written("torchscript", "vit")) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name)[: 8 if "/data/" in name else None])
    with pytest.raises(CheckpointError, match="can't be read as weights"):
        load_weights(DRA(clip_config("vit")), path)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_torchscript_archive_is_one_line_or_read(
    data: st.DataObject, tmp_path: Path, written: Callable[[str, str], Path]
) -> None:
    path, model = tmp_path / "clip.pt", DRA(clip_config("vit"))
    with zipfile.ZipFile(written("torchscript", "vit")) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            content = bytearray(good.read(name))
            if name.endswith("/data.pkl"):
                for _ in range(data.draw(st.integers(1, 4))):
                    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            if "/code/" not in name:
                bad.writestr(name, bytes(content))
    said = ""
    try:
        load_weights(model, path)
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said


def shapes_only(name: str) -> dict[str, Tensor]:
    """Return a state dict with the shapes of an open_clip model, in CLIP's layout, of a few bytes."""
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config(name))
    return {key: torch.zeros(()).expand(value.shape) for key, value in clip.state_dict().items()}


NAMED = ("RN50", "RN50x4", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("RN50x4", "ViT-B-16") else pytest.mark.slow) for n in NAMED]
)
def test_backbones_are_recognised_by_their_shapes(name: str, tmp_path: Path) -> None:
    torch.save(shapes_only(name), tmp_path / "clip.pt")
    clip = clip_from_shapes(read_weights(tmp_path / "clip.pt").tensors)
    assert clip is not None
    assert name_of_clip(clip) == name
    config = open_clip.get_model_config(name)
    assert clip["text_cfg"] == config["text_cfg"]
    assert clip["embed_dim"] == config["embed_dim"]
    for key in ("image_size", "width", "patch_size", "layers"):
        assert clip["vision_cfg"][key] == config["vision_cfg"][key]


def misfitting(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take one weight away, add one, and change the shape of another."""
    changed = {k: v for k, v in tensors.items() if k != "ln_final.bias"}
    return {**changed, "adapter.weight": torch.ones(2), "text_projection": torch.ones(64, 33)}


Spoil = Callable[[Path], object]
UNUSABLE: dict[str, tuple[Spoil, str]] = {
    "missing": (lambda p: None, "doesn't exist or is no file; expected weights"),
    "a folder": (lambda p: p.mkdir(), "doesn't exist or is no file"),
    "empty": (lambda p: p.write_bytes(b""), "can't be read as weights"),
    "a text": (lambda p: p.write_text("weights will follow\n" * 9), "can't be read as weights"),
    "a plain pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "can't be read as weights"),
    "a broken safetensors": (lambda p: p.write_bytes(b"\x08" + bytes(7) + b"{}      "), "holds no weights by name"),
    "a tensor": (lambda p: torch.save(torch.ones(2), p), "holds a Tensor, not weights by name"),
    "an optimizer": (lambda p: torch.save({"lr": 1.0, "steps": [1, 2]}, p), "holds no weights by name, but lr, steps"),
    "another zip": (lambda p: zipfile.ZipFile(p, "w").writestr("a", "b"), "can't be read as weights"),
    "a Combiner": (
        lambda p: torch.save({"epoch": 1, "Combiner": clip_files.combiner_tensors()}, p),
        "holds CLIP4Cir's Combiner, not a CLIP; give its CLIP, and this as --combiner",
    ),
    "transformers": (
        lambda p: torch.save({"vision_model.x": torch.ones(1), "text_model.y": torch.ones(1)}, p),
        "Hugging Face transformers' layout; give the same model's open_clip file",
    ),
    "a classifier": (
        lambda p: torch.save(timm.create_model("test_resnet").state_dict(), p),
        r"it holds no CLIP; its weights don't fit: \d+ are missing \(visual.*, …\), \d+ are unexpected \(conv1",
    ),
    "names over two lines": (
        lambda p: torch.save({"a\nb": torch.ones(1), "visual.x": torch.ones(1)}, p),
        r"2 are unexpected \(a b, visual\.x\)",
    ),
    "values that are no tensors": (lambda p: torch.save({"a\nb": 1}, p), "holds no weights by name, but a b;"),
    "three misfits": (
        lambda p: torch.save(misfitting(openai_tensors("vit")), p),
        r"1 are missing \(text\.ln_final\.bias\), 1 are unexpected \(adapter\.weight\), "
        r"1 are of another shape \(text\.text_projection \(64, 33\) for \(64, 32\)\)",
    ),
    "another architecture": (
        lambda p: torch.save(shapes_only("RN50x4"), p),
        "these weights are of RN50x4, the model is custom; use --backbone RN50x4; its weights don't fit",
    ),
    "a damaged checkpoint": (
        lambda p: torch.save({"format": "dra-checkpoint", "version": 1}, p),
        "is a damaged checkpoint of dra-train",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_are_one_line(name: str, tmp_path: Path) -> None:
    spoil, message = UNUSABLE[name]
    path = tmp_path / "clip.pt"
    spoil(path)
    model = DRA(clip_config("vit"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(model, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_ten_misfits_of_a_kind_are_named(tmp_path: Path) -> None:
    tensors = {**openai_tensors("vit"), **{f"extra.{i}": torch.ones(1) for i in range(25)}}
    torch.save(tensors, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"25 are unexpected \(extra\.0, .*extra\.9, …\)") as caught:
        load_weights(DRA(clip_config("vit")), tmp_path / "clip.pt")
    assert "extra.10" not in str(caught.value)


def test_resnets_saved_before_batch_counters_existed_load(tmp_path: Path) -> None:
    tensors = {k: v for k, v in openai_tensors("resnet").items() if not k.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "clip.pt")
    load_weights(DRA(clip_config("resnet")), tmp_path / "clip.pt")


def test_own_checkpoint_brings_its_compositors_where_the_model_has_them(tmp_path: Path) -> None:
    source = untrained_model(model_config("tiny-resnet", tac_layers=2), seed=1)
    save_checkpoint(tmp_path / "ckpt.pt", source, {})
    whole = untrained_model(model_config("tiny-resnet", tac_layers=2), seed=2)
    said = load_weights(whole, tmp_path / "ckpt.pt")
    assert "both towers, the Combiner, TAC, TAC's projection loaded" in said
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in whole.state_dict().items())

    towers = untrained_model(model_config("tiny-resnet", tac_layers=0, compositor="sum"), seed=2)
    assert "both towers loaded" in load_weights(towers, tmp_path / "ckpt.pt")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in towers.state_dict().items())

    other = untrained_model(model_config("tiny-resnet", combiner_hidden=40), seed=2)
    with pytest.raises(CheckpointError, match=r"combiner\.hidden\.weight \(256, 256\) for \(40, 256\)"):
        load_weights(other, tmp_path / "ckpt.pt")


def timm_config(name: str) -> DRAConfig:
    vision = {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    clip = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": clip_files.TEXT}
    return DRAConfig(clip=clip, preprocess=Preprocess(160))


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_timms_own_weights_fill_the_image_tower(name: str, tmp_path: Path) -> None:
    classifier = timm.create_model(name).eval()
    torch.save(classifier.state_dict(), tmp_path / "timm.pt")
    model = DRA(timm_config(name)).eval()
    said = load_weights(model, tmp_path / "timm.pt")
    assert "an image tower of timm's" in said
    image = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        pooled = classifier.forward_head(classifier.forward_features(image), pre_logits=True)
        torch.testing.assert_close(model.image_trunk(image).pooled, pooled, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="as weights of timm's test_resnet"):
        load_weights(DRA(timm_config("test_resnet")), tmp_path / "timm.pt")


def test_files_can_be_read_only(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    """Mapped files are never written to, whatever happens to the model later."""
    path = Path(shutil.copy(written("bin", "vit"), tmp_path / "clip.pt"))
    before = path.read_bytes()
    model = DRA(clip_config("vit"))
    load_weights(model, path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == before
