"""Look into an ONNX file, without the onnx package, whether it keeps all its weights inside.

A graph may point to weights in other files. Those would escape the manifest's hashes, and a path in them can lead
anywhere, so a bundle's graphs keep everything inside. An ONNX file is a protocol buffer; this walks over its fields
and skips the weights themselves, so that a large file costs no more than a small one. Field numbers: onnx.proto.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator
from pathlib import Path

from dra_runtime.errors import BundleFormatError
from dra_runtime.regular_file import open_regular

Buffer = bytes | mmap.mmap

# Fields that lead towards tensors, as {message: {field number: message behind it}}
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_OPERATOR = 4  # of a node: its name
_DEEPEST = 64
_MAX_FIELDS = 1_000_000  # a graph of ten thousand nodes has some hundred thousand


def require_weights_inside(path: Path) -> None:
    """Refuse an ONNX file that is damaged, points to weights in other files, or holds an engine in place of a graph.

    Raises
    ------
    BundleFormatError
        It is or does.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(data, 0, len(data), "model", 0, itertools.count())
    except (OSError, ValueError, IndexError) as error:
        raise BundleFormatError(f"{path}: no ONNX file ({error}); export the bundle again") from error
    except _PointsOutsideError as error:
        raise BundleFormatError(f"{path}: {error}; export it with all weights inside") from error


class _PointsOutsideError(Exception):
    """What a graph needs lies elsewhere."""


def _check(data: Buffer, start: int, end: int, message: str, depth: int, seen: Iterator[int]) -> None:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    children = _CHILDREN.get(message, {})
    for number, wire_type, first, last in _fields(data, start, end):
        if next(seen) > _MAX_FIELDS:
            raise ValueError(f"more than {_MAX_FIELDS} fields")
        if message == "tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and wire_type == 0 and first != 0):
                raise _PointsOutsideError("keeps weights in other files")
        elif wire_type == 2 and number in children:
            _check(data, first, last, children[number], depth + 1, seen)
        elif message == "node" and number == _OPERATOR and data[first:last] == b"EPContext":
            raise _PointsOutsideError("holds an engine, or points to one, in place of a graph")


def _fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type and place of each field; for a plain number its value instead of the place."""
    while position < end:
        key, position = _varint(data, position)
        if not 8 <= key < 2**32:  # other parsers drop what is beyond 32 bits, and would see another field
            raise ValueError(f"a field's key is {key}")
        number, wire_type = key >> 3, key & 7
        first = position
        if wire_type == 0:
            first, position = _varint(data, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 2:
            length, first = _varint(data, position)
            position = first + length
        elif wire_type == 5:
            position += 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if position > end:
            raise ValueError("truncated")
        yield number, wire_type, first, position


def _varint(data: Buffer, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than ten bytes")
