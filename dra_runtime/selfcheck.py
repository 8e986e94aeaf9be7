"""Does this host reproduce the exporter's vectors? A bundle carries a few inputs with PyTorch's outputs to tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dra_runtime.encoder import Encoder
from dra_runtime.errors import SelfCheckError

# Smallest cosine with PyTorch float32 that passes, by the bundle's precision: room for the rounding of that precision
# and of other hardware, and far below what a wrong image path, tokenizer or kernel leaves.
MIN_COSINE = {"fp32": 0.9999, "fp16": 0.999, "int8": 0.9}


@dataclass(frozen=True)
class PartResult:
    """The worst of a part's pairs: smallest cosine and largest difference between ours and the exporter's vectors."""

    min_cosine: float
    max_abs: float
    pairs: int


@dataclass(frozen=True)
class SelfCheckReport:
    """What a selfcheck found, part by part."""

    backend: str
    tokens_equal: bool
    parts: dict[str, PartResult]
    least_cosine: float  #: `MIN_COSINE` of the bundle's precision

    @property
    def passed(self) -> bool:
        """Say whether tokens are equal and every cosine reaches ``least_cosine``."""
        return self.tokens_equal and all(part.min_cosine >= self.least_cosine for part in self.parts.values())


def selfcheck(encoder: Encoder) -> SelfCheckReport:
    """Encode the bundle's selftest from raw pixels and texts, and compare with the exporter's vectors.

    Parts: image_features, text_features, queries and, where the bundle has a reranker, relation_features.

    Raises
    ------
    BundleFormatError
        The selftest can't be read.
    """
    expected = encoder.bundle.selftest()
    texts = [str(text) for text in expected["texts"]]
    length = expected["tokens"].shape[1]
    rows = encoder.tokenize(texts)
    tokens_equal = all(len(row) <= length for row in rows) and np.array_equal(
        [row + [0] * (length - len(row)) for row in rows], expected["tokens"]
    )
    image_features = encoder.encode_images(expected["images"])
    text_features = encoder.encode_texts(texts)
    found = {
        "image_features": image_features,
        "text_features": text_features,
        "queries": encoder.compose(image_features, text_features),
    }
    if "relation_features" in expected:
        found["relation_features"] = _relation_features(encoder, expected["images"])
    parts = {name: _compared(vectors, expected[name]) for name, vectors in found.items()}
    return SelfCheckReport(encoder.backend, tokens_equal, parts, MIN_COSINE[encoder.bundle.manifest.precision])


def require_selfcheck(encoder: Encoder) -> None:
    """Run the selfcheck and raise SelfCheckError if it finds a difference."""
    report = selfcheck(encoder)
    if not report.tokens_equal:
        raise SelfCheckError(
            f"{encoder.bundle.path}: this host tokenizes the selftest's texts otherwise than the exporter did; "
            "bring dra-toolkit and ftfy to the exporter's versions"
        )
    for name, part in report.parts.items():
        if not part.min_cosine >= report.least_cosine:
            raise SelfCheckError(
                f"{encoder.bundle.path}: {name} has a cosine of {part.min_cosine:.6f} with the exporter's, expected at "
                f"least {report.least_cosine}; export the bundle again, or try another version of the backend"
            )


def _relation_features(encoder: Encoder, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    tokens = [encoder.encode_pixels(encoder.pixels(image)[None])["image_tokens"] for image in images]
    pairs = zip(tokens, tokens[1:] + tokens[:1], strict=True)
    reranker = encoder.session("reranker")
    return np.concatenate(
        [reranker.run({"reference_tokens": a, "candidate_tokens": b})["relation_features"] for a, b in pairs]
    )


def _compared(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> PartResult:
    ours, theirs = found.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    # Two zero vectors agree; a zero one and another don't
    both_zero = ~ours.any(axis=1) & ~theirs.any(axis=1)
    cosines = np.where(both_zero, 1.0, (ours * theirs).sum(axis=1) / np.where(lengths > 0, lengths, np.inf))
    return PartResult(float(cosines.min()), float(np.abs(ours - theirs).max()), len(ours))
