"""Index a folder of any size: images stream through the encoder into a journal, and from there into the gallery.

Memory stays the same for any number of images, apart from their names. `docs/indexing.md` describes what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.encoder import Encoder
from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.folder import FolderImage, IndexedFiles, folder_images
from dra_runtime.gallery_file import check_target, write_gallery
from dra_runtime.gallery_index import IndexReport, StoredIndex, built_index, checked_kind
from dra_runtime.ids import check_id
from dra_runtime.image_stream import EncodedBatch, encoded_images
from dra_runtime.index_update import OlderGallery, older_gallery
from dra_runtime.journal import Head, Journal, open_journal
from dra_runtime.metadata import Item, metadata_from_items
from dra_runtime.metadata_file import matched_metadata
from dra_runtime.rerank import half_tokens
from dra_runtime.vectors import Storage, Vectors, checked_storage, rows, vectors_from_features

Progress = Callable[[int, int], None]
Note = Callable[[str], None]

_SORTED_AT_ONCE = 8 * 2**20  # bytes


@dataclass(frozen=True)
class IndexingReport:
    """What an index run did.

    ``images`` are in the gallery. ``resumed`` were done by an interrupted run before it, unreadable ones among them;
    ``kept`` are unchanged since the older gallery. ``left_out`` names the images that aren't in the gallery, as
    (id, reason). ``index`` is None for exact search.
    """

    images: int
    resumed: int
    kept: int
    left_out: Sequence[tuple[str, str]]
    index: IndexReport | None


def index_folder(
    encoder: Encoder,
    folder: str | Path,
    out: str | Path,
    *,
    metadata: Mapping[str, Item] | None = None,
    storage: Storage | None = None,
    index: str | None = None,
    tokens: bool | None = None,
    update: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    index_progress: Progress | None = None,
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
        Flat values by key, by id or by the file's path below the folder.
    storage
        Of the vectors in the file: ``"float32"``, the default, or ``"float16"``.
    index
        ``"flat"``, ``"hnsw"`` or ``"ivf"``; by default none, for exact search.
    tokens
        Whether to keep the image tokens, which re-ranking needs. Not by default.
    update
        Whether to take over from the older gallery what hasn't changed: vectors and, unless ``metadata`` is given,
        metadata. Its storage, kind of index and tokens are then the defaults.
    restart
        Whether to drop what an interrupted run has done.
    progress
        Called with the number of images done and of all, the first time before anything is encoded.
    index_progress
        Called with the steps done and of all while an index is built.
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
        or storage lies there, the older gallery can't be updated, no image has the metadata's ids, or the bundle gives
        no tokens.
    BackendError
        faiss is needed for ``index`` and isn't installed.
    GalleryError
        The folder holds no usable image, or something can't be written.
    """
    folder, out = Path(folder), Path(out)
    check_target(out)
    if index is not None:
        checked_kind(index)
    older = older_gallery(out, encoder, folder, storage, tokens) if update and out.exists() else None
    if older is not None:
        storage, tokens = storage or older.header.storage, older.header.tokens if tokens is None else tokens
        index = index or (older.header.index.kind if older.header.index else None)
    if index is not None:
        _require_faiss()
    head = _head(encoder, folder, checked_storage(storage or "float32"), bool(tokens))
    images, refused = _with_usable_ids(folder_images(folder))
    tell: Note = note or _silent
    by_id = None if metadata is None else matched_metadata(images, metadata, tell)
    with open_journal(out, head, restart) as journal:
        kept = {} if older is None else older.rows_of(images)
        remaining = [image for image in images if image.id not in kept and not journal.knows(image)]
        done = len(images) - len(remaining)
        resumed = done - len(kept)
        if older is not None:
            tell(f"updating: {len(kept):,} of {len(images):,} images are unchanged")
        if resumed:
            tell(f"resuming: {resumed:,} of {len(images):,} done")
        if progress is not None:
            progress(done, len(images))
        for batch in encoded_images(encoder, ((image, folder / image.name) for image in remaining)):
            _append(journal, batch, head)
            done += len(batch.keys) + len(batch.failed)
            if progress is not None:
                progress(done, len(images))
        left_out = sorted([*refused, *_left_out(journal, images, kept)])
        usable = [image for image in images if image.id in kept or journal.done[image.name].reason is None]
        if not usable:
            journal.discard()
            raise GalleryError(f"{folder}: none of its {len(left_out)} images can be read; the first: {left_out[0][1]}")
        vectors = _vectors(journal, usable, by_id, older, kept)
        stored = None if index is None else _index(index, vectors, encoder.threads, index_progress, tell)
        write_gallery(out, vectors, encoder.bundle_id, encoder.bundle.path, stored, _files(folder, usable))
        journal.discard()
    return IndexingReport(len(vectors), resumed, len(kept), left_out, None if stored is None else stored.report)


