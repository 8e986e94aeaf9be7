"""Open a data set by its name or path, whatever its format."""

from __future__ import annotations

from pathlib import Path

from dra_runtime.errors import DatasetError, UsageError
from dra_train.data.circo import circo_splits, is_circo, read_circo
from dra_train.data.cirr import cirr_splits, is_cirr, read_cirr
from dra_train.data.fashioniq import GALLERIES, fashioniq_splits, is_fashioniq, read_fashioniq
from dra_train.data.images import without_missing
from dra_train.data.jsonl import is_jsonl, jsonl_splits, read_jsonl
from dra_train.data.types import Dataset

BUILTIN = "emoji_cir"  #: the data set inside the repository
FORMATS = ("cirr", "fashioniq", "circo", "jsonl")


def open_dataset(
    dataset: str | Path,
    split: str,
    *,
    format: str = "auto",
    gallery: str = "original",
    image_root: Path | None = None,
    allow_missing: bool = False,
) -> tuple[Dataset, ...]:
    """Read one split of a data set.

    Parameters
    ----------
    dataset
        ``builtin``, a data set's folder, or a JSON-lines file.
    split
        Such as ``train``, ``val`` or ``test1``.
    format
        One of `FORMATS`, or ``auto``: what the folder looks like.
    gallery
        FashionIQ's: ``original`` (all images of the split) or ``val_union`` (references and targets only).
    image_root
        Where the images lie, if not where the format expects them.
    allow_missing
        Leave out images that are missing or unreadable, with the queries that need them, and record it.

    Returns
    -------
    tuple of Dataset
        FashionIQ gives one a category, all others give one.

    Raises
    ------
    DatasetError
        It can't be read, or images are missing.
    UsageError
        The format or the gallery is unknown.
    """
    parts = read_dataset(dataset, split, format=format, gallery=gallery, image_root=image_root)
    return tuple(without_missing(part, allow_missing) for part in parts)


def read_dataset(
    dataset: str | Path,
    split: str,
    *,
    format: str = "auto",
    gallery: str = "original",
    image_root: Path | None = None,
) -> tuple[Dataset, ...]:
    """Read one split as `open_dataset` does, without a look at the images."""
    if gallery not in GALLERIES:
        raise UsageError(f"gallery {gallery!r} is unknown; use {' or '.join(GALLERIES)}")
    if image_root is not None and not image_root.is_dir():
        raise DatasetError(f"{image_root} is no folder; pass the one that holds the images")
    path, format = find_dataset(dataset, format)
    match format:
        case "cirr":
            return (read_cirr(path, split, image_root),)
        case "fashioniq":
            return read_fashioniq(path, split, gallery, image_root)
        case "circo":
            return (read_circo(path, split, image_root),)
        case _:
            return (read_jsonl(path, split, image_root),)


def splits_of(dataset: str | Path, format: str = "auto") -> list[str]:
    """List the splits that a data set's files name."""
    path, format = find_dataset(dataset, format)
    listing = {"cirr": cirr_splits, "fashioniq": fashioniq_splits, "circo": circo_splits, "jsonl": jsonl_splits}
    return listing[format](path)


def find_dataset(dataset: str | Path, format: str = "auto") -> tuple[Path, str]:
    """Return a data set's path and format; UsageError for an unknown format, DatasetError when nothing is there."""
    if format not in ("auto", *FORMATS):
        raise UsageError(f"format {format!r} is unknown; use auto, {', '.join(FORMATS)}")
    path = builtin_dataset() if str(dataset) == "builtin" else Path(dataset)
    if format == "auto":
        return path, detect_format(path)
    _require(path.is_dir() or (format == "jsonl" and path.is_file()), path)
    return path, format


def detect_format(path: Path) -> str:
    """Tell a data set's format from the names of its files; DatasetError when none fits."""
    _require(path.is_dir() or (path.is_file() and is_jsonl(path)), path)
    if is_cirr(path):
        return "cirr"
    if is_fashioniq(path):
        return "fashioniq"
    if is_circo(path):
        return "circo"
    if is_jsonl(path):
        return "jsonl"
    raise DatasetError(
        f"{path} looks like no known data set: expected cirr/captions/cap.rc2.*.json (CIRR), "
        "captions/cap.dress.*.json (FashionIQ), annotations/val.json (CIRCO) or a .jsonl file (docs/data.md)"
    )


def _require(there: bool, path: Path) -> None:
    if not there:
        raise DatasetError(f"{path} is no folder with a data set and no .jsonl file; check the path")


def builtin_dataset() -> Path:
    """Return the folder of emoji-cir, the data set inside the repository.

    DatasetError when the toolkit was installed without its repository.
    """
    path = Path(__file__).resolve().parents[2] / "data" / BUILTIN
    if not path.is_dir():
        raise DatasetError("the built-in data set is only in the repository; pass --dataset DIR")
    return path
