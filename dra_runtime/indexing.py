"""Index a folder of any size: images stream through the encoder into a journal, and from there into the gallery.

Memory stays the same for any number of images, apart from their names. `docs/indexing.md` describes what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.encoder import Encoder
from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.folder import FolderImage, folder_images
from dra_runtime.gallery_file import check_id, check_target, write_gallery
from dra_runtime.image_stream import EncodedBatch, encoded_images
from dra_runtime.journal import Head, Journal, open_journal
from dra_runtime.metadata import Item, metadata_from_items
from dra_runtime.rerank import half_tokens
from dra_runtime.vectors import Storage, Vectors, checked_storage, vectors_from_features

Progress = Callable[[int, int], None]
Note = Callable[[str], None]

_ROWS = 16_384  # rows sorted at once


@dataclass(frozen=True)
class IndexingReport:
    """What an index run did.

    ``images`` are in the gallery. ``resumed`` were done by an interrupted run before it, unreadable ones among them.
    ``left_out`` names the images that aren't in the gallery, as (id, reason).
    """

    images: int
    resumed: int
    left_out: Sequence[tuple[str, str]]


def index_folder(
    encoder: Encoder,
    folder: str | Path,
    out: str | Path,
    *,
    metadata: Mapping[str, Item] | None = None,
    storage: Storage = "float32",
    tokens: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    note: Note | None = None,
) -> IndexingReport:
    """Encode all images below a folder into a gallery file, going on where an interrupted run stopped.

    Parameters
    ----------
    encoder
        Encodes the images.
    folder
        See `dra_runtime.folder.folder_images` for what it takes and how it names.
    out
        The gallery to write; an older one is replaced in the end and stays until then.
    metadata
        Flat values by key, by id.
    storage
        Of the vectors in the file.
    tokens
        Whether to keep the image tokens, which re-ranking needs.
    restart
        Whether to drop what an interrupted run has done.
    progress
        Called with the number of images done and of all, the first time before anything is encoded.
    note
        Called with a line that a user should read.

    Returns
    -------
    IndexingReport
        Files that can't be read are left out.

    Raises
    ------
    UsageError
        ``out`` is no place for a gallery, another process is indexing it, an interrupted run of another bundle, folder
        or storage lies there, or the bundle gives no tokens.
    GalleryError
        The folder holds no usable image, or something can't be written.
    """
    folder, out = Path(folder), Path(out)
    check_target(out)
    head = _head(encoder, folder, checked_storage(storage), tokens)
    images, refused = _with_usable_ids(folder_images(folder))
    with open_journal(out, head, restart) as journal:
        remaining = [image for image in images if not journal.knows(image)]
        resumed = done = len(images) - len(remaining)
        if resumed and note is not None:
            note(f"resuming: {resumed:,} of {len(images):,} done")
        if progress is not None:
            progress(done, len(images))
        for batch in encoded_images(encoder, ((image, folder / image.name) for image in remaining)):
            _append(journal, batch, head)
            done += len(batch.keys) + len(batch.failed)
            if progress is not None:
                progress(done, len(images))
        left_out = sorted([*refused, *_left_out(journal, images)])
        vectors = _vectors(journal, images, metadata)
        if not len(vectors):
            journal.discard()
            raise GalleryError(f"{folder}: none of its {len(left_out)} images can be read; the first: {left_out[0][1]}")
        write_gallery(out, vectors, encoder.bundle_id, encoder.bundle.path)
        journal.discard()
    return IndexingReport(len(vectors), resumed, left_out)


def _head(encoder: Encoder, folder: Path, storage: Storage, tokens: bool) -> Head:
    manifest = encoder.bundle.manifest
    shape = None
    if tokens:
        outputs = {tensor.name: tensor.shape for tensor in manifest.graphs["image_encoder"].outputs}
        if "image_tokens" not in outputs:
            raise UsageError(f"{encoder.bundle.path} has no reranker, so there are no tokens to keep; leave tokens off")
        shape = tuple(int(length) for length in outputs["image_tokens"][1:])
    return Head(manifest.bundle_id, manifest.precision, encoder.dim, storage, shape, str(folder.resolve()))


def _with_usable_ids(found: Sequence[FolderImage]) -> tuple[list[FolderImage], list[tuple[str, str]]]:
    """Part images into those whose name can be an id, and the others with the reason."""
    usable, refused = [], []
    for image in found:
        try:
            check_id(image.id)
        except UsageError as error:
            refused.append((image.id, str(error)))
        else:
            usable.append(image)
    return usable, refused


def _append(journal: Journal, batch: EncodedBatch[FolderImage], head: Head) -> None:
    left_out = [(image, str(error)) for image, error in batch.failed]
    good: npt.NDArray[np.bool_] = np.isfinite(batch.features).all(axis=1) & (batch.features != 0).any(axis=1)
    reason = "the model gives it a vector that is zero or not finite"
    left_out += [(image, f"{image.name}: {reason}") for image, ok in zip(batch.keys, good, strict=True) if not ok]
    images = [image for image, ok in zip(batch.keys, good, strict=True) if ok]
    tokens = None
    if head.tokens is not None:
        none = np.empty((0, *head.tokens), np.float16)
        tokens = none if batch.tokens is None else half_tokens(batch.tokens[good])
    # Images come in the order of their ids, so these rows stay in it
    found = vectors_from_features([i.id for i in images], batch.features[good], _storage(head), None, tokens)
    arrays: dict[str, npt.NDArray[Any]] = {"unit": found.unit, "norms": found.norms}
    if tokens is not None:
        arrays["tokens"] = tokens
    journal.append(images, arrays, left_out)


def _left_out(journal: Journal, images: Sequence[FolderImage]) -> Iterator[tuple[str, str]]:
    for image in images:
        reason = journal.done[image.name].reason
        if reason is not None:
            yield image.id, reason


def _vectors(journal: Journal, images: Sequence[FolderImage], metadata: Mapping[str, Item] | None) -> Vectors:
    """Return the journal's rows of the folder's present images in the order of their ids, mapped."""
    kept = [image for image in images if journal.done[image.name].reason is None]
    order = np.fromiter((journal.done[image.name].row for image in kept), np.int64, len(kept))
    arrays = journal.arrays()
    if not np.array_equal(order, np.arange(journal.rows)):  # images changed, vanished or came between the runs
        arrays = {name: _sorted_copy(array, order, journal.scratch(name)) for name, array in arrays.items()}
    items = metadata_from_items([metadata.get(image.id) for image in kept]) if metadata else None
    ids = tuple(image.id for image in kept)
    return Vectors(ids, arrays["unit"], arrays["norms"], items, arrays.get("tokens"))


def _sorted_copy(array: npt.NDArray[Any], order: npt.NDArray[np.int64], path: Path) -> npt.NDArray[Any]:
    """Copy rows in the given order into a file, and map it."""
    shape = (len(order), *array.shape[1:])
    if 0 in shape:
        return np.empty(shape, array.dtype)
    with path.open("wb") as file:
        for start in range(0, len(order), _ROWS):
            file.write(array[order[start : start + _ROWS]].tobytes())
    return np.memmap(path, array.dtype, "r", shape=shape)


def _storage(head: Head) -> Storage:
    return checked_storage(head.storage)
