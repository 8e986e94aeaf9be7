"""Re-rank the first answers with the vision compositor: the implicit relation, used at query time.

Each of the first K answers is a possible target, so the compositor can relate it with the reference, and that relation
can be compared with the text: ``score = q . t_j + mu * cos(F_c, F_v(r, t_j))``. The same as `dra_train.rerank`, in
numpy and ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.folder import images_of_folder

if TYPE_CHECKING:
    from dra_runtime.bundle import Bundle
    from dra_runtime.encoder import Encoder
    from dra_runtime.preprocess import ImageSource
    from dra_runtime.vectors import Vectors

Tokens = npt.NDArray[np.float32]
Images = Mapping[str, "ImageSource"] | Callable[[str], "ImageSource"] | str | Path
ImageOf = Callable[[str], "ImageSource | None"]

DEFAULT_MU = 0.05  #: cautious; `dra-train evaluate --rerank K` finds a model's own
PAIRS = 32  #: related at once: 13 MB of tokens at the paper's size


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


def check_rerank(encoder: Encoder, rerank: int, mu: float | None) -> float:
    """Return the weight to re-rank with, having made sure that this bundle can re-rank.

    Raises
    ------
    UsageError
        The bundle has no reranker, ``rerank`` is no whole number of at least 2, or ``mu`` isn't finite.
    """
    token_shape(encoder.bundle)
    if type(rerank) is not int or rerank < 2:
        raise UsageError(f"rerank is {rerank!r}; give how many of the first answers to re-rank, at least 2")
    if mu is None:
        return DEFAULT_MU
    if isinstance(mu, bool) or not isinstance(mu, int | float) or not math.isfinite(mu):
        raise UsageError(f"mu is {mu!r}; give a finite number, such as {DEFAULT_MU}")
    return float(mu)


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


def order_by_sum(
    scores: npt.NDArray[np.float32], agreements: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], mu: float
) -> npt.NDArray[np.int64]:
    """Return the places (K,) of the first K answers by falling ``scores + mu * agreements``; ties by row."""
    order: npt.NDArray[np.int64] = np.lexsort((rows, -(scores + np.float32(mu) * agreements)))
    return order


def reranked(
    encoder: Encoder,
    vectors: Vectors,
    answer: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]],
    first: int,
    mu: float,
    reference_tokens: npt.ArrayLike,
    text_features: npt.ArrayLike,
    image_of: ImageOf | None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Put the first answers of one query into the order of their sums; the others, and all cosines, stay.

    Parameters
    ----------
    encoder, vectors
        The bundle, and the gallery that ``answer`` was found in.
    answer
        Row numbers and cosines, best first.
    first
        How many of them may move.
    mu
        The weight of the relation.
    reference_tokens, text_features
        (T, D) of the query's image, (D,) of its text, raw.
    image_of
        Where images come from if the gallery keeps no tokens.

    Raises
    ------
    UsageError
        Neither tokens nor images are known.
    ImageError
        An image can't be used.
    """
    rows, scores = answer
    head = rows[:first]
    candidates = tokens_of(encoder, vectors, head, image_of)
    agreements = agreement(encoder, reference_tokens, candidates, text_features)
    order = np.concatenate([order_by_sum(scores[:first], agreements, head, mu), np.arange(len(head), len(rows))])
    return rows[order], scores[order]


def tokens_of(
    encoder: Encoder, vectors: Vectors, rows: npt.NDArray[np.int64], image_of: ImageOf | None
) -> npt.NDArray[np.float16 | np.float32]:
    """Return the image_tokens (K, T, D) of a gallery's rows: those it keeps, else from the images.

    Raises
    ------
    UsageError
        The gallery keeps no tokens, and where its images are isn't known.
    ImageError
        An image can't be used.
    """
    if vectors.tokens is not None:
        return np.asarray(vectors.tokens[rows])
    ids = [vectors.ids[row] for row in rows]
    images = [None if image_of is None else image_of(name) for name in ids]
    for name, image in zip(ids, images, strict=True):
        if image is None:
            where = "nor where its images are" if image_of is None else f"nor an image of {name!r:.80}"
            raise UsageError(
                f"to re-rank, the gallery knows neither tokens {where}; "
                "build it with tokens=True, or open it with images=FOLDER"
            )
    return encoder.image_tokens(images)  # type: ignore[arg-type]  # none is None


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


def image_lookup(images: Images) -> ImageOf:
    """Return what gives the image of an id, or None: of a mapping, a function, or a folder as `Gallery.build` names it.

    A folder is listed at the first call.

    Raises
    ------
    UsageError
        It is none of these.
    """
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
    if not np.isfinite(array).all():
        raise UsageError(f"{name} holds NaN or infinity; give finite numbers")
    return array
