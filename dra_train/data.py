"""Read CIRR-format data sets: triplets (reference, text, target) and the gallery they are ranked in.

Format (CIRR rc2, https://github.com/Cuberick-Orion/CIRR): ``captions/cap.rc2.SPLIT.json`` holds the triplets,
``image_splits/split.rc2.SPLIT.json`` maps image names to paths below the image root.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dra_runtime.errors import DatasetError

BUILTIN = "emoji_cir"  #: the data set inside the repository


@dataclass(frozen=True)
class Query:
    """One triplet: the target is what the text makes of the reference."""

    id: int
    reference: str
    text: str
    target: str
    group: tuple[str, ...]  #: the look-alikes that Rsubset ranks: img_set's members
    edit: str = ""  #: what kind of change the text asks for, where the data set says so


@dataclass(frozen=True)
class Dataset:
    """The queries of one split and its gallery."""

    name: str
    split: str
    queries: tuple[Query, ...]
    images: Mapping[str, Path]  #: every image of the split, by name, in the file's order


def load_cirr(root: Path, split: str) -> Dataset:
    """Read one split of a CIRR-format data set below ``root``.

    Both layouts met in the wild are understood: ``cirr/`` beside ``img_raw/``, and the images beside ``cirr/``.
    DatasetError says what is missing, malformed or inconsistent; a missing image is never dropped.
    """
    annotations = next((d for d in (root / "cirr", root) if (d / "captions").is_dir()), None)
    if annotations is None:
        raise DatasetError(f"{root} holds no CIRR data: expected {root / 'cirr' / 'captions'}; check the path")
    captions = annotations / "captions" / f"cap.rc2.{split}.json"
    if not captions.is_file():
        found = sorted(p.name.split(".")[2] for p in captions.parent.glob("cap.rc2.*.json"))
        raise DatasetError(f"{root} has no split {split!r}; it has {', '.join(found) or 'none'}")
    paths = _read_json(annotations / "image_splits" / f"split.rc2.{split}.json", dict)
    image_root = next((d for d in (root / "img_raw", root) if d.is_dir()), root)
    if wrong := [name for name, relative in paths.items() if not isinstance(relative, str)]:
        raise DatasetError(f"split {split!r} gives no path for {len(wrong)} images, such as {wrong[0]!r}")
    images = {name: image_root / relative for name, relative in paths.items()}
    missing = [name for name, path in images.items() if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(images)} images of split {split!r} are missing below {image_root}: "
            f"{', '.join(missing[:10])}{'…' if len(missing) > 10 else ''}; complete the download"
        )
    entries = _read_json(captions, list)
    queries = tuple(_query(entry, position, captions) for position, entry in enumerate(entries))
    unknown = {n for q in queries for n in (q.reference, q.target, *q.group)} - images.keys()
    if unknown:
        raise DatasetError(f"{captions} names {len(unknown)} images that the split lacks: {sorted(unknown)[:10]}")
    if not queries:
        raise DatasetError(f"{captions} holds no queries")
    return Dataset(root.resolve().name, split, queries, images)


def _query(entry: Any, position: int, source: Path) -> Query:
    try:
        query = Query(
            id=int(entry["pairid"]),
            reference=entry["reference"],
            text=entry["caption"],
            target=entry["target_hard"],
            group=tuple(entry["img_set"]["members"]),
            edit=entry.get("edit", ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{source}, entry {position}: expected CIRR's keys, but {error!r}") from error
    strings = (query.reference, query.text, query.target, query.edit, *query.group)
    if wrong := [value for value in strings if not isinstance(value, str)]:
        raise DatasetError(f"{source}, entry {position}: expected names and a caption as strings, found {wrong[0]!r}")
    return query


def _read_json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, kind):
        raise DatasetError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def dataset_root(dataset: str | Path) -> Path:
    """Return the folder of a data set: of the built-in one by the word ``builtin``.

    DatasetError when it isn't there.
    """
    if str(dataset) == "builtin":
        return builtin_dataset()
    path = Path(dataset)
    if not path.is_dir():
        raise DatasetError(f"--dataset {path} is no folder; expected a data set in CIRR's format")
    return path


def builtin_dataset() -> Path:
    """Return the folder of emoji-cir, the data set inside the repository.

    DatasetError when the toolkit was installed without its repository.
    """
    path = Path(__file__).resolve().parent.parent / "data" / BUILTIN
    if not path.is_dir():
        raise DatasetError("the built-in data set is only in the repository; pass --dataset DIR")
    return path
