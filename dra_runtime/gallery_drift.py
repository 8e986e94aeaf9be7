"""Will a gallery's vectors still do with another bundle? A sample of its images is encoded again to tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from dra_runtime.encoder import Encoder, Features
from dra_runtime.errors import GalleryError, UsageError
from dra_runtime.folder import images_of_folder
from dra_runtime.gallery_file import Contents, read_contents, write_gallery
from dra_runtime.image_stream import encoded_images
from dra_runtime.rerank import check_stored_tokens, fits_bundle
from dra_runtime.search import top_k
from dra_runtime.vectors import Vectors

Verdict = Literal["same", "close", "reindex"]

# The limits by which dra-export verify judges float32 and half bundles. A query of unit length scores an image at most
# sqrt(2 - 2 * cosine) higher or lower: 0.0045 and 0.045.
SAME_COSINE = 0.99999  #: as one model in float32 gives on two hosts, or exported twice
SAME_LENGTH = 0.001  #: relative change of a vector's length, which the compositor sees in queries by id
CLOSE_COSINE = 0.999  #: as one model gives in float32 and in half
CLOSE_OVERLAP = 99.0  #: percent of the first ten answers in common
SAMPLE = 256
_WORST = 3


@dataclass(frozen=True)
class DriftReport:
    """How far stored vectors are from what a bundle gives.

    ``compared`` of ``sampled`` images; ``missing`` were not found, ``unreadable`` couldn't be read. What could not be
    measured is None. ``cosine`` has min, p1, p5, p50 and mean; ``norm_change`` is the largest relative change of a
    vector's length; ``token_cosine`` is the smallest one of an image's stored tokens, which re-ranking uses, and None
    where the gallery keeps none; ``worst`` are the images with the smallest cosines. ``top1_same`` and
    ``top10_overlap`` are percentages over the sample's queries.
    """

    verdict: Verdict
    reason: str
    gallery_bundle_id: str
    bundle_id: str
    gallery_dim: int
    dim: int
    sampled: int
    compared: int
    missing: int
    unreadable: int
    cosine: Mapping[str, float] | None
    norm_change: float | None
    token_cosine: float | None
    top1_same: float | None
    top10_overlap: float | None
    worst: Sequence[tuple[str, float]]

    @property
    def keep(self) -> bool:
        """Say whether the stored vectors will do."""
        return self.verdict != "reindex"


def drift(
    gallery: str | Path,
    encoder: Encoder,
    images: str | Path | None = None,
    sample: int = SAMPLE,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DriftReport:
    """Compare a gallery's vectors with those that another bundle gives for the same images.

    The queries are by id: a sampled image with a text of the bundle's selftest. Each is composed and answered from the
    sample's stored vectors, as the kept gallery would do it, and from the new ones, as a gallery indexed again would.

    Parameters
    ----------
    gallery
        A gallery file; any bundle may have made it.
    encoder
        Of the bundle in question.
    images
        The folder that the gallery was indexed from; by default where it was then.
    sample
        How many images to encode; a smaller gallery gives all.
    seed
        Chooses them.
    progress
        Called with the number of images done and of all.

    Returns
    -------
    DriftReport
        Vectors of another width, or tokens of another shape, are a verdict, without an image being encoded.

    Raises
    ------
    UsageError
        ``sample`` is below 2, ``seed`` below 0, or the gallery doesn't say where its images are.
    GalleryError
        The gallery can't be read, or fewer than two of the sampled images can.
    """
    gallery = Path(gallery)
    for name, value, least in (("sample", sample, 2), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise UsageError(f"{name} is {value!r}; give a whole number of at least {least}")
    contents = read_contents(gallery)
    header, vectors = contents.header, contents.vectors
    reason = None
    if header.dim != encoder.dim:
        reason = f"the vectors have {header.dim} values, and this bundle's {encoder.dim}"
    elif not fits_bundle(vectors.tokens, encoder.bundle):
        reason = "the stored tokens are of another shape than this bundle's, or it has no reranker"
    if reason is not None:
        ids = (header.bundle_id, encoder.bundle_id, header.dim, encoder.dim)
        return DriftReport("reindex", reason, *ids, 0, 0, 0, 0, None, None, None, None, None, ())
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:sample])
    images = _folder_of(gallery, contents) if images is None else Path(images)
    paths = images_of_folder(images)
    found = [(int(row), paths[vectors.ids[row]]) for row in rows if vectors.ids[row] in paths]
    kept, features, token_cosine = _encoded(encoder, vectors, found, progress)
    if len(kept) < 2:
        raise GalleryError(
            f"{images}: {len(found)} of the {len(rows)} sampled images are there and {len(kept)} can be read, such as "
            f"{vectors.ids[int(rows[0])]!r:.80}; give the folder that {gallery} was indexed from"
            if len(rows)
            else f"{gallery} holds no images; index again"
        )
    return _report(header.bundle_id, encoder, vectors, kept, features, token_cosine, (len(rows), len(found)))


def adopt_bundle(gallery: str | Path, encoder: Encoder) -> None:
    """Let a gallery be another bundle's from now on, its vectors and all else unchanged.

    The file is written anew and takes the old one's place. Ask `drift` first: the old bundle is forgotten.

    Raises
    ------
    GalleryError
        The gallery can't be read or written, or its tokens are of another shape than the bundle's.
    UsageError
        The bundle's vectors are of another width.
    """
    gallery = Path(gallery)
    old = read_contents(gallery)
    if old.header.dim != encoder.dim:
        raise UsageError(
            f"{gallery} has vectors of {old.header.dim} values, and the bundle of {encoder.dim}; index again"
        )
    check_stored_tokens(gallery, old.vectors.tokens, encoder.bundle)
    write_gallery(gallery, old.vectors, encoder.bundle_id, encoder.bundle.path, old.index, old.files)


def _folder_of(gallery: Path, contents: Contents) -> Path:
    if contents.files is None:
        raise UsageError(f"{gallery} doesn't say where its images are; give their folder: --images FOLDER")
    return contents.files.folder


def _encoded(
    encoder: Encoder,
    vectors: Vectors,
    found: Sequence[tuple[int, Path]],
    progress: Callable[[int, int], None] | None,
) -> tuple[npt.NDArray[np.int64], Features, float | None]:
    """Encode images, given as (row, path); return the rows that could be, and what `DriftReport` compares of them."""
    rows: list[int] = []
    features = [np.empty((0, encoder.dim), np.float32)]
    token_cosines = [1.0]
    done = 0
    for batch in encoded_images(encoder, found):
        rows += batch.keys
        features.append(batch.features)
        if vectors.tokens is not None and batch.tokens is not None:
            stored, new = vectors.tokens[batch.keys], batch.tokens
            token_cosines += _cosines(*(t.reshape(len(t), -1).astype(np.float64) for t in (stored, new))).tolist()
        done += len(batch.keys) + len(batch.failed)
        if progress is not None:
            progress(done, len(found))
    least = None if vectors.tokens is None else min(token_cosines)
    return np.asarray(rows, np.int64), np.concatenate(features), least


def _cosines(stored: npt.NDArray[np.float64], new: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosines of rows (N, D), 0 where one is zero."""
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(new, axis=1)
    cosines: npt.NDArray[np.float64] = (stored * new).sum(axis=1) / np.where(lengths > 0, lengths, np.inf)
    return cosines


