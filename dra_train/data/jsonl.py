"""Read own data: JSON lines with reference, text and target, and a folder of images (docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from dra_runtime.errors import DatasetError, GalleryError
from dra_runtime.folder import images_of_folder
from dra_train.data.read import name_of, read_json_lines, text_of
from dra_train.data.types import Dataset, Query

USUAL_SPLITS = ("train", "val", "test")  #: a file of such a name holds that split
IMAGES = "images"  #: the folder beside the file whose images are the gallery

Line = tuple[int, Mapping[str, Any]]


def is_jsonl(path: Path) -> bool:
    """Tell whether a path is a JSON-lines file, or a folder with one."""
    return path.suffix == ".jsonl" or any(True for _ in path.glob("*.jsonl"))


def jsonl_splits(path: Path) -> list[str]:
    """List the splits that a file's lines or a folder's file names name; none where they name none."""
    if path.is_dir() and len(files := sorted(path.glob("*.jsonl"))) > 1:
        return [file.stem for file in files]
    source = _source(path, "")
    named = {split for _, entry in read_json_lines(source) if isinstance(split := entry.get("split"), str)}
    return sorted(named) or ([source.stem] if source.stem in USUAL_SPLITS else [])


def read_jsonl(path: Path, split: str, image_root: Path | None = None) -> Dataset:
    """Read one split of a JSON-lines file, or of a folder with ``SPLIT.jsonl`` or a single file.

    The gallery is every image below ``image_root``, or below ``images`` beside the file; without either, the paths
    start at the file's folder and the gallery is the images that the file names. No image is opened. DatasetError says
    which line is wrong and why.
    """
    source = _source(path, split)
    name = (path if path.is_dir() else path.with_suffix("")).resolve().name
    root = image_root or (source.parent / IMAGES if (source.parent / IMAGES).is_dir() else None)
    lines = _lines_of_split(read_json_lines(source), source, split)
    groups = _named_groups(lines, source)
    queries = tuple(_query(entry, number, source, groups) for number, entry in lines)
    if not queries:
        raise DatasetError(f"{source} holds no queries")
    named = dict.fromkeys(name for q in queries for name in (q.reference, q.target, *q.group))
    images = {name: (root or source.parent) / name for name in named}
    if root:
        images |= _images_below(root)
    return Dataset(name, split, queries, dict(sorted(images.items())), format="jsonl")


def _source(path: Path, split: str) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.jsonl"))
    if path / f"{split}.jsonl" in files:
        return path / f"{split}.jsonl"
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "no .jsonl file"
        raise DatasetError(f"{path} has no split {split!r}: expected {split}.jsonl or a single .jsonl, found {found}")
    return files[0]


def _lines_of_split(lines: list[Line], source: Path, split: str) -> list[Line]:
    """Keep the lines whose ``split`` is the asked-for one; where no line has one, the file is one split."""
    if not any("split" in entry for _, entry in lines):
        if source.stem in USUAL_SPLITS and source.stem != split:
            raise DatasetError(f"{source} is the split {source.stem!r}, but {split!r} was asked for; pass another file")
        return lines
    for number, entry in lines:
        if not isinstance(entry.get("split"), str):
            raise DatasetError(f"{source}, line {number}: no split, but other lines name theirs; add it")
    kept = [(number, entry) for number, entry in lines if entry["split"] == split]
    if not kept:
        found = sorted({entry["split"] for _, entry in lines})
        raise DatasetError(f"{source} has no split {split!r}; it has {', '.join(found)}")
    return kept


def _query(entry: Mapping[str, Any], number: int, source: Path, groups: Mapping[str, tuple[str, ...]]) -> Query:
    where = f"{source}, line {number}"
    if missing := [key for key in ("reference", "text", "target") if key not in entry]:
        raise DatasetError(f"{where}: no {missing[0]!r}; expected reference, text and target")
    reference, target = (image_path(entry[key], where) for key in ("reference", "target"))
    group = entry.get("group") or ()
    if isinstance(group, str):
        members = groups.get(group, ())
    elif isinstance(group, list | tuple):
        members = tuple(dict.fromkeys([reference, target, *(image_path(name, where) for name in group)]))
    else:
        raise DatasetError(f"{where}: group is a {type(group).__name__}; expected a list of paths, or a group's name")
    id = number if entry.get("id") is None else entry["id"]
    if type(id) not in (int, str):
        raise DatasetError(f"{where}: id is a {type(id).__name__}; expected a number or a string")
    return Query(
        id=id,
        reference=reference,
        text=text_of(entry["text"], where),
        target=target,
        group=members if group else (),
        edit=text_of(entry.get("edit") or "", where),
    )


def _named_groups(lines: Iterable[Line], source: Path) -> dict[str, tuple[str, ...]]:
    """Collect the images of the lines that name a group: those are its look-alikes."""
    members: dict[str, dict[str, None]] = {}
    for number, entry in lines:
        if isinstance(group := entry.get("group"), str) and group:
            for key in ("reference", "target"):
                members.setdefault(group, {})[image_path(entry.get(key), f"{source}, line {number}")] = None
    return {group: tuple(names) for group, names in members.items()}


def image_path(value: Any, where: str) -> str:
    """Return an image's path below the image root, in its plain form; DatasetError when it leads out of there."""
    path = PurePosixPath(name_of(value, where))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in str(path):
        raise DatasetError(f"{where}: {value!r} isn't a path below the image folder; write it relative, without ..")
    return str(path)


def _images_below(root: Path) -> dict[str, Path]:
    try:
        return {path.relative_to(root).as_posix(): path for path in images_of_folder(root).values()}
    except GalleryError as error:
        raise DatasetError(str(error)) from error
