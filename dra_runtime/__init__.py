"""Answer composed image queries from a bundle, without PyTorch.

Start with `Encoder.open` and `Gallery.build`; every error is a `DraError`.
"""

from typing import TYPE_CHECKING, Any

from dra_runtime.batcher import Batcher
from dra_runtime.bundle import Bundle
from dra_runtime.encoder import Encoder
from dra_runtime.errors import (
    BackendError,
    BundleError,
    BundleFormatError,
    BundleIntegrityError,
    CheckpointError,
    DatasetError,
    DeadlineError,
    DraError,
    GalleryError,
    GalleryFormatError,
    GalleryMismatchError,
    ImageError,
    OverloadedError,
    SelfCheckError,
    ServiceError,
    TextError,
    UnknownIdError,
    UsageError,
)
from dra_runtime.gallery import Gallery, Hit
from dra_runtime.sessions import GpuOptions

if TYPE_CHECKING:
    from dra_runtime.gallery_drift import DriftReport, adopt_bundle, drift
    from dra_runtime.indexing import IndexingReport, index_folder

__version__ = "0.1.0"

# What a service doesn't need is imported when it is first asked for
_LATER = {
    "DriftReport": "gallery_drift",
    "IndexingReport": "indexing",
    "adopt_bundle": "gallery_drift",
    "drift": "gallery_drift",
    "index_folder": "indexing",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "BackendError",
    "Batcher",
    "Bundle",
    "BundleError",
    "BundleFormatError",
    "BundleIntegrityError",
    "CheckpointError",
    "DatasetError",
    "DeadlineError",
    "DraError",
    "DriftReport",
    "Encoder",
    "Gallery",
    "GalleryError",
    "GalleryFormatError",
    "GalleryMismatchError",
    "GpuOptions",
    "Hit",
    "ImageError",
    "IndexingReport",
    "OverloadedError",
    "SelfCheckError",
    "ServiceError",
    "TextError",
    "UnknownIdError",
    "UsageError",
    "__version__",
    "adopt_bundle",
    "drift",
    "index_folder",
]
