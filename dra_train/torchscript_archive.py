"""Read the tensors of a TorchScript archive without running the program inside it.

OpenAI publishes CLIP as TorchScript. ``torch.jit.load`` would compile such a file's code and run what of it belongs to
loading (``__setstate__``), and TorchScript's own operators can write files: PyTorch's documentation says to treat such
archives as programs. ``torch.load(weights_only=True)`` refuses them. But the tensors lie in the archive as in any other
checkpoint: a zip of plain storages, and a pickle that says which storage is which parameter of which module. So that
pickle is read here, with every class name in it answered by something inert, and the code is never looked at.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# All that PyTorch writes. The others of the pickle machine could make objects of ours, or ask for any amount of memory.
_OPCODES = {
    *("PROTO", "STOP", "MARK", "POP", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "NEWOBJ"),
    *("REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
}
_LISTS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist", "restore_type_tag")


def is_torchscript(path: Path) -> bool:
    """Say whether a file is a TorchScript archive: a zip that holds a program's constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def tensors_from_torchscript(path: Path) -> dict[str, Tensor]:
    """Return every tensor of an archive's modules by its dotted name, as ``state_dict()`` of the program would.

    Tensors that are neither parameter nor buffer are among them. Raises ValueError, or nearly any other exception,
    where the archive is damaged or holds anything but modules of tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        program = _stored(archive, f"{root}data.pkl")
        _check_opcodes(program)
        module = _TensorUnpickler(program, archive, root).load()
    if not isinstance(module, dict):
        raise ValueError("the archive's program is no module")
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors, set())
    return tensors


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain values; a module becomes a dict of its attributes, and any other name is refused."""

    def __init__(self, program: bytes, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(program))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Answer a class name of the pickle with something that can't do harm."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _new_module_class()
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _new_rebuild()
        if module == "torch.jit._pickle" and name in _LISTS:
            return lambda values, *_: values
        raise ValueError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> Tensor:
        """Read one storage as a flat tensor, once."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise ValueError("a storage is of unknown kind")
        if key not in self._storages:
            data = bytearray(_stored(self._archive, f"{self._root}data/{key}"))
            if len(data) < dtype.itemsize * count:
                raise ValueError(f"storage {key} is too short")
            self._storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:  # PyTorch compresses nothing, and what unpacks could fill the memory
        raise ValueError(f"{name} is compressed")
    return archive.read(entry)


def _check_opcodes(program: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name not in _OPCODES:
            raise ValueError(f"it holds the pickle instruction {opcode.name}, which no weights need")
        # The memo is an array as long as the largest place in it.
        if opcode.name == "LONG_BINPUT" and (argument is None or argument > len(program)):
            raise ValueError("it numbers more objects than it can hold")


# Made anew for every name, so that a pickle that sets attributes on them changes nothing of ours.


def _new_module_class() -> type:
    class Module(dict):  # type: ignore[type-arg]
        def __setstate__(self, state: Any) -> None:
            if not isinstance(state, dict):
                raise ValueError("a module's state is no set of attributes")
            self.update(state)

    return Module


def _new_rebuild() -> Callable[..., Tensor]:
    def rebuild(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return storage.as_strided(tuple(size), tuple(stride), offset)  # checks that it stays inside the storage

    return rebuild


def _collect(module: dict[str, Any], prefix: str, tensors: dict[str, Tensor], seen: set[int]) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, value in module.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            _collect(value, f"{prefix}{name}.", tensors, seen)
