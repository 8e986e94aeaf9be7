"""Write an ONNX file weight by weight.

Protobuf serialises a message into one buffer that grows by doubling: with weights of a gigabyte that is several
gigabytes of memory. A message on disk is the sequence of its fields, in any order, so the weights can be written one
after the other behind the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx

Message = onnx.ModelProto | onnx.GraphProto

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` to ``path``: the same bytes for the same model."""
    rest, graph = onnx.ModelProto(), onnx.GraphProto()
    _copy_fields(model, rest, without=_GRAPH)
    _copy_fields(model.graph, graph, without=_INITIALIZER)
    bare = graph.SerializeToString(deterministic=True)
    weights = model.graph.initializer
    length = len(bare) + sum(len(_head(_INITIALIZER, size)) + size for size in (w.ByteSize() for w in weights))
    with path.open("wb") as file:
        file.write(rest.SerializeToString(deterministic=True))
        file.write(_head(_GRAPH, length))
        file.write(bare)
        for weight in weights:
            _write_field(file, _INITIALIZER, weight.SerializeToString(deterministic=True))


def _copy_fields(source: Message, target: Message, without: int) -> None:
    """Copy all fields that are set but one; in a model and its graph they are plain values or lists."""
    for field, value in source.ListFields():
        if field.number == without:
            continue
        if isinstance(value, str | int):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend(value)


def _write_field(file: BinaryIO, number: int, content: bytes) -> None:
    file.write(_head(number, len(content)))
    file.write(content)


def _head(number: int, length: int) -> bytes:
    """Return what stands before a field of ``length`` bytes: its number with the wire type 2, and the length."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
