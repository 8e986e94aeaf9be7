"""Answer composed image queries from a bundle, without PyTorch.

Start with `Encoder.open` and `Gallery.build`; every error is a `DraError`.
"""

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

__version__ = "0.1.0"

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
    "Encoder",
    "Gallery",
    "GalleryError",
    "GalleryFormatError",
    "GalleryMismatchError",
    "GpuOptions",
    "Hit",
    "ImageError",
    "OverloadedError",
    "SelfCheckError",
    "ServiceError",
    "TextError",
    "UnknownIdError",
    "UsageError",
    "__version__",
]
