"""Read selftest.npz: a zip archive of plain arrays, unpacked with every size checked before memory is taken.

`numpy.load` would take what an array's header asks for before it looks at the data, and `zipfile` what the archive's
directory asks for, so both are looked at here first.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import BundleFormatError
from dra_runtime.regular_file import open_regular, size_of

if TYPE_CHECKING:
    import zipfile

MAX_BYTES = 256 * 2**20  #: of the file, and of all arrays unpacked
MAX_COUNT = 256  #: inputs; the exporter writes a few
_MAX_MEMBERS = 16
_END = struct.Struct("<4s4H2LH")  # the zip format's end-of-directory record: entries at 4, size of the directory at 5


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name.

    Raises
    ------
    BundleFormatError
        The file is damaged, holds something else than plain arrays, or unpacks to more than `MAX_BYTES`.
    """
    import zipfile  # only here, and slow to import

    try:
        with open_regular(path) as file:
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                unpacked = sum(member.file_size for member in members)
                if unpacked > MAX_BYTES:
                    raise ValueError(f"{unpacked} bytes unpacked, more than the {MAX_BYTES} allowed")
                arrays = {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
            if len(arrays) != len(members):
                raise ValueError("an array stands twice")
            return arrays
    # zipfile and numpy raise many classes on damaged bytes
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")[:300] or type(error).__name__
        raise BundleFormatError(f"{path}: can't be read ({reason}); export the bundle again") from error


def check_selftest(arrays: dict[str, npt.NDArray[Any]], dim: int, context_length: int, reranker: bool) -> None:
    """Raise BundleFormatError unless the arrays are a selftest's, as docs/bundle.md states it."""
    names = {"images", "texts", "tokens", "image_features", "text_features", "queries"}
    if reranker:
        names.add("relation_features")
    if set(arrays) != names:
        raise BundleFormatError(f"the selftest holds {sorted(arrays)}; expected {sorted(names)}")
    count = len(arrays["texts"]) if arrays["texts"].ndim else 0
    if not 1 <= count <= MAX_COUNT:
        raise BundleFormatError(f"the selftest holds {count} texts; expected 1 to {MAX_COUNT}")
    kinds = {"images": ("u1", 4), "texts": ("U", 1), "tokens": ("i4", 2)}
    for name, array in arrays.items():
        dtype, ndim = kinds.get(name, ("f4", 2))
        right_type = array.dtype.kind == "U" if dtype == "U" else array.dtype == np.dtype(dtype)
        right_shape = array.ndim == ndim and len(array) == count and array.size > 0
        if name == "images":
            right_shape = right_shape and array.shape[3] == 3
        elif name == "tokens":
            right_shape = right_shape and array.shape[1] <= context_length
        elif dtype == "f4":
            right_shape = right_shape and array.shape[1] == dim and bool(np.isfinite(array).all())
        if not (right_type and right_shape):
            raise BundleFormatError(
                f"the selftest's {name} is {array.dtype} {array.shape}; expected what docs/bundle.md says"
            )
    texts = arrays["texts"]
    codes = np.frombuffer(texts.tobytes(), np.dtype("u4").newbyteorder(texts.dtype.byteorder))
    if bool(((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any()):  # numpy would raise SystemError
        raise BundleFormatError("the selftest's texts are no Unicode; export the bundle again")


def _check_directory(file: io.BufferedReader) -> None:
    """Refuse an archive whose directory is longer than a selftest's: reading it takes a hundred times its size."""
    size = size_of(file)
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes, more than the {MAX_BYTES} allowed")
    file.seek(max(0, size - 20 - _END.size))
    tail = file.read()
    if len(tail) < _END.size:
        raise ValueError("no zip archive")
    end = _END.unpack(tail[-_END.size :])
    if end[0] != b"PK\5\6" or end[7] != 0 or tail.startswith(b"PK\6\7"):  # the last marks the 64-bit form
        raise ValueError("no plain zip archive")
    if end[4] > _MAX_MEMBERS or end[5] > _MAX_MEMBERS * 1024:
        raise ValueError(f"{end[4]} arrays, {end[5]} bytes of directory; expected at most {_MAX_MEMBERS} arrays")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> npt.NDArray[Any]:
    if member.compress_type not in (0, 8):  # zipfile unpacks others, such as bzip2, in steps without bound
        raise ValueError(f"{member.filename} is compressed otherwise than by deflate")
    with archive.open(member) as file:
        content = io.BytesIO(file.read(member.file_size + 1))
    version = np.lib.format.read_magic(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read_header[version](content, max_header_size=1024)
    if dtype.hasobject or dtype.kind not in "uifU" or dtype.itemsize == 0:
        raise ValueError(f"{member.filename} holds {dtype}")
    data = content.getbuffer()[content.tell() :]
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{member.filename} has {len(data)} bytes for the shape {shape} of {dtype}")
    if len(shape) > 4:
        raise ValueError(f"{member.filename} has {len(shape)} dimensions")
    flat = np.frombuffer(data, dtype)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
