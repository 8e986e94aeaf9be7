"""Bundles through dra_runtime, in each of its backends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dra_bench.contenders.backend import Floats, Unavailable
from dra_runtime.encoder import Encoder, Pixels
from dra_runtime.errors import BackendError, EngineError


@dataclass(frozen=True)
class BundleEncoder:
    """A bundle through dra_runtime, as a service calls it."""

    encoder: Encoder
    name: str  #: what tables call it

    @property
    def about(self) -> str:
        """What it is, in one line."""
        return f"an {self.precision} bundle through dra_runtime"

    @property
    def precision(self) -> str:
        """What it computes in."""
        return self.encoder.bundle.manifest.precision

    @property
    def image_input(self) -> str:
        """The type of the pixels that the bundle takes."""
        return self.encoder.image_input

    def text_tokens(self, texts: Sequence[str]) -> int:
        """Return the length of the longest text's token row; the runtime cuts there."""
        return max(len(ids) for ids in self.encoder.tokenize(texts))

    def image(self, pixels: Pixels) -> Floats:
        """Encode preprocessed images (N, 3, S, S)."""
        return self.encoder.encode_pixels(pixels)["image_features"]

    def text(self, texts: Sequence[str]) -> Floats:
        """Tokenize and encode N texts."""
        return self.encoder.encode_texts(texts)

    def compose(self, image_features: Floats, text_features: Floats) -> Floats:
        """Compose features into queries."""
        return self.encoder.compose(image_features, text_features)

    def query(self, pixels: Pixels, texts: Sequence[str]) -> Floats:
        """Make whole queries from new reference images and texts."""
        return self.encoder.compose(self.image(pixels), self.encoder.encode_texts(texts))

    def query_by_id(self, image_features: Floats, texts: Sequence[str]) -> Floats:
        """Make queries whose references' features are known already."""
        return self.encoder.compose(image_features, self.encoder.encode_texts(texts))


def bundle_encoders(encoders: Sequence[Encoder]) -> tuple[BundleEncoder, ...]:
    """Make the contenders of bundles, named by backend and what differs from float32; twins get a number.

    ``onnxruntime-cpu``, ``onnxruntime-cpu int8``, ``onnxruntime-cpu fp16, uint8 image`` or ``onnxruntime-cpu #2``.
    """
    contenders: list[BundleEncoder] = []
    for encoder in encoders:
        precision = encoder.bundle.manifest.precision
        kinds = [precision] * (precision != "fp32") + ["uint8 image"] * (encoder.image_input == "uint8")
        name = " ".join(filter(None, (encoder.backend, ", ".join(kinds))))
        twins = sum(other.name == name or other.name.startswith(f"{name} #") for other in contenders)
        contenders.append(BundleEncoder(encoder, f"{name} #{twins + 1}" if twins else name))
    return tuple(contenders)


def open_bundles(
    encoders: Sequence[Encoder], backend: str, threads: int
) -> tuple[tuple[BundleEncoder, ...], tuple[Unavailable, ...]]:
    """Open every bundle in a backend of dra_runtime; returns those that it runs here, and why it can't run others.

    An encoder that is open like that already is taken as it is. Where no bundle can be used, one reason stands for all.
    """
    opened: list[Encoder] = []
    failed: list[tuple[str, str]] = []  # precision and reason
    for encoder in encoders:
        path, precision = encoder.bundle.path, encoder.bundle.manifest.precision
        try:
            opened.append(_opened(encoder, backend, threads))
        except (BackendError, EngineError) as error:
            failed.append((precision, str(error).replace(str(path), path.name)))
    if failed and not opened:  # INT8 is for CPUs only: what the others say is of more use
        failed.sort(key=lambda precision_and_reason: precision_and_reason[0] == "int8")
        return (), (Unavailable(backend, failed[0][1]),)
    return bundle_encoders(opened), tuple(Unavailable(f"{backend} {precision}", why) for precision, why in failed)


def _opened(encoder: Encoder, backend: str, threads: int) -> Encoder:
    if (encoder.backend, encoder.threads) != (backend, threads):
        encoder = Encoder.open(encoder.bundle.path, backend, threads, integrity="size")  # hashed once already
    for graph in ("image_encoder", "text_encoder", "compositor"):  # now, not at the first call: one may be missing
        encoder.session(graph)
    return encoder