def _silent(_: str) -> None:
    pass


def _require_faiss() -> None:
    """Raise BackendError now where an index couldn't be built after hours of encoding."""
    from dra_runtime.ann.library import load_faiss

    load_faiss()


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


def _left_out(journal: Journal, images: Sequence[FolderImage], kept: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for image in images:
        reason = None if image.id in kept else journal.done[image.name].reason
        if reason is not None:
            yield image.id, reason


def _vectors(
    journal: Journal,
    images: Sequence[FolderImage],
    metadata: Mapping[str, Item] | None,
    older: OlderGallery | None,
    kept: Mapping[str, int],
) -> Vectors:
    """Return the rows of images in the order of their ids, mapped: from the older gallery, and behind it the journal.

    ``kept`` are rows of the older gallery, by id.
    """
    arrays = journal.arrays()
    first = {name: array[:0] for name, array in arrays.items()} if older is None else older.arrays(tuple(arrays))
    split = len(first["norms"])
    places = (kept[i.id] if i.id in kept else split + journal.done[i.name].row for i in images)
    order = np.fromiter(places, np.int64, len(images))
    if split or not np.array_equal(order, np.arange(journal.rows)):
        arrays = {name: _sorted_copy(first[name], arrays[name], order, journal.scratch(name)) for name in arrays}
    items: list[Item | None]
    if metadata is not None:
        items = [metadata.get(image.id) for image in images]
    else:
        items = [older.item(kept[image.id]) if older and image.id in kept else None for image in images]
    ids = tuple(image.id for image in images)
    return Vectors(ids, arrays["unit"], arrays["norms"], metadata_from_items(items), arrays.get("tokens"))


def _sorted_copy(
    first: npt.NDArray[Any], second: npt.NDArray[Any], order: npt.NDArray[np.int64], path: Path
) -> npt.NDArray[Any]:
    """Copy rows of two arrays, as `dra_runtime.vectors.order_of` numbers them, into a file, and map it."""
    shape = first.shape[1:]
    count = max(1, _SORTED_AT_ONCE // (math.prod(shape) * first.dtype.itemsize))
    with path.open("wb") as file:
        for start in range(0, len(order), count):
            file.write(rows(first, second, order[start : start + count]).data)
    return np.memmap(path, first.dtype, "r", shape=(len(order), *shape))


def _index(kind: str, vectors: Vectors, threads: int, progress: Progress | None, note: Note) -> StoredIndex | None:
    note(f"building the index {kind} over {len(vectors):,} images")
    index = built_index(kind, vectors.unit, threads, progress)
    note(f"{kind} finds {index.report.recall_at_10:.2%} of the 10 nearest images")
    return index.stored(False, len(vectors))


def _files(folder: Path, images: Sequence[FolderImage]) -> IndexedFiles | None:
    try:
        str(folder.resolve()).encode("utf-8")
    except UnicodeEncodeError:  # a gallery's header can't hold it, and does without
        return None
    sizes = np.fromiter((image.size for image in images), np.int64, len(images))
    mtimes = np.fromiter((image.mtime_ns for image in images), np.int64, len(images))
    return IndexedFiles(folder, sizes, mtimes)


def _storage(head: Head) -> Storage:
    return checked_storage(head.storage)
