"""Metadata of images from a CSV or JSON Lines file: an id, and flat values by key."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dra_runtime.errors import UsageError
from dra_runtime.folder import FolderImage
from dra_runtime.metadata import Item, Value, check_keys, checked_item
from dra_runtime.strict_json import values_from_json

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})\Z", re.ASCII)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?\Z", re.ASCII)
_BOOLS = {"true": True, "false": False}


def read_metadata(path: Path) -> dict[str, Item]:
    """Read metadata by id.

    ``.csv`` (commas) and ``.tsv`` (tabs) have a header line with a column ``id``; an empty cell is no value. A column
    is whole numbers, numbers, or true and false, if all its cells are, and text otherwise: one "007" or "n/a" makes all
    of the column text. ``.jsonl`` has an object a line, with the key ``id``; null is no value. All are UTF-8.

    Raises
    ------
    UsageError
        The file can't be read; the line is named.
    """
    readers: dict[str, Callable[[Path], Iterator[tuple[int, str, Item]]]] = {
        ".csv": _rows_of_csv,
        ".tsv": _rows_of_csv,
        ".jsonl": _rows_of_jsonl,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: metadata comes from a .csv, .tsv or .jsonl file; give one of these")
    items: dict[str, Item] = {}
    keys: dict[str, None] = {}
    try:
        for line, name, item in reader(path):
            if name in items:
                raise UsageError(f"{path}, line {line}: the id {name!r:.80} stands there twice; keep one of them")
            items[name] = _checked(path, line, item)
            keys.update(dict.fromkeys(item))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{path}: can't be read ({reason}); give a UTF-8 file") from error
    check_keys(keys)
    if not items:
        raise UsageError(f"{path}: holds no metadata; give a line for each image")
    return items


def matched_metadata(
    images: Sequence[FolderImage], metadata: Mapping[str, Item], note: Callable[[str], None]
) -> dict[str, Item]:
    """Return metadata by id, where it may be by the file's path as well; say what fits no image, and which have none.

    Raises
    ------
    UsageError
        It fits no image at all.
    """
    if not images:
        raise UsageError("no image has a name that can be an id, so the metadata is nobody's; rename them")
    ids = {image.name: image.id for image in images} | {image.id: image.id for image in images}
    unknown = [name for name in metadata if name not in ids]
    found = {ids[name]: item for name, item in metadata.items() if name in ids}
    if not found:
        like = f", such as {unknown[0]!r:.80}," if unknown else ""
        raise UsageError(
            f"none of the {len(metadata):,} ids with metadata{like} is an image's; these look like {images[0].id!r:.80}"
        )
    if unknown:
        note(f"metadata: {len(unknown):,} of {len(metadata):,} ids are no image's, such as {unknown[0]!r:.80}")
    if missing := [image.id for image in images if image.id not in found]:
        note(f"metadata: {len(missing):,} of {len(images):,} images have none, such as {missing[0]!r:.80}")
    return found


def _rows_of_csv(path: Path) -> Iterator[tuple[int, str, Item]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        header = [name.strip() for name in next(reader, [])]
        if "id" not in header or len(set(header)) != len(header) or "" in header:
            raise UsageError(
                f"{path}: its columns are {', '.join(header)[:80]!r}; give different names, one of them id"
            )
        place = header.index("id")
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise UsageError(f"{path}, line {reader.line_num}: {len(row)} cells where the header has {len(header)}")
            if row:
                rows.append((reader.line_num, row))
    kinds = [_kind_of([row[column] for _, row in rows if row[column]]) for column in range(len(header))]
    for line, row in rows:
        item = {
            key: kind(cell)
            for column, (key, kind, cell) in enumerate(zip(header, kinds, row, strict=True))
            if cell and column != place
        }
        yield line, row[place], item


def _kind_of(cells: Sequence[str]) -> Callable[[str], Value]:
    """Return what turns a column's cells into values."""
    if all(_WHOLE.match(cell) for cell in cells):
        return int
    if all(_NUMBER.match(cell) for cell in cells):
        return float
    if all(cell.lower() in _BOOLS for cell in cells):
        return lambda cell: _BOOLS[cell.lower()]
    return str


def _rows_of_jsonl(path: Path) -> Iterator[tuple[int, str, Item]]:
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                values = values_from_json(text.strip().removeprefix(b"\xef\xbb\xbf"))
            except (ValueError, json.JSONDecodeError) as error:
                raise UsageError(f"{path}, line {line}: no JSON ({error}); give an object a line") from error
            if not isinstance(values, dict) or not isinstance(values.get("id"), str):
                raise UsageError(f"{path}, line {line}: no object with a text as its id; give one a line")
            yield line, values.pop("id"), {key: value for key, value in values.items() if value is not None}


def _checked(path: Path, line: int, item: Item) -> Item:
    try:
        return checked_item(item)
    except UsageError as error:
        raise UsageError(f"{path}, line {line}: {error}") from error