def _report(
    gallery_bundle_id: str,
    encoder: Encoder,
    vectors: Vectors,
    rows: npt.NDArray[np.int64],
    features: Features,
    token_cosine: float | None,
    counts: tuple[int, int],
) -> DriftReport:
    stored = np.asarray(vectors.unit[rows], np.float64)
    new = features.astype(np.float64)
    lengths = np.linalg.norm(new, axis=1)
    if not (np.isfinite(lengths).all() and lengths.all()):
        raise GalleryError(
            f"{encoder.bundle.path} gives vectors that are zero or not finite; check it: dra-search selfcheck"
        )
    cosines = _cosines(stored, new)
    norms = np.asarray(vectors.norms[rows], np.float64)
    top1, overlap = _answers_in_common(encoder, (stored * norms[:, None]).astype(np.float32), features)
    norm_change = float(np.abs(lengths / norms - 1).max())
    spread = {"min": cosines.min(), "p1": np.percentile(cosines, 1), "p5": np.percentile(cosines, 5)}
    spread |= {"p50": np.median(cosines), "mean": cosines.mean()}
    cosine = {name: float(value) for name, value in spread.items()}
    verdict, reason = _verdict(cosine, norm_change, token_cosine, overlap)
    worst = [(vectors.ids[int(rows[i])], float(cosines[i])) for i in np.argsort(cosines, kind="stable")[:_WORST]]
    return DriftReport(
        verdict=verdict,
        reason=reason,
        gallery_bundle_id=gallery_bundle_id,
        bundle_id=encoder.bundle_id,
        gallery_dim=encoder.dim,
        dim=encoder.dim,
        sampled=counts[0],
        compared=len(rows),
        missing=counts[0] - counts[1],
        unreadable=counts[1] - len(rows),
        cosine=cosine,
        norm_change=norm_change,
        token_cosine=token_cosine,
        top1_same=top1,
        top10_overlap=overlap,
        worst=worst,
    )


def _answers_in_common(encoder: Encoder, stored: Features, new: Features) -> tuple[float, float]:
    """Return in percent how often raw features (N, D) give the same first answer, and how many of the first ten."""
    texts = [str(text) for text in encoder.bundle.selftest()["texts"]]
    text_features = encoder.encode_texts(texts)[np.arange(len(new)) % len(texts)]
    k, itself = min(10, len(new) - 1), np.arange(len(new))
    answers = []
    for features in (stored, new):
        unit = features / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
        queries = encoder.compose(features, text_features)
        answers.append([rows.tolist() for rows, _ in top_k(unit.astype(np.float32), queries, k, itself)])
    pairs = list(zip(*answers, strict=True))
    first = sum(a[0] == b[0] for a, b in pairs)
    common = sum(len(set(a) & set(b)) for a, b in pairs)
    return 100 * first / len(pairs), 100 * common / (k * len(pairs))


def _verdict(
    cosine: Mapping[str, float], norm_change: float, token_cosine: float | None, overlap: float
) -> tuple[Verdict, str]:
    least = cosine["min"]
    tokens = 1.0 if token_cosine is None else token_cosine
    if min(least, tokens) >= SAME_COSINE and norm_change <= SAME_LENGTH:
        return "same", f"every cosine is at least {SAME_COSINE}, every length within {SAME_LENGTH:.1%}"
    answers = f"{overlap:.1f} % of the first ten answers are the same"
    if min(least, tokens) >= CLOSE_COSINE and overlap >= CLOSE_OVERLAP:
        return "close", f"every cosine is at least {CLOSE_COSINE}, and {answers}"
    if tokens < CLOSE_COSINE <= least:
        return "reindex", f"the smallest cosine of stored tokens is {tokens:.6f}, below {CLOSE_COSINE}"
    if least >= CLOSE_COSINE:
        return "reindex", f"{answers}, below {CLOSE_OVERLAP:g} %"
    few = ", though few are: perhaps these files were changed since" if cosine["p5"] >= CLOSE_COSINE else ""
    return "reindex", f"the smallest cosine is {least:.6f}, below {CLOSE_COSINE}{few}"
