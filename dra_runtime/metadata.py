"""What is known of each image besides its vector: flat values by key, kept in columns so that a filter is quick."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryFormatError, UsageError
from dra_runtime.strict_json import values_from_json

Value = str | int | float | bool | list[str]
Item = Mapping[str, Value]  # the metadata of one image
Where = Mapping[str, Any]  # a value, or a list of allowed ones, for each key

MAX_KEYS = 64  #: keys in a gallery
MAX_KEY = 64  #: characters of a key
MAX_TEXT = 4_096  #: characters of a text
MAX_LIST = 64  #: texts in a list
MAX_ALLOWED = 100_000  #: values that a filter may list for a key
_NONE = -1


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one key.

    ``codes`` (N,) int32 are places in `values`, -1 where an image lacks the key; ``encoded`` is the JSON list of these
    values in UTF-8, as bytes or an array of them. It is read when it is first needed.
    """

    codes: npt.NDArray[np.int32]
    encoded: bytes | npt.NDArray[np.uint8]

    @cached_property
    def values(self) -> list[Value]:
        """The different values, once they and the codes are found sound; GalleryFormatError otherwise."""
        try:
            values = values_from_json(bytes(self.encoded))
            if not isinstance(values, list):
                raise ValueError("no list of values")
            for value in values:
                _checked_value("metadata", value)
            if len(self.codes) and not (self.codes.min() >= _NONE and self.codes.max() < len(values)):
                raise ValueError("a code without a value")
        except (ValueError, UsageError) as error:
            raise GalleryFormatError(f"the gallery's metadata is damaged ({error}); index again") from error
        return values

    @cached_property
    def _codes_by_value(self) -> dict[tuple[bool, Any], list[int]]:
        codes: dict[tuple[bool, Any], list[int]] = {}
        for code, value in enumerate(self.values):
            for part in value if isinstance(value, list) else [value]:
                codes.setdefault(_comparable(part), []).append(code)
        return codes

    def allowed(self, wanted: Sequence[Value]) -> npt.NDArray[np.bool_]:
        """Return for each row (N,) whether its value, or one text of its list, is among the wanted."""
        table = np.zeros(len(self.values) + 1, np.bool_)  # the last one is where -1 points: no value
        for value in wanted:
            table[self._codes_by_value.get(_comparable(value), [])] = True
        allowed: npt.NDArray[np.bool_] = table[self.codes]
        return allowed


@dataclass(frozen=True, eq=False)
class Metadata:
    """The metadata of N images by key; an image has those keys where its code isn't -1."""

    columns: Mapping[str, Column]

    def item(self, row: int) -> dict[str, Value]:
        """Return the metadata of one row."""
        found: dict[str, Value] = {}
        for key, column in self.columns.items():
            code = int(column.codes[row])
            if code != _NONE:
                value = column.values[code]
                found[key] = list(value) if isinstance(value, list) else value
        return found

    def check(self) -> None:
        """Read all of it; GalleryFormatError where it is damaged."""
        for column in self.columns.values():
            assert column.values is not None


def metadata_from_items(items: Sequence[Item | None]) -> Metadata | None:
    """Make columns of the metadata of N images, None for an image without.

    Returns
    -------
    Metadata or None
        None where no image has any.

    Raises
    ------
    UsageError
        A key or a value is none that a gallery can hold.
    """
    codes: dict[str, npt.NDArray[np.int32]] = {}
    values: dict[str, dict[object, int]] = {}
    for row, item in enumerate(items):
        for key, value in checked_item(item or {}).items():
            if key not in codes:
                check_keys([*codes, key])  # before a column takes memory
                codes[key], values[key] = np.full(len(items), _NONE, np.int32), {}
            codes[key][row] = values[key].setdefault(_identity(value), len(values[key]))
    return Metadata({k: Column(codes[k], _encoded(list(values[k]))) for k in sorted(codes)}) if codes else None


def checked_item(item: object) -> dict[str, Value]:
    """Return one image's metadata as plain values, or raise UsageError."""
    if not isinstance(item, Mapping):
        raise UsageError(f"metadata {item!r:.80} is no dict; give values by key, such as {{'category': 'dress'}}")
    return {check_key(key): _checked_value(key, value) for key, value in item.items()}


