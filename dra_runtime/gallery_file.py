"""The gallery's file: plain arrays in the safetensors container, read by memory map.

`docs/gallery.md` describes it. Writing goes to a temporary name beside the target, which then takes its place.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dra_runtime.bundle import Integrity
from dra_runtime.container import (
    SHA256,
    Column,
    Layout,
    column_of,
    map_arrays,
    read_layout,
    replacing,
    write_container,
)
from dra_runtime.errors import GalleryError, GalleryFormatError, UsageError
from dra_runtime.folder import IndexedFiles
from dra_runtime.gallery_index import IndexReport, StoredIndex, report_from_json, report_to_json
from dra_runtime.ids import PackedIds, check_order, check_packed
from dra_runtime.metadata import Column as MetadataColumn
from dra_runtime.metadata import Metadata, check_key, check_keys, joined
from dra_runtime.regular_file import open_regular
from dra_runtime.vectors import Array, Storage, Unit, Vectors, none_of, order_of, rows

FORMAT, VERSION = "dra-gallery", "2"
MAX_INDEX_ARRAYS = 64
_METADATA = {"format", "version", "bundle_id", "bundle", "dim", SHA256}
_CODES, _VALUES, _INDEX = "metadata.codes.", "metadata.values.", "index."
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_SIZES, _TIMES = "files.sizes", "files.mtimes_ns"
_ROWS = 16_384  # rows in memory at once
_BLOCK = 16 * 2**20  # bytes written at once


@dataclass(frozen=True)
class Header:
    """What a gallery's file says before its arrays.

    ``keys`` are its metadata's; ``tokens`` says whether it holds image tokens; ``index`` is None where it has none, and
    ``folder``, that of its images seen from the gallery's, where it doesn't know.
    """

    bundle_id: str
    bundle: str
    dim: int
    count: int
    storage: Storage
    keys: tuple[str, ...]
    tokens: bool
    index: IndexReport | None
    folder: str | None


@dataclass(frozen=True, eq=False)
class Contents:
    """All that a gallery's file holds, mapped; ``index`` and ``files`` are None where it has none."""

    header: Header
    vectors: Vectors
    index: StoredIndex | None
    files: IndexedFiles | None


def write_gallery(
    path: Path,
    vectors: Vectors,
    bundle_id: str,
    bundle: Path,
    index: StoredIndex | None = None,
    files: IndexedFiles | None = None,
) -> None:
    """Write a gallery file, replacing an older gallery.

    Arrays are read and written block by block, so memory maps stay on the disk. ``files`` are those of the rows, for a
    later `read_files`.

    Raises
    ------
    UsageError
        ``path`` is something else than a gallery or a new name.
    GalleryError
        It can't be written, or its ids aren't ascending.
    """
    write_parts(path, vectors, None, none_of(vectors), bundle_id, bundle, index, files)


def write_parts(
    path: Path,
    first: Vectors,
    alive: npt.NDArray[np.bool_] | None,
    second: Vectors,
    bundle_id: str,
    bundle: Path,
    index: StoredIndex | None = None,
    files: IndexedFiles | None = None,
) -> None:
    """Write what is alive of the first rows, and the second, as one gallery; see `write_gallery`.

    ``index`` and ``files`` are of the rows as they are written.
    """
    check_target(path)
    metadata = {"format": FORMAT, "version": VERSION, "bundle_id": bundle_id, "bundle": _hint(path, bundle)}
    metadata["dim"] = str(first.unit.shape[1])
    try:
        columns = _columns(first, alive, second)
        if files is not None:
            metadata["folder"] = _hint(path, files.folder)
            columns += [column_of(_SIZES, files.sizes), column_of(_TIMES, files.mtimes_ns)]
        if index is not None:
            metadata["index"] = report_to_json(index.report)
            columns += [column_of(_INDEX + name, array) for name, array in sorted(index.arrays.items())]
        with replacing(path) as file:
            write_container(file, columns, metadata)
    except OSError as error:
        raise GalleryError(f"{path}: can't be written ({error.strerror or error}); nothing was changed") from error
    except ValueError as error:
        raise GalleryError(f"{path}: can't be written ({_line(error)}); nothing was changed") from error


def read_header(path: Path) -> Header:
    """Read and check what stands before the arrays.

    Raises
    ------
    GalleryFormatError
        The file is no gallery, or a damaged one.
    """
    with _opened(path) as (_, header, _):
        return header


def read_gallery(path: Path, integrity: Integrity = "hash") -> tuple[Header, Vectors]:
    """Read a gallery; its vectors are mapped, not loaded.

    Parameters
    ----------
    path
        The file.
    integrity
        ``"hash"`` reads all of it once, compares its SHA-256 and checks everything. ``"size"`` checks shapes, ids and
        norms, in well under a second for a million images.

    Raises
    ------
    GalleryFormatError
        The file is no gallery, or a damaged one.
    """
    contents = read_contents(path, integrity)
    return contents.header, contents.vectors


