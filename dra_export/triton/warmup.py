"""The warm-up requests of a model repository, from the bundle's selftest: real pictures, texts and vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_export.triton.config import Warmup
from dra_runtime.encoder import Encoder

Sample = Mapping[str, npt.NDArray[Any]]  #: a value for every input, without batch dimension


def warmup_samples(encoder: Encoder) -> dict[str, tuple[Sample, Sample]]:
    """Return two samples for every graph: one with the selftest's first text, one with its last, which is the longest.

    The image tokens that warm the reranker up are computed by the bundle's own image encoder.
    """
    selftest = encoder.bundle.selftest()
    rows = encoder.tokenize([str(text) for text in selftest["texts"]])
    pixels = [encoder.pixels(selftest["images"][i]) for i in (0, -1)]
    inputs: dict[str, list[Sample]] = {
        "image_encoder": [{"image": image} for image in pixels],
        "text_encoder": [{"tokens": np.array(rows[i], np.int32)} for i in (0, -1)],
        "compositor": [{name: selftest[name][i] for name in ("image_features", "text_features")} for i in (0, -1)],
    }
    if "reranker" in encoder.bundle.manifest.graphs:
        tokens = encoder.encode_pixels(np.stack(pixels))["image_tokens"]
        inputs["reranker"] = [{"reference_tokens": tokens[i], "candidate_tokens": tokens[1 - i]} for i in (0, 1)]
    return {graph: (first, last) for graph, (first, last) in inputs.items()}


def warmup_files(samples: tuple[Sample, Sample], max_batch: int) -> tuple[tuple[Warmup, ...], dict[str, bytes]]:
    """Return the warm-ups of one model, a single request and a full batch, and the files that they name."""
    warmups: list[Warmup] = []
    files: dict[str, bytes] = {}
    for title, batch, sample in (("one", 1, samples[0]), ("full", max_batch, samples[1])):
        names = {name: f"{title}-{name}" for name in sample}
        dims = {name: value.shape for name, value in sample.items()}
        warmups.append(Warmup(title, batch, names, dims))
        files |= {names[name]: _content(value) for name, value in sample.items()}
    return tuple(warmups), files


def _content(value: npt.NDArray[Any]) -> bytes:
    """Return a tensor as Triton reads it: little-endian values in row order."""
    return np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
