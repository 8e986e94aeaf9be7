"""What an index run can take over from the gallery that it replaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.folder import FolderImage, IndexedFiles
from dra_runtime.gallery_file import Header, read_contents
from dra_runtime.metadata import Item
from dra_runtime.rerank import check_stored_tokens
from dra_runtime.vectors import Storage, Vectors, row_of


@dataclass(frozen=True)
class OlderGallery:
    """A gallery whose vectors can be used again."""

    header: Header
    vectors: Vectors
    files: IndexedFiles

    def rows_of(self, images: Sequence[FolderImage]) -> dict[str, int]:
        """Return by id the rows of those images whose files have the size and time that they had then."""
        rows = {}
        for image in images:
            row = row_of(self.vectors.ids, image.id)
            if row is not None and (self.files.sizes[row], self.files.mtimes_ns[row]) == (image.size, image.mtime_ns):
                rows[image.id] = row
        return rows

    def arrays(self, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays ``unit``, ``norms`` and ``tokens`` by name."""
        return {name: getattr(self.vectors, name) for name in names}

    def item(self, row: int) -> Item | None:
        """Return a row's metadata."""
        return None if self.vectors.metadata is None else self.vectors.metadata.item(row)


def older_gallery(
    path: Path, encoder: Encoder, folder: Path, storage: Storage | None, tokens: bool | None
) -> OlderGallery:
    """Open the gallery that is to be updated.

    Raises
    ------
    GalleryFormatError
        It is none, or a damaged one.
    UsageError
        Its vectors aren't what a new run would give, or it doesn't know its files.
    """
    older = read_contents(path)
    header, files = older.header, older.files
    if header.bundle_id != encoder.bundle_id:
        wrong = f"was made with the bundle {header.bundle_id[:16]}, not {encoder.bundle_id[:16]}"
    elif files is None:
        wrong = "doesn't say which files it was made from (it wasn't indexed, or was changed and saved since)"
    elif files.folder.resolve() != folder.resolve():
        wrong = f"was made from the folder {files.folder}"
    elif storage not in (None, header.storage):
        wrong = f"keeps its vectors in {header.storage}"
    elif tokens and not header.tokens:
        wrong = "keeps no tokens"
    else:
        check_stored_tokens(path, older.vectors.tokens, encoder.bundle)
        return OlderGallery(header, older.vectors, files)
    raise UsageError(f"{path} can't be updated: it {wrong}; index it anew, without --update")
