"""Look into an ONNX file, without the onnx package, whether it keeps all its weights inside.

A graph may point to weights in other files. Those would escape the manifest's hashes, and a path in them can lead
anywhere, so a bundle's graphs keep everything inside. An ONNX file is a protocol buffer; this walks over its fields
and skips the weights themselves, so that a large file costs no more than a small one. Field numbers: onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from dra_runtime.errors import BundleFormatError

Buffer = bytes | mmap.mmap

# Fields that lead towards tensors, as {message: {field number: message behind it}}
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_DEEPEST = 64


def require_weights_inside(path: Path) -> None:
    """Refuse an ONNX file that is damaged or points to weights in other files.

    Raises
    ------
    BundleFormatError
        It is or does.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            external = _points_outside(data, 0, len(data), "model", 0)
    except (OSError, ValueError, IndexError) as error:
        raise BundleFormatError(f"{path}: no ONNX file ({error}); export the bundle again") from error
    if external:
        raise BundleFormatError(f"{path}: keeps weights in other files; export it with all weights inside")


def _points_outside(data: Buffer, start: int, end: int, message: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    for number, wire_type, first, last in _fields(data, start, end):
        if message == "tensor":
            found = number == _EXTERNAL_DATA or (number == _DATA_LOCATION and wire_type == 0 and first != 0)
        else:
            child = _CHILDREN[message].get(number) if wire_type == 2 else None
            found = child is not None and _points_outside(data, first, last, child, depth + 1)
        if found:
            return True
    return False


def _fields(data: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, wire type and place of each field; for a plain number its value instead of the place."""
    while position < end:
        key, position = _varint(data, position)
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