def read_contents(path: Path, integrity: Integrity = "hash") -> Contents:
    """Read a gallery with its index, whose arrays are checked when it is first used, and its files.

    All of it is of one file, whoever replaces that meanwhile. Errors as for `read_gallery`.
    """
    with _opened(path) as (file, header, layout):
        arrays = map_arrays(file, layout, check_hash=integrity == "hash")
        check_packed(arrays["ids"], arrays["id_offsets"])
        ids = PackedIds(arrays["ids"], arrays["id_offsets"])
        norms = arrays["norms"]
        if len(norms) and not (norms.min() > 0 and norms.max() < np.inf):
            raise ValueError("a norm isn't positive and finite")
        columns = {key: MetadataColumn(arrays[_CODES + key], arrays[_VALUES + key]) for key in header.keys}
        metadata = Metadata(columns) if columns else None
        if "tokens" in arrays and not arrays["tokens"].size and len(ids):
            raise ValueError("tokens of no size")
        if integrity == "hash":
            check_order(ids)
            _check_unit_length(arrays["unit"])
            if metadata:
                metadata.check()
    vectors = Vectors(ids, arrays["unit"], norms, metadata, arrays.get("tokens"))
    stored = {name.removeprefix(_INDEX): array for name, array in arrays.items() if name.startswith(_INDEX)}
    index = None if header.index is None else StoredIndex(header.index, stored)
    return Contents(header, vectors, index, _files_of(path, header, arrays))


def read_files(path: Path) -> IndexedFiles | None:
    """Read which files a gallery was indexed from, or None where it doesn't say: `Gallery.save` keeps no account.

    Raises
    ------
    GalleryFormatError
        The file is no gallery, or a damaged one.
    """
    with _opened(path) as (file, header, layout):
        return _files_of(path, header, map_arrays(file, layout, check_hash=False))


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
            with open_regular(path, links=True) as file:
                is_gallery = read_layout(file).metadata.get("format") == FORMAT  # of any version
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            is_gallery = False
        if not is_gallery:
            raise UsageError(f"{path} exists and is no gallery; give another name, or remove it first")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BufferedReader, Header, Layout]]:
    """Open a gallery's file and read its header; whatever is found wrong meanwhile is a GalleryFormatError."""
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise GalleryFormatError(f"{path}: {found}; give a gallery made by dra-search index")
        with open_regular(path, links=True) as file:
            layout = read_layout(file)
            yield file, _header(layout), layout
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError) as error:
        raise GalleryFormatError(f"{path}: no gallery, or a damaged one ({_line(error)}); index again") from error


def _files_of(path: Path, header: Header, arrays: Mapping[str, Array]) -> IndexedFiles | None:
    if header.folder is None:
        return None
    folder = Path(os.path.normpath(path.parent / header.folder))
    return IndexedFiles(folder, arrays[_SIZES], arrays[_TIMES])


