"""A bundle: the folder that carries a model from the exporter to the runtime.

`docs/bundle.md` is the format. Nothing in a bundle is trusted before it was checked, and nothing in it is code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from dra_runtime.errors import BundleError, BundleFormatError, BundleIntegrityError, UsageError
from dra_runtime.manifest import (
    MANIFEST,
    SELFTEST,
    FileEntry,
    GraphSpec,
    Manifest,
    TensorSpec,
    TokenizerSpec,
    bundle_id_of,
    manifest_from_dict,
    manifest_to_dict,
    manifest_values_from_json,
)
from dra_runtime.regular_file import open_regular, read_regular, size_of
from dra_runtime.selftest_file import check_selftest, read_arrays

__all__ = [
    "Bundle",
    "FileEntry",
    "GraphSpec",
    "Integrity",
    "Manifest",
    "TensorSpec",
    "TokenizerSpec",
    "bundle_id_of",
    "manifest_from_dict",
    "manifest_to_dict",
]

Integrity = Literal["hash", "size"]

MAX_MANIFEST = 4 * 2**20  #: bytes


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; safe to share between threads.

    Its files are checked once, when it is opened, and read later: nobody may write into an opened bundle.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, integrity: Integrity = "hash") -> Bundle:
        """Open a bundle and check it.

        Parameters
        ----------
        path
            The bundle's folder.
        integrity
            ``"hash"`` reads every file and compares its SHA-256; ``"size"`` compares sizes only, for a bundle that was
            checked before.

        Raises
        ------
        BundleFormatError
            The folder or its manifest breaks the format.
        BundleIntegrityError
            A file is missing, or isn't the one that the manifest names.
        """
        path = Path(path)
        if integrity not in ("hash", "size"):
            raise UsageError(f"integrity is {integrity!r}; give 'hash' or 'size'")
        values = manifest_values_from_json(_read_manifest(path))
        manifest = manifest_from_dict(values)
        # of the values as they stand: 1 and 1.0 are the same number, but not the same bytes
        if bundle_id_of(values) != manifest.bundle_id:
            raise BundleIntegrityError(
                f"{path / MANIFEST} was changed: its content gives another bundle_id than the one it states; "
                "export the bundle again"
            )
        for name, entry in manifest.files.items():
            _check_file(path / name, entry, integrity)
        return cls(path, manifest)

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest names.

        Raises
        ------
        UsageError
            The manifest names no such file.
        """
        if name not in self.manifest.files:
            raise UsageError(f"{self.path} names no file {name!r}; it has {', '.join(sorted(self.manifest.files))}")
        return self.path / name

    def selftest(self) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs and the exporter's reference outputs that a host can check itself with.

        images uint8 (n, H, W, 3), texts (n,), tokens int32 (n, length), and float32 image_features, text_features and
        queries (n, D); where the bundle has a reranker also relation_features (n, D) of the pairs (i, (i + 1) mod n).

        Raises
        ------
        BundleFormatError
            The file holds something else.
        """
        manifest = self.manifest
        arrays = read_arrays(self.file(SELFTEST))
        check_selftest(arrays, manifest.dim, manifest.tokenizer.context_length, "reranker" in manifest.graphs)
        return arrays


def _read_manifest(path: Path) -> bytes:
    manifest = path / MANIFEST
    try:
        if not path.is_dir():
            found = "a file, not a folder" if path.exists() else "no such folder"
            raise BundleError(f"{path}: {found}; give a bundle made by dra-export onnx")
        return read_regular(manifest, MAX_MANIFEST)
    except FileNotFoundError as error:
        raise BundleFormatError(
            f"{path}: no bundle, it has no file {MANIFEST}; make one with dra-export onnx"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: too long, or a zero byte in the path
        raise BundleFormatError(f"{manifest}: can't be read ({_line(error)}); export the bundle again") from error


def _check_file(path: Path, entry: FileEntry, integrity: Integrity) -> None:
    try:
        with open_regular(path) as file:
            size = size_of(file)
            if size != entry.size:
                raise BundleIntegrityError(
                    f"{path}: {size} bytes where the manifest says {entry.size}; copy the bundle again"
                )
            if integrity == "hash":
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != entry.sha256:
                    raise BundleIntegrityError(
                        f"{path}: its SHA-256 starts with {digest[:12]} where the manifest says {entry.sha256[:12]}; "
                        "copy the bundle again"
                    )
    except FileNotFoundError as error:
        raise BundleIntegrityError(f"{path}: missing, though the manifest names it; copy the bundle again") from error
    except OSError as error:
        raise BundleIntegrityError(
            f"{path}: can't be read ({_line(error)}); put the file itself into the bundle"
        ) from error


def _line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