def check_key(key: object) -> str:
    """Return a key of metadata, or raise UsageError if it can't be one."""
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or not key.isprintable():
        raise UsageError(f"{key!r:.80} is no key of metadata; give a printable text of 1 to {MAX_KEY} characters")
    return str(key)


def check_keys(keys: Collection[str]) -> None:
    """Refuse more keys than a gallery can hold."""
    if len(keys) > MAX_KEYS:
        raise UsageError(f"{len(keys)} different keys of metadata; a gallery holds at most {MAX_KEYS}")


def checked_where(where: object) -> dict[str, list[Value]]:
    """Return the allowed values of each key of a filter, or raise UsageError."""
    if not isinstance(where, Mapping):
        raise UsageError(f"where is {where!r:.80}; give values by key, such as {{'category': 'dress'}}, or None")
    wanted: dict[str, list[Value]] = {}
    for key, value in where.items():
        values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
        if not 0 < len(values) <= MAX_ALLOWED:
            raise UsageError(f"where[{key!r:.80}] lists {len(values)} values; give 1 to {MAX_ALLOWED}")
        wanted[check_key(key)] = [_checked_value(key, one, "where") for one in values]
    return wanted


def allowed_rows(metadata: Metadata | None, count: int, wanted: Mapping[str, Sequence[Value]]) -> npt.NDArray[np.bool_]:
    """Return which of ``count`` rows have an allowed value for every key of `checked_where`'s filter: bool (N,)."""
    allowed = np.ones(count, np.bool_)
    for key, values in wanted.items():
        column = metadata.columns.get(key) if metadata else None
        if column is None:
            return np.zeros(count, np.bool_)
        allowed &= column.allowed(values)
    return allowed


def joined(
    first: Metadata | None, second: Metadata | None, counts: tuple[int, int], order: npt.NDArray[np.int64]
) -> Metadata | None:
    """Join the metadata of two sets of rows: row i of the result is row ``order[i]`` of the first, then the second."""
    keys = sorted({*(first.columns if first else ()), *(second.columns if second else ())})
    columns = {}
    for key in keys:
        values: dict[object, int] = {}
        parts = []
        for metadata, count in zip((first, second), counts, strict=True):
            column = metadata.columns.get(key) if metadata else None
            if column is None:
                parts.append(np.full(count, _NONE, np.int32))
                continue
            table = [values.setdefault(_identity(value), len(values)) for value in column.values]
            parts.append(np.asarray([*table, _NONE], np.int32)[column.codes])
        codes = np.concatenate(parts)[order]
        kept = np.unique(codes[codes != _NONE])  # values that no row has any more go
        if len(kept):
            table_of_kept = np.full(len(values) + 1, _NONE, np.int32)
            table_of_kept[kept] = np.arange(len(kept), dtype=np.int32)
            listed = list(values)
            columns[key] = Column(table_of_kept[codes], _encoded([listed[code] for code in kept]))
    return Metadata(columns) if columns else None


def _checked_value(key: object, value: object, argument: str = "metadata") -> Value:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) <= MAX_TEXT and _is_unicode(value):
        return str(value)
    if isinstance(value, int) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if argument == "metadata" and isinstance(value, list | tuple) and len(value) <= MAX_LIST:
        texts = [_checked_value(key, text, argument) for text in value if isinstance(text, str)]
        if len(texts) == len(value):
            return [str(text) for text in texts]
    raise UsageError(
        f"{argument}[{key!r:.80}] is {value!r:.80}; give a text of at most {MAX_TEXT} characters, a finite number, "
        + (f"a bool, or a list of at most {MAX_LIST} texts" if argument == "metadata" else "a bool, or a list of these")
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _comparable(value: Any) -> tuple[bool, Any]:
    """Tell True from 1, which Python calls equal; 1 and 1.0 stay equal."""
    return (isinstance(value, bool), value)


def _identity(value: Value) -> tuple[str, Any]:
    """Tell apart all that JSON tells apart: 1, 1.0 and True."""
    return (type(value).__name__, tuple(value) if isinstance(value, list) else value)


def _encoded(identities: Sequence[Any]) -> bytes:
    return json.dumps([value for _, value in identities], ensure_ascii=False, separators=(",", ":")).encode("utf-8")
