"""Images and texts to vectors, and both to queries."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from dra_runtime.bundle import Bundle, Integrity
from dra_runtime.errors import BundleFormatError, TextError, UsageError
from dra_runtime.preprocess import ImageSource, Preprocess, open_image
from dra_runtime.sessions import GpuOptions, Session, checked_threads, choose_backend, open_session
from dra_runtime.threads import require_process
from dra_runtime.tokenizer import Tokenizer

Item = TypeVar("Item")
Features = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.float32 | np.uint8]

IMAGE_BATCH = 16  # images in memory at once
TEXT_BATCH = 64
COMPOSE_BATCH = 256
TEXT_BUCKET = 8  # texts whose lengths differ by less share a batch
MAX_TEXT = 10_000  #: characters; the tokens of a text are cut at 77 anyway
MAX_CLEANING = 1_000_000  #: characters times those beyond ASCII: ftfy passes over a text up to once for each of these


class Encoder:
    """A bundle, opened for encoding. Make one with `Encoder.open`.

    Safe to share between threads, not between processes: after a fork the child opens its own. A graph is loaded when
    it is first needed: a query by text and id never loads the image encoder. Memory stays the same for any number of
    inputs, apart from the result. ``sessions`` were opened elsewhere, by name of their graph, and run in place of the
    bundle's own.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str,
        threads: int,
        tokenizer: Tokenizer,
        sessions: Mapping[str, Session] | None = None,
        gpu: GpuOptions | None = None,
    ) -> None:
        self._bundle = bundle
        self._backend = backend
        self._threads = threads
        self._gpu = gpu
        self._tokenizer = tokenizer
        self._sessions: dict[str, Session] = dict(sessions or {})
        self._lock = threading.Lock()
        self._process = os.getpid()

    @classmethod
    def open(
        cls,
        path: str | Path,
        backend: str = "auto",
        threads: int | None = None,
        integrity: Integrity = "hash",
        check: bool = False,
        gpu: GpuOptions | None = None,
    ) -> Encoder:
        """Open a bundle.

        Parameters
        ----------
        path
            The bundle's folder.
        backend
            ``"tensorrt"``, ``"tensorrt-rtx"``, ``"onnxruntime-cuda"``, ``"onnxruntime-cpu"``, or ``"auto"`` for the
            first of them that works here; the attribute `backend` says which. One that was asked for by its name and
            can't be used is an error. See docs/backends.md.
        threads
            Threads of one computation; by default the CPUs that affinity and container quota leave us.
        integrity
            ``"hash"`` compares every file's SHA-256 with the manifest, ``"size"`` only its size.
        check
            Run the bundle's selftest first (see `dra_runtime.selfcheck`).
        gpu
            How a backend on the GPU uses it; by default as `dra_runtime.sessions.GpuOptions` says.

        Raises
        ------
        BundleError
            The bundle can't be used.
        BackendError
            The backend can't be used here; the line says why, and what to do.
        SelfCheckError
            This host doesn't reproduce the exporter's vectors.
        """
        threads = checked_threads(threads)
        bundle = Bundle.open(path, integrity)
        backend, sessions = choose_backend(backend, bundle, threads, gpu)
        encoder = cls(bundle, backend, threads, _load_tokenizer(bundle), sessions, gpu)
        if check:
            from dra_runtime.selfcheck import require_selfcheck

            require_selfcheck(encoder)
        return encoder

    @property
    def backend(self) -> str:
        """Name the backend in use."""
        return self._backend

    @property
    def threads(self) -> int:
        """Return how many threads one computation uses."""
        return self._threads

    @property
    def dim(self) -> int:
        """Return D, the width of every vector."""
        return self._bundle.manifest.dim

    @property
    def bundle_id(self) -> str:
        """Return the bundle's identity: vectors of two bundles can be compared only if these are equal."""
        return self._bundle.manifest.bundle_id

    @property
    def bundle(self) -> Bundle:
        """Return the opened bundle."""
        return self._bundle

    @property
    def preprocess(self) -> Preprocess:
        """Return what turns an image into the image encoder's input."""
        return self._bundle.manifest.preprocess

    @property
    def image_input(self) -> str:
        """Return the type of the image encoder's input: ``"float32"`` or ``"uint8"``."""
        return self._bundle.manifest.image_input

    @property
    def tokenizer(self) -> Tokenizer:
        """Return what turns a text into the text encoder's input."""
        return self._tokenizer

    def session(self, graph: str) -> Session:
        """Return the session of a graph, opened at the first call.

        Raises
        ------
        UsageError
            The bundle has no such graph.
        BackendError
            This process was forked from the one that opened the encoder; the graphs' threads did not come along.
        """
        require_process(self._process, "encoder")
        session = self._sessions.get(graph)
        if session is None:
            with self._lock:
                session = self._sessions.get(graph)
                if session is None:
                    session = self._sessions[graph] = self._open_session(graph)
        return session

    def encode_images(self, images: ImageSource | Iterable[ImageSource]) -> Features:
        """Encode images.

        Parameters
        ----------
        images
            Paths, encoded bytes, PIL images or uint8 arrays (H, W, 3) or (H, W); one, or an iterable of them, which is
            read as a stream. A uint8 array (N, H, W, 3) is N images.

        Returns
        -------
        np.ndarray
            (N, D) float32, raw: not of unit length. N is 1 for a single image.

        Raises
        ------
        ImageError
            An image can't be used.
        """
        return self._joined([outputs["image_features"] for outputs in self._image_outputs(images)])

    def image_tokens(self, images: ImageSource | Iterable[ImageSource]) -> Features:
        """Encode what re-ranking compares of images: a vector for each of T places.

        Parameters
        ----------
        images
            As for `encode_images`.

        Returns
        -------
        np.ndarray
            (N, T, D) float32. N is 1 for a single image.

        Raises
        ------
        UsageError
            The bundle has no reranker.
        ImageError
            An image can't be used.
        """
        from dra_runtime.rerank import token_shape

        shape = token_shape(self._bundle)
        batches = [outputs["image_tokens"] for outputs in self._image_outputs(images)]
        return np.concatenate(batches) if batches else np.empty((0, *shape), np.float32)

    def relations(self, reference_tokens: npt.ArrayLike, candidate_tokens: npt.ArrayLike) -> Features:
        """Relate images with the vision compositor, pair by pair: what a text that leads from one to the other says.

        Parameters
        ----------
        reference_tokens, candidate_tokens
            (N, T, D) as `image_tokens` returns them, in float32 or float16. One reference (1, T, D) goes with all
            candidates.

        Returns
        -------
        np.ndarray
            relation_features (N, D) float32, not of unit length.

        Raises
        ------
        UsageError
            The bundle has no reranker, the shapes don't fit, or a value is not finite.
        """
        from dra_runtime.rerank import relate

        return relate(self, reference_tokens, candidate_tokens)

    def pixels(self, image: ImageSource, threads: int | None = None) -> Pixels:
        """Return what the bundle's image encoder takes for one image.

        Parameters
        ----------
        image
            As for `encode_images`.
        threads
            How many threads resize a large image, by default as many as one computation uses; 1 where several images
            are decoded at a time. Their number changes nothing in the result.

        Returns
        -------
        np.ndarray
            (3, S, S): float32, preprocessed; or uint8, not yet normalised, where the graph does that itself.

        Raises
        ------
        ImageError
            The image can't be used.
        """
        return self.preprocess.network_input(open_image(image), self.image_input, threads or self._threads)

    def encode_pixels(self, pixels: Pixels) -> dict[str, Features]:
        """Run the image encoder on images (N, 3, S, S) as `pixels` returns them, stacked.

        Returns
        -------
        dict
            image_features (N, D) and, where the bundle has a reranker, image_tokens (N, T, D).

        Raises
        ------
        UsageError
            The pixels are of another type than `image_input`.
        """
        if pixels.dtype != self.image_input:
            raise UsageError(
                f"the pixels are {pixels.dtype} where this bundle's image encoder takes {self.image_input}; "
                "make them with Encoder.pixels"
            )
        return self.session("image_encoder").run({"image": pixels})

    def encode_texts(self, texts: str | Iterable[str]) -> Features:
        """Encode texts.

        Each batch is cut to its longest text, which changes nothing: the text tower is causal and pooled at the end
        token, so it never sees what stands behind. Texts of like length share a batch, except in INT8
        (docs/exactness.md).

        Returns
        -------
        np.ndarray
            (N, D) float32, raw, in the order of the texts. N is 1 for a single text.

        Raises
        ------
        TextError
            A text is empty, blank, or no string.
        """
        return self.encode_tokens(self.tokenize(texts))

    def encode_tokens(self, rows: Sequence[Sequence[int]]) -> Features:
        """Encode texts that were tokenized before.

        Parameters
        ----------
        rows
            N token rows as `tokenize` returns them: from the start to the end token, of any lengths.

        Returns
        -------
        np.ndarray
            (N, D) float32, raw, in the order of the rows.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        features = np.empty((len(rows), self.dim), np.float32)
        for group in _by_length(order, [len(row) for row in rows], self._rows_at_once(TEXT_BATCH)):
            tokens = np.zeros((len(group), len(rows[group[-1]])), np.int32)
            for row, i in zip(tokens, group, strict=True):
                row[: len(rows[i])] = rows[i]
            features[group] = self.session("text_encoder").run({"tokens": tokens})["text_features"]
        return features

    def tokenize(self, texts: str | Iterable[str]) -> list[list[int]]:
        """Return each text's token ids, from the start to the end token.

        Raises
        ------
        TextError
            A text is empty, blank, or no string.
        """
        return token_rows(self._tokenizer, texts)

    def compose(self, image_features: npt.ArrayLike, text_features: npt.ArrayLike) -> Features:
        """Compose queries from raw image and text features, pair by pair.

        Parameters
        ----------
        image_features, text_features
            (N, D) as `encode_images` and `encode_texts` return them: raw, not of unit length.

        Returns
        -------
        np.ndarray
            (N, D) float32, unit length.

        Raises
        ------
        UsageError
            The shapes don't fit, or a value is not finite.
        """
        image_features = checked_features(image_features, "image_features", self.dim)
        text_features = checked_features(text_features, "text_features", self.dim)
        if len(image_features) != len(text_features):
            raise UsageError(
                f"{len(image_features)} image_features and {len(text_features)} text_features; give pairs of them"
            )
        queries = []
        step = self._rows_at_once(COMPOSE_BATCH)
        for first in range(0, len(image_features), step):
            part = slice(first, first + step)
            inputs = {"image_features": image_features[part], "text_features": text_features[part]}
            queries.append(self.session("compositor").run(inputs)["query"])
        return self._joined(queries)

    def encode_queries(self, images: ImageSource | Iterable[ImageSource], texts: str | Iterable[str]) -> Features:
        """Encode queries of an image and a text each.

        Returns
        -------
        np.ndarray
            (N, D) float32, unit length.

        Raises
        ------
        ImageError, TextError
            An input can't be used.
        UsageError
            There are more of one than of the other.
        """
        tokens = self.tokenize(texts)
        # The largest graph first: loading it takes the most memory beside itself
        image_features = self.encode_images(images)
        return self.compose(image_features, self.encode_tokens(tokens))

    def _rows_at_once(self, most: int) -> int:
        """Return how many texts or queries share a batch.

        INT8's text encoder and compositor take the scale of their activations from the whole batch: a query's answers
        would depend on the others that happened to be asked with it. So there each runs alone.
        """
        return 1 if self._bundle.manifest.precision == "int8" else most

    def _image_outputs(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[dict[str, Features]]:
        """Run the image encoder over images, a batch at a time."""
        sources: Iterable[ImageSource] = [images] if _is_one_image(images) else images  # type: ignore[list-item, assignment]
        for batch in _batches(sources, IMAGE_BATCH):
            yield self.encode_pixels(np.stack([self.pixels(source) for source in batch]))

    def _joined(self, batches: Sequence[Features]) -> Features:
        return np.concatenate(batches) if batches else np.empty((0, self.dim), np.float32)

    def _open_session(self, graph: str) -> Session:
        return open_session(self._backend, self._bundle, graph, self._threads, self._gpu)


def token_rows(tokenizer: Tokenizer, texts: str | Iterable[str]) -> list[list[int]]:
    """Return each text's token ids, from the start to the end token.

    Raises
    ------
    TextError
        A text is empty, blank, too long, or no string.
    """
    rows = []
    for number, text in enumerate([texts] if isinstance(texts, str) else _iterable(texts, "texts")):
        if not isinstance(text, str):
            raise TextError(f"text {number} is a {type(text).__name__}; give a string")
        if len(text) > MAX_TEXT:
            raise TextError(f"text {number} has {len(text)} characters; give at most {MAX_TEXT}")
        beyond = len(text) - len(text.encode("ascii", "ignore")) + text.count("&")  # HTML entities become such
        if beyond * len(text) > MAX_CLEANING:
            raise TextError(
                f"text {number} has {len(text)} characters, {beyond} of them beyond ASCII; to clean it could take "
                f"seconds, so give at most {MAX_CLEANING // len(text)} of those in a text of this length"
            )
        ids = tokenizer.encode(text)
        if len(ids) == 2:
            raise TextError(f"text {number} is {text[:40]!r}, with nothing to search for; give at least one word")
        rows.append(ids)
    return rows


def checked_features(values: npt.ArrayLike, name: str, dim: int) -> Features:
    """Return features as a float32 array (N, dim), or raise UsageError."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise UsageError(f"{name} is no array ({error}); give floats of shape (N, {dim})") from error
    if array.dtype.kind not in "fiu" or array.ndim != 2 or array.shape[1] != dim:
        raise UsageError(f"{name} is {array.dtype} {array.shape}; give floats of shape (N, {dim})")
    with np.errstate(over="ignore"):
        features = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(features).all():
        raise UsageError(f"{name} holds NaN or infinity; give finite numbers")
    return features


