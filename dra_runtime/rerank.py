"""Re-rank the first answers with the vision compositor: the implicit relation, used at query time.

Each of the first K answers is a possible target, so the compositor can relate it with the reference, and that relation
can be compared with the text: ``score = q . t_j + mu * cos(F_c, F_v(r, t_j))``. The same as `dra_train.rerank`, in
numpy and ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError, GalleryFormatError, UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.preprocess import ImageSource

if TYPE_CHECKING:
    from dra_runtime.bundle import Bundle
    from dra_runtime.encoder import Encoder
    from dra_runtime.snapshot import Answer, Place, Snapshot

Tokens = npt.NDArray[np.float32]
ImageOf = Callable[[str], ImageSource | None]
Images = Mapping[str, ImageSource] | ImageOf | str | Path

DEFAULT_MU = 0.05  #: cautious; `dra-train evaluate --rerank K` finds a model's own
MAX_MU = 1000
PAIRS = 32  #: related at once: 13 MB of tokens at the paper's size


@dataclass(frozen=True)
class Reranking:
    """How many of the first answers may move, and the weight of the relation."""

    first: int
    mu: float


def token_shape(bundle: Bundle) -> tuple[int, int]:
    """Return T and D of the bundle's image_tokens (N, T, D).

    Raises
    ------
    UsageError
        The bundle has no reranker.
    """
    spec = bundle.manifest.graphs.get("reranker")
    if spec is None:
        raise UsageError(
            f"{bundle.path} has no reranker; search without rerank, or export a checkpoint that has a vision compositor"
        )
    _, count, dim = spec.inputs[0].shape
    return int(count), int(dim)


def fits_bundle(tokens: npt.NDArray[np.float16] | None, bundle: Bundle) -> bool:
    """Say whether stored tokens (N, T, D), or none, can be the bundle's."""
    return tokens is None or ("reranker" in bundle.manifest.graphs and tokens.shape[1:] == token_shape(bundle))


def check_stored_tokens(gallery: Path, tokens: npt.NDArray[np.float16] | None, bundle: Bundle) -> None:
    """Raise GalleryFormatError unless the tokens in a gallery's file can be the bundle's."""
    if tokens is not None and not fits_bundle(tokens, bundle):
        expected = token_shape(bundle) if "reranker" in bundle.manifest.graphs else "no reranker"
        raise GalleryFormatError(
            f"{gallery}: its images' tokens are {tokens.shape[1:]} where {bundle.path} has {expected}; index again"
        )


def checked_reranking(encoder: Encoder, rerank: int | None, mu: float | None, known: bool) -> Reranking | None:
    """Return how to re-rank, or None where nobody asked for it; ``known``: the gallery knows tokens or images.

    Raises
    ------
    UsageError
        The bundle has no reranker, ``rerank`` is no whole number of at least 2, ``mu`` is out of range or without
        ``rerank``, or nothing is known.
    """
    if rerank is None:
        if mu is not None:
            raise UsageError("mu weighs what rerank adds; give rerank as well, such as rerank=20")
        return None
    if type(rerank) is not int or rerank < 2:
        raise UsageError(f"rerank is {rerank!r}; give how many of the first answers to re-rank, at least 2")
    if mu is None:
        mu = DEFAULT_MU
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not abs(mu) <= MAX_MU:
        raise UsageError(f"mu is {mu!r}; give a number from -{MAX_MU} to {MAX_MU}, such as {DEFAULT_MU}")
    token_shape(encoder.bundle)
    if not known:
        raise UsageError(
            "the gallery stores no image tokens and doesn't know where its images are, so it can't re-rank; "
            "build it with tokens=True, or open it with images=FOLDER"
        )
    return Reranking(rerank, float(mu))


def relate(encoder: Encoder, reference_tokens: npt.ArrayLike, candidate_tokens: npt.ArrayLike) -> Tokens:
    """Do what `Encoder.relations` says."""
    shape = token_shape(encoder.bundle)
    reference = _checked_tokens(reference_tokens, "reference_tokens", shape)
    candidates = _checked_tokens(candidate_tokens, "candidate_tokens", shape)
    if len(reference) not in (1, len(candidates)):
        raise UsageError(
            f"{len(reference)} reference_tokens for {len(candidates)} candidate_tokens; give pairs, or one reference"
        )
    relations = np.empty((len(candidates), encoder.dim), np.float32)
    for first in range(0, len(candidates), PAIRS):
        part = slice(first, first + PAIRS)
        ours = reference[part] if len(reference) > 1 else np.repeat(reference, len(candidates[part]), axis=0)
        inputs = {"reference_tokens": ours.astype(np.float32), "candidate_tokens": candidates[part].astype(np.float32)}
        relations[part] = encoder.session("reranker").run(inputs)["relation_features"]
    return relations


