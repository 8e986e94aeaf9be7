"""The gallery's file: plain arrays in the safetensors container, read by memory map.

`docs/gallery.md` describes it. Writing goes to a temporary name beside the target, which then takes its place.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dra_runtime.bundle import Integrity
from dra_runtime.errors import GalleryError, GalleryFormatError, UsageError
from dra_runtime.vectors import Vectors

FORMAT, VERSION = "dra-gallery", "1"
MAX_HEADER = 65_536  #: bytes
MAX_ID = 1_024  #: characters
_METADATA = ("format", "version", "bundle_id", "bundle", "dim", "data_sha256")
_ROWS = 65_536


@dataclass(frozen=True)
class Header:
    """What stands before the arrays."""

    bundle_id: str
    bundle: str
    dim: int
    count: int
    data_sha256: str
    data_start: int
    ids_size: int


def write_gallery(path: Path, vectors: Vectors, bundle_id: str, bundle: Path, index: object = None) -> None:
    """Write a gallery file, replacing an older gallery.

    Raises
    ------
    UsageError
        ``path`` is something else than a gallery or a new name.
    GalleryError
        It can't be written.
    """
    check_target(path)
    ids = json.dumps(list(vectors.ids), ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    arrays = [np.ascontiguousarray(vectors.unit, "<f4"), np.ascontiguousarray(vectors.norms, "<f4")]
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data if array.size else b"")
    digest.update(ids)
    header = _header_bytes(vectors, len(ids), bundle_id, _hint(path, bundle), digest.hexdigest())
    try:
        with replacing(path) as file:
            file.write(header)
            for array in arrays:
                array.tofile(file)
            file.write(ids)
    except OSError as error:
        raise GalleryError(f"{path}: can't be written ({error.strerror or error}); nothing was changed") from error


def read_header(path: Path) -> Header:
    """Read and check what stands before the arrays.

    Raises
    ------
    GalleryFormatError
        The file is no gallery, or a damaged one.
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise GalleryFormatError(f"{path}: {found}; give a gallery made by dra-search index")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER:
                raise ValueError("no safetensors header")
            text = file.read(length)
        if len(text) != length or text[:1] != b"{":
            raise ValueError("no safetensors header")
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
        return _header(values, 8 + length, path.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GalleryFormatError(f"{path}: no gallery, or a damaged one ({_line(error)}); index again") from error


def read_gallery(path: Path, integrity: Integrity = "hash") -> tuple[Header, Vectors]:
    """Read a gallery; its vectors are mapped, not loaded.

    Parameters
    ----------
    path
        The file.
    integrity
        ``"hash"`` reads all of it once and compares its SHA-256; ``"size"`` checks what is cheap to check.

    Raises
    ------
    GalleryFormatError
        The file is no gallery, or a damaged one.
    """
    header = read_header(path)
    try:
        with path.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        data = data[header.data_start :]
        unit_size, norms_size = header.count * header.dim * 4, header.count * 4
        if len(data) != unit_size + norms_size + header.ids_size:
            raise ValueError("its length changed meanwhile")
        if integrity == "hash" and hashlib.sha256(data.data).hexdigest() != header.data_sha256:
            raise ValueError("its SHA-256 is another than the one it states")
        unit = data[:unit_size].view("<f4").reshape(header.count, header.dim)
        norms = data[unit_size : unit_size + norms_size].view("<f4")
        ids = _ids(data[unit_size + norms_size :].tobytes(), header.count)
        if not (np.isfinite(norms).all() and (norms >= 0).all()):
            raise ValueError("a norm is negative or not finite")
        if integrity == "hash":
            _check_unit_length(unit)
    except (OSError, ValueError, RecursionError) as error:
        raise GalleryFormatError(f"{path}: a damaged gallery ({_line(error)}); index again") from error
    return header, Vectors(ids, unit, norms)


def bundle_of(path: Path) -> Path:
    """Return where the bundle of a gallery lay when it was saved, seen from where the gallery lies now."""
    return Path(os.path.normpath(path.parent / read_header(path).bundle))


def check_target(path: Path) -> None:
    """Refuse to write a gallery over anything but a gallery.

    Raises
    ------
    UsageError
        Something else stands there, or the folder doesn't exist.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder {path.parent} doesn't exist; make it first")
    if path.is_symlink() or path.exists():
        try:
            read_header(path)
        except GalleryFormatError as error:
            raise UsageError(f"{path} exists and is no gallery; give another name, or remove it first") from error


def check_id(value: object) -> str:
    """Return an id, or raise UsageError if it can't be one."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID:
        raise UsageError(f"{value!r:.80} is no id; give a text of 1 to {MAX_ID} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the id {value!r:.80} isn't valid Unicode; rename it") from error
    return value


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when all went well, and vanishes otherwise."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _header_bytes(vectors: Vectors, ids_size: int, bundle_id: str, bundle: str, digest: str) -> bytes:
    count, dim = vectors.unit.shape
    ends = np.cumsum([count * dim * 4, count * 4, ids_size]).tolist()
    values = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "bundle_id": bundle_id,
            "bundle": bundle,
            "dim": str(dim),
            "data_sha256": digest,
        },
        "unit": {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, ends[0]]},
        "norms": {"dtype": "F32", "shape": [count], "data_offsets": [ends[0], ends[1]]},
        "ids": {"dtype": "U8", "shape": [ids_size], "data_offsets": [ends[1], ends[2]]},
    }
    text = json.dumps(values, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8, as the container recommends
    return len(text).to_bytes(8, "little") + text


def _header(values: dict[str, Any], data_start: int, file_size: int) -> Header:
    if set(values) != {"__metadata__", "unit", "norms", "ids"}:
        raise ValueError("other arrays than a gallery's")
    metadata = values["__metadata__"]
    if metadata["format"] != FORMAT:
        raise ValueError("other arrays than a gallery's")
    if metadata["version"] != VERSION:
        raise ValueError(f"its version is {metadata['version']!r:.20} where this toolkit reads {VERSION}")
    if set(metadata) != set(_METADATA) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("other metadata than a gallery's")
    count, dim = values["unit"]["shape"]
    (ids_size,) = values["ids"]["shape"]
    if not all(type(n) is int and n >= 0 for n in (count, dim, ids_size)) or dim < 1 or metadata["dim"] != str(dim):
        raise ValueError("impossible shapes")
    offset = 0
    for name, dtype, shape, size in (
        ("unit", "F32", [count, dim], count * dim * 4),
        ("norms", "F32", [count], count * 4),
        ("ids", "U8", [ids_size], ids_size),
    ):
        if values[name] != {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}:
            raise ValueError(f"impossible shape or place of {name}")
        offset += size
    if data_start + offset != file_size:
        raise ValueError(f"{file_size} bytes where its header says {data_start + offset}")
    return Header(
        bundle_id=metadata["bundle_id"],
        bundle=metadata["bundle"],
        dim=dim,
        count=count,
        data_sha256=metadata["data_sha256"],
        data_start=data_start,
        ids_size=ids_size,
    )


def _ids(text: bytes, count: int) -> tuple[str, ...]:
    ids = json.loads(text.decode("utf-8"))
    if not isinstance(ids, list) or len(ids) != count:
        raise ValueError("not as many ids as vectors")
    try:
        checked = tuple(check_id(value) for value in ids)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if any(a >= b for a, b in itertools.pairwise(checked)):
        raise ValueError("ids out of order, or one twice")
    return checked


def _check_unit_length(unit: npt.NDArray[np.float32]) -> None:
    for start in range(0, len(unit), _ROWS):
        lengths = np.linalg.norm(unit[start : start + _ROWS], axis=1)
        if not ((abs(lengths - 1) < 1e-3) | (lengths == 0)).all():
            raise ValueError("a vector isn't of unit length")


def _hint(path: Path, bundle: Path) -> str:
    """Return the bundle's place seen from the gallery's folder, so that both can be moved together."""
    folder, target = path.parent.resolve(), bundle.resolve()
    try:
        return Path(os.path.relpath(target, folder)).as_posix()
    except ValueError:  # on another drive
        return str(target)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands twice")
    return values


def _line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".")[:200] or type(error).__name__