def _load_tokenizer(bundle: Bundle) -> Tokenizer:
    spec = bundle.manifest.tokenizer
    try:
        tokenizer = Tokenizer.load(bundle.file(spec.merges), spec.context_length)
    except UsageError as error:
        raise BundleFormatError(str(error)) from error
    found = (tokenizer.vocab_size, tokenizer.start_token, tokenizer.end_token)
    stated = (spec.vocab_size, spec.start_token, spec.end_token)
    if found != stated:
        raise BundleFormatError(
            f"{bundle.path}: {spec.merges} gives vocab_size, start_token, end_token {found} where the manifest says "
            f"{stated}; export the bundle again"
        )
    return tokenizer


def _is_one_image(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim < 4
    return isinstance(images, str | Path | bytes | bytearray | memoryview | Image.Image)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(_iterable(items, "images"))
    while batch := list(islice(iterator, size)):
        yield batch


def _iterable(items: Iterable[Item], name: str) -> Iterable[Item]:
    if not isinstance(items, Iterable):
        raise UsageError(f"{name} is a {type(items).__name__}; give one or a list of them")
    return items


def _by_length(order: Sequence[int], lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut an order by rising length into batches whose lengths lie in one bucket."""
    for _, same in groupby(order, key=lambda i: -(-lengths[i] // TEXT_BUCKET)):
        yield from _batches(same, most)