def _header(layout: Layout) -> Header:
    metadata, entries = layout.metadata, layout.entries
    if metadata.get("format") != FORMAT:
        raise ValueError("its format isn't a gallery's")
    if metadata.get("version") != VERSION:
        raise ValueError(f"its version is {metadata.get('version')!r:.20}, this program reads {VERSION}")
    if set(metadata) - {"index", "folder"} != _METADATA:
        raise ValueError("other metadata than a gallery's")
    if not _IDENTITY.fullmatch(metadata["bundle_id"]):
        raise ValueError("a bundle_id of another form than 64 hexadecimal digits")
    if not {"unit", "norms", "ids", "id_offsets"} <= set(entries):
        raise ValueError("other arrays than a gallery's")
    shape = entries["unit"].shape
    if len(shape) != 2 or shape[1] < 1 or metadata["dim"] != str(shape[1]):
        raise ValueError("impossible shapes")
    count, dim = shape
    keys = {name.removeprefix(_CODES) for name in entries if name.startswith(_CODES)}
    index_arrays = {name for name in entries if name.startswith(_INDEX)}
    check_keys(keys)
    if len(index_arrays) > MAX_INDEX_ARRAYS or (index_arrays and "index" not in metadata):
        raise ValueError("arrays of an index that it doesn't describe")
    allowed: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "unit": ("f2" if entries["unit"].dtype == np.float16 else "f4", (count, dim)),
        "norms": ("f4", (count,)),
        "id_offsets": ("i8", (count + 1,)),
        "ids": ("u1", (None,)),
        "tokens": ("f2", (count, None, None)),
    }
    if "folder" in metadata:
        allowed |= {_SIZES: ("i8", (count,)), _TIMES: ("i8", (count,))}
        if not {_SIZES, _TIMES} <= set(entries):
            raise ValueError("a folder without its files")
    index = report_from_json(metadata["index"]) if "index" in metadata else None
    if index is not None and index.images != count:
        raise ValueError(f"an index over {index.images} images where it holds {count}")
    for key in keys:
        check_key(key)
        allowed |= {_CODES + key: ("i4", (count,)), _VALUES + key: ("u1", (None,))}
    for name, entry in entries.items():
        if name in index_arrays:
            continue
        if name not in allowed:
            raise ValueError(f"other arrays than a gallery's: {name[:40]!r}")
        code, wanted = allowed[name]
        fits = len(entry.shape) == len(wanted) and all(
            n is None or n == m for n, m in zip(wanted, entry.shape, strict=False)
        )
        if entry.dtype != np.dtype(code) or not fits:
            raise ValueError(f"impossible type or shape of {name[:80]!r}")
    if any(_VALUES + key not in entries for key in keys):
        raise ValueError("metadata without values")
    return Header(
        bundle_id=metadata["bundle_id"],
        bundle=metadata["bundle"],
        dim=dim,
        count=count,
        storage="float16" if entries["unit"].dtype == np.float16 else "float32",
        keys=tuple(sorted(keys)),
        tokens="tokens" in entries,
        index=index,
        folder=metadata.get("folder"),
    )


def _columns(first: Vectors, alive: npt.NDArray[np.bool_] | None, second: Vectors) -> list[Column]:
    """Return the arrays of a file, in its order; ValueError where the ids aren't ascending."""
    order = order_of(first.ids, alive, second.ids)

    def column(name: str, ours: Array, others: Array) -> Column:
        def blocks() -> Iterator[Array]:
            count = max(1, _BLOCK // max(1, math.prod(ours.shape[1:]) * ours.dtype.itemsize))  # tokens are long
            for start in range(0, len(order), count):
                yield rows(ours, others, order[start : start + count])

        return Column(name, ours.dtype, (len(order), *ours.shape[1:]), blocks)

    def ids() -> Iterator[bytes]:
        if len(order) == len(first) and not len(second):
            yield from (name.encode("utf-8") for name in first.ids)
            return
        for row in order.tolist():
            yield (first.ids[row] if row < len(first) else second.ids[row - len(first)]).encode("utf-8")

    offsets = _offsets(ids(), len(order))
    columns = [
        column("unit", first.unit, second.unit),
        column("norms", first.norms, second.norms),
        column_of("id_offsets", offsets),
        Column("ids", np.uint8, (int(offsets[-1]),), lambda: _blocks_of(ids())),
    ]
    if first.tokens is not None and second.tokens is not None:
        columns.append(column("tokens", first.tokens, second.tokens))
    metadata = joined(first.metadata, second.metadata, (len(first), len(second)), order)
    for key, values in metadata.columns.items() if metadata else ():
        columns.append(column_of(_CODES + key, values.codes))
        columns.append(column_of(_VALUES + key, np.frombuffer(values.encoded, np.uint8)))
    return columns


def _offsets(ids: Iterator[bytes], count: int) -> npt.NDArray[np.int64]:
    offsets, before = np.zeros(count + 1, np.int64), b""
    for row, name in enumerate(ids, 1):
        if name <= before:
            raise ValueError("ids out of order, or one twice")
        offsets[row] = len(name)
        before = name
    return np.cumsum(offsets)


def _blocks_of(ids: Iterator[bytes]) -> Iterator[npt.NDArray[np.uint8]]:
    while block := b"".join(islice(ids, _ROWS)):
        yield np.frombuffer(block, np.uint8)


def _check_unit_length(unit: Unit) -> None:
    most = 2e-3 if unit.dtype == np.float16 else 1e-3
    for start in range(0, len(unit), _ROWS):
        lengths = np.linalg.norm(np.asarray(unit[start : start + _ROWS], np.float32), axis=1)
        if not (abs(lengths - 1) < most).all():
            raise ValueError("a vector isn't of unit length")


def _hint(path: Path, bundle: Path) -> str:
    """Return a folder's place seen from the gallery's, so that both can be moved together."""
    folder, target = path.parent.resolve(), bundle.resolve()
    try:
        hint = Path(os.path.relpath(target, folder)).as_posix()
    except ValueError:  # on another drive
        hint = str(target)
    try:
        hint.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are no text can't stand in a header; the gallery does without the hint
        return "."
    return hint


def _line(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".")[:200] or type(error).__name__