def agreement(
    encoder: Encoder, reference_tokens: npt.ArrayLike, candidate_tokens: npt.ArrayLike, text_features: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Return cos(F_c, F_v(r, t_j)) of one query's reference (T, D), candidates (K, T, D) and raw text_features (D,)."""
    relations = relate(encoder, np.asarray(reference_tokens)[None], candidate_tokens).astype(np.float64)
    text = np.asarray(text_features, np.float64)
    # As PyTorch's cosine_similarity: a zero vector agrees with nothing
    lengths = np.maximum(np.linalg.norm(relations, axis=1) * np.linalg.norm(text), 1e-8)
    cosines: npt.NDArray[np.float32] = ((relations * text).sum(axis=1) / lengths).astype(np.float32)
    return cosines


def reranked(
    encoder: Encoder,
    snapshot: Snapshot,
    answers: Sequence[Answer],
    reranking: Reranking,
    reference_tokens: Tokens,
    text_features: npt.NDArray[np.float32],
    image_of: ImageOf,
) -> list[Answer]:
    """Put the first answers of one query into the order of their sums; the others, and all cosines, stay.

    Parameters
    ----------
    encoder, snapshot
        The bundle, and the gallery that was searched.
    answers
        Best first.
    reranking
        How many of them may move, and the weight of the relation.
    reference_tokens, text_features
        (T, D) of the query's image, (D,) of its text, raw.
    image_of
        Gives the images whose tokens the gallery doesn't store.

    Raises
    ------
    UsageError
        An image's tokens aren't stored, and the image isn't known.
    ImageError
        An image can't be used.
    """
    head = answers[: reranking.first]
    sums: list[float] = []
    for start in range(0, len(head), PAIRS):
        part = head[start : start + PAIRS]
        candidates = tokens_at(encoder, snapshot, [(name, place) for _, name, place in part], image_of)
        cosines = agreement(encoder, reference_tokens, candidates, text_features)
        scores = np.array([score for score, _, _ in part], np.float32)
        sums += (scores + np.float32(reranking.mu) * cosines).tolist()
    order = sorted(range(len(head)), key=lambda i: (-sums[i], head[i][1]))
    return [*(head[i] for i in order), *answers[reranking.first :]]


def tokens_at(encoder: Encoder, snapshot: Snapshot, images: Sequence[tuple[str, Place]], image_of: ImageOf) -> Tokens:
    """Return the image_tokens (K, T, D) of a gallery's images: as it stores them, else encoded now.

    Raises
    ------
    UsageError
        An image's tokens aren't stored, and the image isn't known.
    ImageError
        An image can't be used.
    """
    tokens = np.empty((len(images), *token_shape(encoder.bundle)), np.float32)
    absent, sources = [], []
    for i, (name, place) in enumerate(images):
        stored = snapshot.tokens(place)
        if stored is not None:
            tokens[i] = stored
            continue
        source = image_of(name)
        if source is None:
            raise UsageError(
                f"to re-rank, the gallery stores no tokens of {name!r:.80} and doesn't know its image; "
                "build it with tokens=True, or open it with images=FOLDER"
            )
        absent.append(i)
        sources.append(source)
    if sources:
        tokens[absent] = encoder.image_tokens(sources)
    return tokens


class KnownImages:
    """Where a gallery's images are: those added by their paths, and what the caller said.

    Safe to share between threads.

    Parameters
    ----------
    images
        A folder (ids as `Gallery.build` makes them; listed when it is first needed), a mapping by id, or a function
        that returns an id's image, or None for one that it doesn't know.

    Raises
    ------
    UsageError
        ``images`` is none of these.
    """

    def __init__(self, images: Images | None = None) -> None:
        self._added: dict[str, Path | str | None] = {}
        self._said = _lookup(images)
        self._any_said = bool(images) if isinstance(images, Mapping) else images is not None

    def __call__(self, name: str) -> ImageSource | None:
        """Return an id's image, or None."""
        try:
            return self._added[name]
        except KeyError:  # not asked first: another thread may remove it in between
            return self._said(name)

    def __bool__(self) -> bool:
        """Say whether any image may be known."""
        return self._any_said or bool(self._added)

    def add(self, images: Mapping[str, ImageSource]) -> None:
        """Remember where images are that were added; of pictures in memory, that they aren't known."""
        paths = paths_of(images)
        self._added.update({name: paths.get(name) for name in images})

    def remove(self, names: Iterable[str]) -> None:
        """Forget images that were added."""
        for name in names:
            self._added.pop(name, None)


def paths_of(images: Mapping[str, ImageSource]) -> dict[str, Path | str]:
    """Return the images that are paths: a gallery doesn't keep pictures in memory."""
    return {name: image for name, image in images.items() if isinstance(image, str | Path)}


def half_tokens(tokens: Tokens) -> npt.NDArray[np.float16]:
    """Return image_tokens in float16, as a gallery keeps them.

    Raises
    ------
    GalleryError
        A value is beyond what float16 can hold.
    """
    with np.errstate(over="ignore"):
        half = tokens.astype(np.float16)
    if not np.isfinite(half).all():
        raise GalleryError(
            f"the images' tokens reach {np.abs(tokens).max():g}, more than float16 can hold; build without tokens=True"
        )
    return half


def _lookup(images: Images | None) -> ImageOf:
    if images is None:
        return lambda name: None
    if isinstance(images, str | Path):
        folder = Path(images)

        @cache
        def listed() -> Mapping[str, Path]:
            return images_of_folder(folder)

        return lambda name: listed().get(name)
    if isinstance(images, Mapping):
        return images.get
    if callable(images):
        return images
    raise UsageError(
        f"images is a {type(images).__name__}; give a folder, a dict of images by id, or a function from id to image"
    )


def _checked_tokens(values: npt.ArrayLike, name: str, shape: tuple[int, int]) -> npt.NDArray[np.float32 | np.float16]:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise UsageError(f"{name} is no array ({error}); give floats of shape (N, {shape[0]}, {shape[1]})") from error
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[1:] != shape:
        raise UsageError(
            f"{name} is {array.dtype} {array.shape}; give floats of shape (N, {shape[0]}, {shape[1]}), "
            "as Encoder.image_tokens makes them"
        )
    with np.errstate(over="ignore"):
        tokens = array if array.dtype == np.float16 else array.astype(np.float32, copy=False)
    if not np.isfinite(tokens).all():
        raise UsageError(f"{name} holds NaN or infinity; give finite numbers")
    return tokens
