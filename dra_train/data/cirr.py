"""Read CIRR's format, version rc2 (https://github.com/Cuberick-Orion/CIRR).

``captions/cap.rc2.SPLIT.json`` holds the triplets, ``image_splits/split.rc2.SPLIT.json`` maps image names to paths
below the image root.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dra_runtime.errors import DatasetError
from dra_train.data.images import require_known, without_missing
from dra_train.data.read import name_of, read_json, text_of
from dra_train.data.types import Dataset, Query


def is_cirr(root: Path) -> bool:
    """Tell whether a folder looks like CIRR's."""
    return bool(cirr_splits(root))


def load_cirr(root: Path, split: str) -> Dataset:
    """Read one split of a CIRR-format data set, and check that all its images are there; see `read_cirr`."""
    return without_missing(read_cirr(root, split), allow_missing=False)


def cirr_splits(root: Path) -> list[str]:
    """List the splits below ``root``."""
    return sorted({p.name.split(".")[2] for d in _captions_folders(root) for p in d.glob("cap.rc2.*.json")})


def read_cirr(root: Path, split: str, image_root: Path | None = None) -> Dataset:
    """Read one split of a CIRR-format data set below ``root``, without a look at the images.

    Both layouts met in the wild are understood: ``cirr/`` beside ``img_raw/``, and the images beside ``cirr/``;
    ``image_root`` is where the images are otherwise. A split without any ``target_hard`` hides its targets.
    DatasetError says what is malformed or inconsistent.
    """
    folder = next((d for d in _captions_folders(root) if d.is_dir()), None)
    if folder is None:
        raise DatasetError(f"{root} holds no CIRR data: expected {root / 'cirr' / 'captions'}; check the path")
    captions = folder / f"cap.rc2.{split}.json"
    if not captions.is_file():
        raise DatasetError(f"{root} has no split {split!r}; it has {', '.join(cirr_splits(root)) or 'none'}")
    paths = read_json(folder.parent / "image_splits" / f"split.rc2.{split}.json", dict)
    if wrong := [name for name, relative in paths.items() if not isinstance(relative, str)]:
        raise DatasetError(f"split {split!r} gives no path for {len(wrong)} images, such as {wrong[0]!r}")
    image_root = image_root or _image_root(folder.parent, paths)
    images = {name: image_root / relative for name, relative in paths.items()}
    entries = read_json(captions, list)
    if not entries:
        raise DatasetError(f"{captions} holds no queries")
    hidden = not any(isinstance(entry, dict) and "target_hard" in entry for entry in entries)
    queries = tuple(_query(entry, f"{captions}, entry {i}", hidden) for i, entry in enumerate(entries))
    require_known((n for q in queries for n in (q.reference, *q.right_answers, *q.group)), images, captions)
    return Dataset(root.resolve().name, split, queries, images)


def _captions_folders(root: Path) -> tuple[Path, ...]:
    return (root / "cirr" / "captions", root / "captions")


def _image_root(annotations: Path, paths: Mapping[str, str]) -> Path:
    """Find the folder that holds the first folder of the images' paths, such as ``dev``."""
    around = (annotations.parent, annotations) if annotations.name == "cirr" else (annotations, annotations.parent)
    candidates = [folder for place in around for folder in (place / "img_raw", place) if folder.is_dir()]
    parts = PurePosixPath(next(iter(paths.values()), "")).parts
    return next((folder for folder in candidates if parts and (folder / parts[0]).exists()), candidates[0])


def _query(entry: Any, where: str, hidden: bool) -> Query:
    try:
        return Query(
            id=int(entry["pairid"]),
            reference=name_of(entry["reference"], where),
            text=text_of(entry["caption"], where),
            target="" if hidden else name_of(entry["target_hard"], where),
            group=tuple(name_of(name, where) for name in entry["img_set"]["members"]),
            edit=text_of(entry.get("edit", ""), where),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{where}: expected CIRR's keys, but {error!r}") from error
