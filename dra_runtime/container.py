"""Named arrays in a safetensors file: written as a stream of blocks, read by memory map."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dra_runtime.regular_file import open_regular, size_of
from dra_runtime.strict_json import values_from_json

Array = npt.NDArray[Any]

MAX_HEADER = 65_536  #: bytes
MAX_DIMENSIONS = 8
ABANDONED = 60  #: seconds without a write after which a temporary file that nobody locks is removed
_TEMPORARY = re.compile(r"[0-9a-f]{12}\.tmp")
SHA256 = "data_sha256"  # the metadata that holds the hash of everything behind the header
_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
        "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
    }.items()
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 64  # of the first array in the file: a cache line


@dataclass(frozen=True)
class Column:
    """An array to be written: ``blocks()`` gives it piece by piece along its first dimension."""

    name: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Array]]


@dataclass(frozen=True)
class Entry:
    """Where an array stands in the file, in bytes from its begin."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Layout:
    """What a file's header says, in accord with the file's size."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    data_start: int
    file_size: int


def column_of(name: str, array: Array, rows: int = 65_536) -> Column:
    """Return an array in memory, or a memory map, as a column that is written ``rows`` rows at a time."""

    def blocks() -> Iterator[Array]:
        for first in range(0, len(array), rows):
            yield array[first : first + rows]

    return Column(name, array.dtype, array.shape, blocks)


def write_container(file: BinaryIO, columns: Sequence[Column], metadata: Mapping[str, str]) -> None:
    """Write columns one behind the other, in the order given, and their SHA-256 into the metadata.

    Memory stays that of one block. ``file`` must be empty and can be sought in.
    """
    header = _header(columns, {**metadata, SHA256: "0" * 64})
    file.write(header)
    digest = hashlib.sha256()
    for column in columns:
        dtype, written = np.dtype(column.dtype).newbyteorder("<"), 0
        for block in column.blocks():
            data = np.ascontiguousarray(block, dtype)
            if data.size:
                digest.update(data.data)
                data.tofile(file)
            written += data.nbytes
        assert written == math.prod(column.shape) * dtype.itemsize, column.name
    end = file.tell()
    file.seek(0)
    file.write(_header(columns, {**metadata, SHA256: digest.hexdigest()}))
    file.seek(end)


def read_layout(file: BufferedReader) -> Layout:
    """Read the header of a file that was just opened; ValueError, KeyError, TypeError or OSError where it has none.

    The arrays must fill the file without gaps, so nothing that is made from the layout is larger than the file.
    """
    size = size_of(file)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise ValueError("no safetensors header")
    text = file.read(length)
    if len(text) != length or text[:1] != b"{":
        raise ValueError("no safetensors header")
    values = values_from_json(text)
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata isn't texts")
    entries, offset = {}, 0
    for name, value in sorted(values.items(), key=_begin):
        if set(value) != {"dtype", "shape", "data_offsets"} or not isinstance(value["shape"], list):
            raise ValueError("not a safetensors header")
        dtype, shape = _DTYPES.get(str(value["dtype"])), value["shape"]
        if dtype is None or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
            raise ValueError(f"impossible type or shape of {name[:80]!r}")
        nbytes = math.prod(shape) * dtype.itemsize
        if value["data_offsets"] != [offset, offset + nbytes]:
            raise ValueError(f"impossible shape or place of {name[:80]!r}")
        entries[name] = Entry(dtype, tuple(shape), 8 + length + offset)
        offset += nbytes
    if 8 + length + offset != size:
        raise ValueError(f"{size} bytes where its header says {8 + length + offset}")
    return Layout(metadata, entries, 8 + length, size)


def map_arrays(file: BufferedReader, layout: Layout, check_hash: bool) -> dict[str, Array]:
    """Map a file's arrays; ValueError where its size changed meanwhile or, if asked to check it, its SHA-256 is off.

    ``file`` is the one that the layout was read from: another may have its name by now. It may be closed afterwards.
    Arrays can't be written to. What is not aligned to its own type is copied.
    """
    data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    if len(data) != layout.file_size:
        raise ValueError("its length changed meanwhile")
    if check_hash and hashlib.sha256(data[layout.data_start :].data).hexdigest() != layout.metadata[SHA256]:
        raise ValueError("its SHA-256 is another than the one it states")
    arrays = {}
    for name, entry in layout.entries.items():
        nbytes = math.prod(entry.shape) * entry.dtype.itemsize
        array = data[entry.start : entry.start + nbytes].view(entry.dtype).reshape(entry.shape)
        arrays[name] = array if array.flags.aligned else array.copy()
    return arrays


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when all went well, and vanishes otherwise.

    Both the content and the new name are on the disk when this returns. What a killed writer of the same name left
    behind is removed first.
    """
    prefix = f".{path.name[:100]}."
    _remove_abandoned(path.parent, prefix)
    temporary = path.with_name(f"{prefix}{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            _locked(file)  # until it is closed, or we are killed
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # not on Windows, whose file systems need no such thing
        with contextlib.suppress(OSError):  # some network file systems can't; the file is in place all the same
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove the temporary files that nobody writes any more: nobody holds their lock."""
    with contextlib.suppress(OSError):  # it is only tidying up
        for entry in folder.iterdir():
            is_ours = entry.name.startswith(prefix) and _TEMPORARY.fullmatch(entry.name[len(prefix) :])
            if is_ours and time.time() - entry.lstat().st_mtime > ABANDONED:
                with open_regular(entry) as file:
                    if _locked(file):
                        entry.unlink()


def _locked(file: BinaryIO) -> bool:
    """Lock an open file; False where somebody else has, or nobody can."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; some network file systems
        return False
    return True


def _header(columns: Sequence[Column], metadata: Mapping[str, str]) -> bytes:
    values: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for column in columns:
        dtype = np.dtype(column.dtype).newbyteorder("<")
        end = offset + math.prod(column.shape) * dtype.itemsize
        values[column.name] = {"dtype": _NAMES[dtype], "shape": list(column.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ValueError(
            f"its header would take {len(text)} bytes, more than {MAX_HEADER}; name keys or places shorter"
        )
    return len(text).to_bytes(8, "little") + text


def _begin(item: tuple[str, Any]) -> tuple[int, int]:
    begin, end = item[1]["data_offsets"]
    if type(begin) is not int or type(end) is not int:
        raise ValueError("a place that is no number")
    return begin, end
