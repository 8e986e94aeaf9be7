"""A gallery: the images that queries are answered from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dra_runtime.bundle import Integrity
from dra_runtime.encoder import IMAGE_BATCH, Encoder, Features, Pixels, checked_features
from dra_runtime.errors import GalleryError, GalleryMismatchError, ImageError, UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery_file import check_id, read_gallery, write_gallery
from dra_runtime.preprocess import ImageSource
from dra_runtime.search import top_k
from dra_runtime.vectors import Vectors, known_row, merged, row_of, vectors_from_features, without

Progress = Callable[[int, int], None]
Loaded = Pixels | ImageError


@dataclass(frozen=True)
class Hit:
    """One answer: the image's id, its cosine with the query, and its place, counted from 1."""

    id: str
    score: float
    rank: int


class Gallery:
    """Vectors of many images, searched exactly. Make one with `Gallery.build` or `Gallery.open`.

    Safe to share between threads: a search sees the gallery as it was when the search began, whatever `add` and
    `remove` do meanwhile, and those wait for each other.

    Attributes
    ----------
    skipped
        The files that `build` or `add` could not read in a folder, as (name, reason).
    """

    def __init__(self, encoder: Encoder, vectors: Vectors, skipped: Sequence[tuple[str, str]] = ()) -> None:
        self._encoder = encoder
        self._vectors = vectors
        self._lock = threading.Lock()
        self.skipped = tuple(skipped)

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        images: Mapping[str, ImageSource] | str | Path,
        progress: Progress | None = None,
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
        """
        is_folder = isinstance(images, str | Path)
        sources: Mapping[str, ImageSource] = images_of_folder(Path(images)) if is_folder else _checked(images)  # type: ignore[arg-type]
        skipped: list[tuple[str, str]] = []
        ids, features = _encode(encoder, sources, progress, skipped if is_folder else None)
        if is_folder and not ids:
            raise GalleryError(f"{images}: none of its {len(skipped)} images can be read; the first: {skipped[0][1]}")
        return cls(encoder, vectors_from_features(ids, features), skipped)

    @classmethod
    def from_features(cls, encoder: Encoder, ids: Sequence[str], image_features: npt.ArrayLike) -> Gallery:
        """Make a gallery of features that were encoded before.

        Parameters
        ----------
        encoder
            Encodes the queries; its bundle must have encoded the features.
        ids
            N different ids.
        image_features
            (N, D), raw.

        Raises
        ------
        UsageError
            An id stands twice, or the shapes don't fit.
        """
        features = checked_features(image_features, "image_features", encoder.dim)
        ids = [check_id(name) for name in ids]
        if len(set(ids)) != len(ids) or len(ids) != len(features):
            raise UsageError(f"{len(set(ids))} different ids for {len(features)} vectors; give as many as there are")
        return cls(encoder, vectors_from_features(ids, features))

    @classmethod
    def open(cls, path: str | Path, encoder: Encoder, integrity: Integrity = "hash") -> Gallery:
        """Open a saved gallery; its vectors are mapped into memory, not read.

        Parameters
        ----------
        path
            A file that `save` wrote. It must not be written to while it is open, but may be replaced.
        encoder
            Of the bundle that the gallery was made with.
        integrity
            ``"hash"`` reads the file once and compares its SHA-256; ``"size"`` doesn't.

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
        header, vectors = read_gallery(path, integrity)
        if header.bundle_id != encoder.bundle_id or header.dim != encoder.dim:
            raise GalleryMismatchError(
                f"{path} was made with the bundle {header.bundle_id[:16]}, but {encoder.bundle.path} is "
                f"{encoder.bundle_id[:16]}; index again: dra-search index {encoder.bundle.path} IMAGES -o {path}"
            )
        return cls(encoder, vectors)

    def save(self, path: str | Path) -> None:
        """Save the gallery, replacing an older gallery of that name but nothing else.

        Raises
        ------
        UsageError
            Something else than a gallery stands there.
        GalleryError
            It can't be written; what stood there before still does.
        """
        write_gallery(Path(path), self._vectors, self._encoder.bundle_id, self._encoder.bundle.path)

    def __len__(self) -> int:
        return len(self._vectors.ids)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and row_of(self._vectors.ids, name) is not None

    @property
    def ids(self) -> tuple[str, ...]:
        """Return all ids, in ascending order."""
        return self._vectors.ids

    @property
    def encoder(self) -> Encoder:
        """Return the encoder of the images and queries."""
        return self._encoder

    def features(self, ids: Iterable[str]) -> Features:
        """Return the raw features of images: (N, D) float32.

        Raises
        ------
        UnknownIdError
            The gallery doesn't hold an id.
        """
        vectors = self._vectors
        rows = [known_row(vectors.ids, name) for name in _several(ids)]
        features: Features = vectors.unit[rows] * vectors.norms[rows, None]
        return features

    def add(self, images: Mapping[str, ImageSource], replace: bool = False, progress: Progress | None = None) -> None:
        """Encode images and add them: all, or none if one fails.

        Parameters
        ----------
        images
            Images by id.
        replace
            Whether ids that the gallery holds already get the new image; otherwise they are an error.
        progress
            Called with the number of images done and of all.

        Raises
        ------
        UsageError
            An id is there already, and ``replace`` is not set.
        ImageError
            An image can't be used.
        """
        sources = _checked(images)
        _refuse_known(self._vectors.ids, sources, replace)  # before the work, and again after it
        ids, features = _encode(self._encoder, sources, progress, None)
        new = vectors_from_features(ids, features)
        with self._lock:
            old = self._vectors
            _refuse_known(old.ids, ids, replace)
            self._vectors = merged(without(old, set(ids)), new)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove images: all of them, or none if an id is unknown.

        Raises
        ------
        UnknownIdError
            The gallery doesn't hold an id.
        """
        names = set(_several(ids))
        with self._lock:
            for name in sorted(names):
                known_row(self._vectors.ids, name)
            self._vectors = without(self._vectors, names)

    def search(
        self,
        *,
        text: str,
        image: ImageSource | None = None,
        id: str | None = None,
        k: int = 10,
        keep_reference: bool = False,
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

        Returns
        -------
        list of Hit
            Best first; equal scores in the order of their ids.

        Raises
        ------
        UsageError
            Not exactly one of ``image`` and ``id``, or ``k`` below 1.
        TextError, ImageError, UnknownIdError
            The query can't be used.
        """
        _check_k(k)
        if (image is None) == (id is None):
            raise UsageError("give either image= or id= as the reference, exactly one of them")
        vectors = self._vectors
        excluded = -1
        text_features = self._encoder.encode_texts([text])
        if id is not None:
            row = known_row(vectors.ids, id)
            image_features = vectors.unit[row : row + 1] * vectors.norms[row]
            excluded = -1 if keep_reference else row
        else:
            image_features = self._encoder.encode_images([image])  # type: ignore[list-item]
        query = self._encoder.compose(image_features, text_features)
        return _hits(vectors, query, k, [excluded])[0]

    def search_vectors(
        self, queries: npt.ArrayLike, k: int = 10, exclude: Sequence[str | None] | None = None
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

        Returns
        -------
        list of list of Hit
            For each query as `search` returns it.

        Raises
        ------
        UsageError
            The shapes don't fit, a vector is zero, or ``k`` is below 1.
        UnknownIdError
            The gallery doesn't hold an id to exclude.
        """
        _check_k(k)
        checked = checked_features(queries, "queries", self._encoder.dim)
        if not checked.any(axis=1).all():
            raise UsageError("a query is all zeros, so it has no direction; compose it again")
        vectors = self._vectors
        if exclude is None:
            exclude = [None] * len(checked)
        if isinstance(exclude, str) or len(exclude) != len(checked):
            raise UsageError(f"{len(exclude)} ids to exclude for {len(checked)} queries; give one for each, or None")
        return _hits(vectors, checked, k, [-1 if n is None else known_row(vectors.ids, n) for n in exclude])


def _hits(vectors: Vectors, queries: Features, k: int, excluded: Sequence[int]) -> list[list[Hit]]:
    answers = top_k(vectors.unit, queries, k, np.asarray(excluded, np.int64).reshape(len(queries)))
    return [
        [
            Hit(vectors.ids[row], score, rank)
            for rank, (row, score) in enumerate(zip(rows.tolist(), scores.tolist(), strict=True), 1)
        ]
        for rows, scores in answers
    ]


def _encode(
    encoder: Encoder,
    images: Mapping[str, ImageSource],
    progress: Progress | None,
    skipped: list[tuple[str, str]] | None,
) -> tuple[list[str], Features]:
    """Encode images batch by batch; unusable ones are noted in ``skipped``, or an error where that is None."""
    from concurrent.futures import ThreadPoolExecutor  # only here, and slow to import

    def load(item: tuple[str, ImageSource]) -> Loaded:
        try:
            check_id(item[0])
            return encoder.pixels(item[1])
        except UsageError as error:
            return ImageError(str(error))
        except ImageError as error:
            return error

    ids: list[str] = []
    features = [np.empty((0, encoder.dim), np.float32)]
    # Decoding runs beside itself, not beside the network: PIL releases the interpreter while it works
    with ThreadPoolExecutor(encoder.threads) as pool:
        remaining, done = iter(images.items()), 0
        while batch := list(islice(remaining, IMAGE_BATCH)):
            kept: list[Pixels] = []
            for (name, _), loaded in zip(batch, pool.map(load, batch), strict=True):
                if not isinstance(loaded, ImageError):
                    kept.append(loaded)
                    ids.append(name)
                elif skipped is None:
                    raise loaded
                else:
                    skipped.append((name, str(loaded)))
            if kept:
                features.append(encoder.encode_pixels(np.stack(kept))["image_features"])
            done += len(batch)
            if progress is not None:
                progress(done, len(images))
    return ids, np.concatenate(features)


def _refuse_known(known: tuple[str, ...], ids: Iterable[str], replace: bool) -> None:
    if not replace:
        for name in ids:
            if row_of(known, name) is not None:
                raise UsageError(f"the gallery holds {name!r:.80} already; remove it first, or give replace=True")


def _checked(images: Mapping[str, ImageSource]) -> Mapping[str, ImageSource]:
    if not isinstance(images, Mapping):
        raise UsageError(f"images is a {type(images).__name__}; give a dict of images by id, or a folder's path")
    for name in images:
        check_id(name)
    return images


def _several(ids: Iterable[str]) -> Iterator[str]:
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        raise UsageError(f"{ids!r:.80} is no list of ids; give a list, also for one id")
    return iter(ids)


def _check_k(k: int) -> None:
    if type(k) is not int or k < 1:
        raise UsageError(f"k is {k!r}; give a whole number of at least 1")
