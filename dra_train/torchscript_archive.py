"""Read the tensors of a TorchScript archive without running the program inside it.

OpenAI publishes CLIP as TorchScript. ``torch.jit.load`` would compile such a file's code and run what of it belongs to
loading (``__setstate__``), and TorchScript's own operators can write files: PyTorch's documentation says to treat such
archives as programs. ``torch.load(weights_only=True)`` refuses them. But the tensors lie in the archive as in any other
checkpoint: a zip of plain storages, and a pickle that says which storage is which parameter of which module. So that
pickle is read here, with every class name in it answered by something inert, and the code is never looked at.
"""

from __future__ import annotations

import pickle
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
        with archive.open(f"{root}data.pkl") as file:
            module = _TensorUnpickler(file, archive, root).load()
    if not isinstance(module, dict):
        raise ValueError("the archive's program is no module")
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors, set())
    return tensors


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain values; a module becomes a dict of its attributes, and any other name is refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
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
            entry = self._archive.getinfo(f"{self._root}data/{key}")
            size = torch.empty((), dtype=dtype).element_size() * count
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < size:  # compressed could be a bomb
                raise ValueError(f"storage {key} is compressed or too short")
            data = bytearray(self._archive.read(entry))
            self._storages[key] = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0)
        return self._storages[key]


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
