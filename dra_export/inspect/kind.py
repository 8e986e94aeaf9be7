"""Tell what a path is from its name and first bytes, or say in a line what it is instead of an artifact."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from dra_runtime.container import MAX_HEADER
from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.folder import SUFFIXES, images_of_folder
from dra_runtime.manifest import MANIFEST, SELFTEST

CHECKPOINT, BUNDLE, ONNX, PLAN, GALLERY = "checkpoint", "bundle", "onnx", "plan", "gallery"
ACCEPTED = "a checkpoint (.pt), a bundle (a folder), an ONNX file, an engine's .plan or a gallery"


def kind_of(path: Path) -> str:
    """Return what ``path`` is: `CHECKPOINT`, `BUNDLE`, `ONNX`, `PLAN` or `GALLERY`; nothing large is read.

    A file of any other program that is packed as PyTorch packs counts as a checkpoint, until it is opened.

    Raises
    ------
    UsageError
        It is none of them; the message says what it looks like, and what may have been meant.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder; give {ACCEPTED}")
    if path.suffix in (".onnx", ".plan"):
        return path.suffix[1:]
    if path.name.endswith(".plan.json"):
        raise UsageError(f"{path}: an engine's sidecar; give the plan itself, {path.with_suffix('').name}")
    if path.name == MANIFEST:
        raise UsageError(f"{path}: a bundle's manifest; give its folder, {path.parent}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror or error})") from error
    if start[:4] == b"PK\x03\x04":
        return _kind_of_archive(path)
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= MAX_HEADER:
        return _kind_of_tensors(path)
    if path.suffix.lower() in SUFFIXES:
        raise _none(path, "an image; to put images into a gallery: dra-search index BUNDLE FOLDER")
    raise _none(path, "not one that this toolkit makes")


def _kind_of_folder(path: Path) -> str:
    if (path / MANIFEST).exists():
        return BUNDLE
    names = {entry.name for entry in path.iterdir()}
    if "ckpt.pt" in names:
        raise _none(path, f"a run's folder; did you mean {path / 'ckpt.pt'}{_or_bundle(path)}?")
    if plans := sorted(name for name in names if name.endswith(".plan")):
        raise _none(path, f"a folder of engines; did you mean {path / plans[0]}?")
    if any((path / name / "config.pbtxt").is_file() for name in names):
        raise _none(path, "a model repository for Triton; did you mean the bundle that it was made from?")
    below = sorted(name for name in names if (path / name / MANIFEST).is_file())
    if below:
        raise _none(path, f"but a bundle lies in it; did you mean {path / below[0]}?")
    try:
        count = len(images_of_folder(path))
    except GalleryError:
        raise _none(path, "a folder with nothing of this toolkit in it") from None
    raise _none(path, f"a folder with {count} images; did you mean dra-search index BUNDLE {path}?")


def _or_bundle(path: Path) -> str:
    below = sorted(entry.name for entry in path.iterdir() if (entry / MANIFEST).is_file())
    return f" or {path / below[0]}" if below else ""


def _kind_of_archive(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise _none(path, f"a damaged or incomplete file ({error})") from error
    if any(name.endswith("/data.pkl") for name in names):
        return CHECKPOINT
    if path.name == SELFTEST:
        raise _none(path, f"a bundle's selftest; did you mean its folder, {path.parent}?")
    if names and all(name.endswith(".npy") for name in names):
        raise _none(path, "numpy arrays")
    raise _none(path, "an archive")


def _kind_of_tensors(path: Path) -> str:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        except (ValueError, AttributeError, RecursionError):
            metadata = {}
    if isinstance(metadata, dict) and metadata.get("format") == "dra-gallery":
        return GALLERY
    raise _none(path, "a safetensors file; to make a checkpoint of a CLIP's weights: dra-train import")


def _none(path: Path, found: str) -> UsageError:
    # A sentence that ends in a suggestion needs no list of everything
    return UsageError(f"{path}: no artifact: {found}" + ("" if found.endswith("?") else f"; inspect takes {ACCEPTED}"))
