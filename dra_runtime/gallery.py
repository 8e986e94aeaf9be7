"""A gallery: the images that queries are answered from."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy.typing as npt

from dra_runtime.bundle import Integrity
from dra_runtime.encoder import Encoder, Features, checked_features
from dra_runtime.errors import GalleryError, GalleryMismatchError, UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery_answers import Hit, Query, answer, answer_vectors
from dra_runtime.gallery_encode import Progress, check_metadata, checked_images, encode, vectors_of
from dra_runtime.gallery_file import read_contents, write_parts
from dra_runtime.gallery_index import IndexReport, built_index, checked_kind, opened_index
from dra_runtime.ids import check_id
from dra_runtime.metadata import Item, Value, Where
from dra_runtime.preprocess import ImageSource
from dra_runtime.rerank import Images, KnownImages, check_stored_tokens, paths_of
from dra_runtime.snapshot import Snapshot, compacted, parts, snapshot_of, with_added, with_index, without
from dra_runtime.threads import require_process
from dra_runtime.vectors import Storage, checked_storage, vectors_from_features

__all__ = ["Gallery", "Hit"]


class Gallery:
    """Vectors of many images, searched exactly or by an index. Make one with `Gallery.build` or `Gallery.open`.

    Safe to share between threads: a search sees the gallery as it was when the search began, whatever `add` and
    `remove` do meanwhile, and those wait for each other. A forked process may read its parent's gallery, by
    `search_vectors` and `features`, and gets a BackendError from all else; see docs/serving.md.

    Attributes
    ----------
    skipped
        The files that `build` could not read in a folder, as (name, reason).
    """

    def __init__(
        self,
        encoder: Encoder,
        snapshot: Snapshot,
        skipped: Sequence[tuple[str, str]] = (),
        storage: Storage = "float32",
        tokens: bool = False,
        images: Images | None = None,
    ) -> None:
        self._encoder = encoder
        self._images = KnownImages(images)
        self._snapshot = snapshot
        self._storage: Storage = storage
        self._tokens = tokens
        self._lock = threading.Lock()
        self._building = threading.Lock()  # of an index: one at a time
        self._process = os.getpid()
        self.skipped = tuple(skipped)

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        images: Mapping[str, ImageSource] | str | Path,
        progress: Progress | None = None,
        metadata: Mapping[str, Item] | None = None,
        storage: Storage = "float32",
        index: Literal["flat", "hnsw", "ivf"] | None = None,
        tokens: bool = False,
    ) -> Gallery:
        """Encode images into a new gallery.

        Parameters
        ----------
        encoder
            Encodes the images, and later the queries.
        images
            Images by id, or a folder (see `dra_runtime.folder.images_of_folder` for what it takes and how it names).
        progress
            Called with the number of images done and of all.
        metadata
            Flat values by key, by id: what `search` can filter by with ``where``. Images may be without.
        storage
            The type of the stored vectors. ``"float16"`` takes half the memory and disk; scores then are exact for the
            stored vectors, which differ from the encoder's by at most 1 part in 2048.
        index
            Build an index as `build_index` does; None for exact search.
        tokens
            Whether to store the image tokens as well, in float16, for re-ranking without the images.

        Returns
        -------
        Gallery
            Of a folder, files that can't be read are left out and listed in ``skipped``. Of a mapping, an unusable
            image is an error.

        Raises
        ------
        ImageError
            An image of a mapping can't be used.
        GalleryError
            A folder holds no usable image.
        UsageError
            The metadata, or another argument, can't be used.
        BackendError
            An index was asked for, and faiss isn't installed.
        """
        checked_storage(storage)
        if index is not None:
            checked_kind(index)
        is_folder = isinstance(images, str | Path)
        sources: Mapping[str, ImageSource] = images_of_folder(Path(images)) if is_folder else checked_images(images)  # type: ignore[arg-type]
        check_metadata(metadata, sources)
        encoded = encode(encoder, sources, progress, tokens, skip=is_folder)
        if is_folder and not encoded.ids:
            reasons = encoded.skipped
            raise GalleryError(f"{images}: none of its {len(reasons)} images can be read; the first: {reasons[0][1]}")
        snapshot = snapshot_of(vectors_of(encoded, metadata, storage))
        known = images if isinstance(images, str | Path) else paths_of(sources)
        gallery = cls(encoder, snapshot, encoded.skipped, storage, tokens, known)
        if index is not None:
            gallery.build_index(index)
        return gallery

    @classmethod
    def from_features(
        cls,
        encoder: Encoder,
        ids: Sequence[str],
        image_features: npt.ArrayLike,
        metadata: Mapping[str, Item] | None = None,
        storage: Storage = "float32",
    ) -> Gallery:
        """Make a gallery of features that were encoded before.

        Parameters
        ----------
        encoder
            Encodes the queries; its bundle must have encoded the features.
        ids
            N different ids.
        image_features
            (N, D), raw.
        metadata, storage
            As `build` takes them.

        Raises
        ------
        UsageError
            An id stands twice, or the shapes don't fit.
        """
        features = checked_features(image_features, "image_features", encoder.dim)
        ids = [check_id(name) for name in _several(ids)]
        if len(set(ids)) != len(ids) or len(ids) != len(features):
            raise UsageError(f"{len(set(ids))} different ids for {len(features)} vectors; give as many as there are")
        check_metadata(metadata, ids)
        items = [metadata.get(name) for name in ids] if metadata else None
        vectors = vectors_from_features(ids, features, checked_storage(storage), items)
        return cls(encoder, snapshot_of(vectors), storage=storage)

    @classmethod
    def open(
        cls, path: str | Path, encoder: Encoder, integrity: Integrity = "hash", images: Images | None = None
    ) -> Gallery:
        """Open a saved gallery; its vectors are mapped into memory, not read.

        Parameters
        ----------
        path
            A file that `save` wrote. It must not be written to while it is open, but may be replaced.
        encoder
            Of the bundle that the gallery was made with.
        integrity
            ``"hash"`` reads the file once and compares its SHA-256; ``"size"`` doesn't.
        images
            Where the images are, for re-ranking without stored tokens: their folder, a dict by id, or a function that
            returns an id's image, or None where it has none.

        Raises
        ------
        GalleryFormatError
            The file is no gallery, or a damaged one.
        GalleryMismatchError
            It was made with another bundle.
        """
        path = Path(path)
        if integrity not in ("hash", "size"):
            raise UsageError(f"integrity is {integrity!r}; give 'hash' or 'size'")
        contents = read_contents(path, integrity)
        header, vectors = contents.header, contents.vectors
        if header.bundle_id != encoder.bundle_id or header.dim != encoder.dim:
            raise GalleryMismatchError(
                f"{path} was made with the bundle {header.bundle_id[:16]}, but {encoder.bundle.path} is "
                f"{encoder.bundle_id[:16]}; index again: dra-search index {encoder.bundle.path} IMAGES -o {path}"
            )
        check_stored_tokens(path, vectors.tokens, encoder.bundle)
        index = None if contents.index is None else opened_index(contents.index, vectors.unit, encoder.threads)
        snapshot = snapshot_of(vectors, index, kept=True)
        return cls(encoder, snapshot, storage=header.storage, tokens=header.tokens, images=images)

    def save(self, path: str | Path) -> None:
        """Save the gallery, replacing an older gallery of that name but nothing else.

        An index is saved with the images that it is over. Once images were added or removed it is left out, unless it
        is ``"flat"``: build it again first.

        Warns
        -----
        UserWarning
            The index was left out, so search in the saved gallery will be exact.

        Raises
        ------
        UsageError
            Something else than a gallery stands there.
        GalleryError
            It can't be written; what stood there before still does.
        """
        first, others = parts(self._snapshot)
        bundle = self._encoder.bundle
        changed = first.alive is not None or len(others) > 0
        index = first.index.stored(changed, first.count + len(others)) if first.index else None
        write_parts(Path(path), first.vectors, first.alive, others, self._encoder.bundle_id, bundle.path, index)
        if first.index and index is None:
            warnings.warn(
                f"{path} was saved without its {first.index.report.kind} index: images were added or removed since it "
                "was built; call build_index before save",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._snapshot)

    def __contains__(self, name: object) -> bool:
        return self._snapshot.place(name) is not None

    @property
    def ids(self) -> tuple[str, ...]:
        """Return all ids, in ascending order."""
        return self._snapshot.ids

    @property
    def encoder(self) -> Encoder:
        """Return the encoder of the images and queries."""
        return self._encoder

    @property
    def storage(self) -> Storage:
        """Return the type of the stored vectors."""
        return self._storage

    @property
    def index(self) -> IndexReport | None:
        """Return which index search uses and its recall, or None where search is exact."""
        index = self._snapshot.segments[0].index
        return None if index is None else index.report

    @property
    def stores_tokens(self) -> bool:
        """Return whether image tokens are stored."""
        return self._tokens

    @property
    def metadata_keys(self) -> tuple[str, ...]:
        """Return the keys that ``where`` can filter by, in ascending order."""
        return self._snapshot.keys

    def metadata(self, id: str) -> dict[str, Value]:
        """Return what was given as an image's metadata; empty where nothing was.

        Raises
        ------
        UnknownIdError
            The gallery doesn't hold the id.
        """
        snapshot = self._snapshot
        return snapshot.item(snapshot.known_place(id))

    def features(self, ids: Iterable[str]) -> Features:
        """Return the raw features of images: (N, D) float32.

        Raises
        ------
        UnknownIdError
            The gallery doesn't hold an id.
        """
        snapshot = self._snapshot
        return snapshot.features([snapshot.known_place(name) for name in _several(ids)], self._encoder.dim)

    def add(
        self,
        images: Mapping[str, ImageSource],
        replace: bool = False,
        metadata: Mapping[str, Item] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Encode images and add them: all, or none if one fails.

        Parameters
        ----------
        images
            Images by id.
        replace
            Whether ids that the gallery holds already get the new image, and the metadata given here in place of
            theirs; otherwise they are an error.
        metadata
            As `build` takes it, of these images.
        progress
            Called with the number of images done and of all.

        Raises
        ------
        UsageError
            An id is there already, and ``replace`` is not set.
        ImageError
            An image can't be used.
        """
        self._require_own_process()
        sources = checked_images(images)
        check_metadata(metadata, sources)
        _refuse_known(self._snapshot, sources, replace)  # before the work, and again after it
        encoded = encode(self._encoder, sources, progress, self._tokens, skip=False)
        new = vectors_of(encoded, metadata, self._storage)
        with self._lock:
            old = self._snapshot
            _refuse_known(old, encoded.ids, replace)
            places = [place for name in encoded.ids if (place := old.place(name)) is not None]
            snapshot = with_added(without(old, places), new)
            self._images.add(sources)  # known before a search can find them
            self._snapshot = snapshot

    def remove(self, ids: Iterable[str]) -> None:
        """Remove images: all of them, or none if an id is unknown.

        Raises
        ------
        UnknownIdError
            The gallery doesn't hold an id.
        """
        self._require_own_process()
        names = set(_several(ids))
        with self._lock:
            self._snapshot = without(self._snapshot, [self._snapshot.known_place(name) for name in sorted(names)])
            self._images.remove(names)

    def build_index(self, kind: Literal["flat", "hnsw", "ivf"], progress: Progress | None = None) -> IndexReport:
        """Build an index, which search uses from then on in place of comparing everything.

        An index proposes more candidates than are asked for; these are scored and ordered as in exact search. It is
        over the images that are there when building begins. Those added later are compared one by one, those removed
        never answer. Searches go on meanwhile.

        Parameters
        ----------
        kind
            ``"flat"`` compares everything in half precision; ``"hnsw"`` and ``"ivf"`` don't, see docs/index.md.
        progress
            Called with the steps done and of all.

        Returns
        -------
        IndexReport
            Among others its recall: the share of the 10 nearest images that it finds, measured against exact search
            with queries halfway between two images of the gallery.

        Raises
        ------
        UsageError
            No such kind.
        BackendError
            faiss isn't installed.
        GalleryError
            All images were replaced meanwhile.
        """
        self._require_own_process()
        checked_kind(kind)
        with self._building:
            with self._lock:
                before = self._snapshot
                indexed = self._snapshot = compacted(before)
            vectors = indexed.segments[0].vectors
            try:
                index = built_index(kind, vectors.unit, self._encoder.threads, progress)
            except BaseException:
                with self._lock:
                    if self._snapshot is indexed:  # nobody has changed it meanwhile
                        self._snapshot = before  # with its index
                raise
            with self._lock:
                self._snapshot = with_index(self._snapshot, vectors, index)
            return index.report

    def search(
        self,
        *,
        text: str,
        image: ImageSource | None = None,
        id: str | None = None,
        k: int = 10,
        keep_reference: bool = False,
        where: Where | None = None,
        rerank: int | None = None,
        mu: float | None = None,
    ) -> list[Hit]:
        """Find what the reference looks like once changed as the text says.

        Parameters
        ----------
        text
            The change: "in red", "with long sleeves".
        image
            The reference, if it isn't in the gallery: a path, bytes, PIL image or array.
        id
            The reference, if it is: no image is then encoded.
        k
            How many answers; a smaller gallery gives as many as it has.
        keep_reference
            Whether the reference given by id may be an answer. It is left out otherwise (CIRR's rule), since an image
            is nearly always the nearest to itself.
        where
            Answer only with images of this metadata: a value, or a list of allowed ones, by key. All keys must fit.
        rerank
            How many of the first answers to put into a new order with the vision compositor, at least 2: by
            ``score + mu * agreement`` (docs/rerank.md). The images' tokens must be stored, or the images known.
        mu
            The weight of the agreement, by default `dra_runtime.rerank.DEFAULT_MU`.

        Returns
        -------
        list of Hit
            Best first; equal scores in the order of their ids. A score is the cosine, re-ranked or not.

        Raises
        ------
        UsageError
            Not exactly one of ``image`` and ``id``, ``k`` below 1, a key of ``where`` that no image has, or re-ranking
            without a reranker, tokens and images.
        TextError, ImageError, UnknownIdError
            The query can't be used.
        """
        query = Query(text, image, id, k, keep_reference, where, rerank, mu)
        return answer(query, self._encoder, self._snapshot, self._images, self._tokens)

    def search_vectors(
        self,
        queries: npt.ArrayLike,
        k: int = 10,
        exclude: Sequence[str | None] | None = None,
        where: Where | None = None,
    ) -> list[list[Hit]]:
        """Find the nearest images of query vectors.

        Parameters
        ----------
        queries
            (N, D), of any length but zero, as `Encoder.compose` returns them.
        k
            How many answers each.
        exclude
            For each query the id that must not be an answer, or None.
        where
            As `search` takes it, for all queries.

        Returns
        -------
        list of list of Hit
            For each query as `search` returns it.

        Raises
        ------
        UsageError
            The shapes don't fit, a vector is zero, ``k`` is below 1, or a key of ``where`` that no image has.
        UnknownIdError
            The gallery doesn't hold an id to exclude.
        """
        return answer_vectors(queries, k, exclude, where, self._encoder.dim, self._snapshot, self._encoder.threads)

    def _require_own_process(self) -> None:
        require_process(self._process, "gallery", "changed")


def _refuse_known(snapshot: Snapshot, ids: Iterable[str], replace: bool) -> None:
    if not replace:
        for name in ids:
            if snapshot.place(name) is not None:
                raise UsageError(f"the gallery holds {name!r:.80} already; remove it first, or give replace=True")


def _several(ids: Iterable[str]) -> Iterator[str]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise UsageError(f"{ids!r:.80} is no list of ids; give a list, also for one id")
    return iter(ids)
