"""Every error that the toolkit raises on purpose.

A message says what was found, what was expected and what to do next, in one line; the commands print it
and exit with code 2.

DraError
├── BundleError               a bundle that can't be used
│   ├── BundleFormatError     its manifest breaks the format (docs/bundle.md)
│   └── BundleIntegrityError  a file is missing, or isn't the one the manifest names
├── EngineError               an engine that can't be used, or couldn't be built
│   ├── EngineFormatError     its sidecar breaks the format (docs/engines.md)
│   ├── EngineIntegrityError  the plan is missing, or isn't the one its sidecar names
│   ├── EngineMismatchError   built for another GPU, library version or bundle
│   └── PrecisionError        asked for half and came out as float32
├── CheckpointError           a checkpoint that can't be used
├── DatasetError              a data set that can't be read
├── TrainingError             a run that can't go on
├── ImageError                not an image, or one beyond the limits
├── TextError                 a text that can't be a query
├── GalleryError              a gallery that can't be used
│   ├── GalleryFormatError    the file is no gallery, or a damaged one
│   ├── GalleryMismatchError  made with another bundle
│   └── UnknownIdError        an id that the gallery doesn't hold
├── BackendError              the asked-for backend isn't there, or failed
├── SelfCheckError            this host doesn't reproduce the exporter's vectors
├── ServiceError              a query that a service gave up
│   ├── OverloadedError       too many queries are waiting already
│   └── DeadlineError         its deadline passed before its turn came
└── UsageError                arguments that don't fit each other
"""


class DraError(Exception):
    """Root of all errors that the toolkit raises on purpose."""


class BundleError(DraError):
    """A bundle that can't be used."""


class BundleFormatError(BundleError):
    """A manifest that breaks the format in docs/bundle.md."""


class BundleIntegrityError(BundleError):
    """A bundle's file that is missing, or isn't the one the manifest names."""


class EngineError(DraError):
    """An engine that can't be used, or couldn't be built."""


class EngineFormatError(EngineError):
    """A sidecar that breaks the format in docs/engines.md."""


class EngineIntegrityError(EngineError):
    """A plan that is missing, or isn't the one its sidecar names."""


class EngineMismatchError(EngineError):
    """An engine built for another GPU, library version or bundle."""


class PrecisionError(EngineError):
    """A network that was asked for in half and came out as float32."""


class CheckpointError(DraError):
    """A checkpoint that can't be used."""


class DatasetError(DraError):
    """A data set that can't be read."""


class TrainingError(DraError):
    """A run that can't go on."""


class ImageError(DraError):
    """Not an image, or one beyond the limits."""


class TextError(DraError):
    """A text that can't be a query."""


class GalleryError(DraError):
    """A gallery that can't be used."""


class GalleryFormatError(GalleryError):
    """A file that is no gallery, or a damaged one."""


class GalleryMismatchError(GalleryError):
    """A gallery made with another bundle than the encoder's."""


class UnknownIdError(GalleryError):
    """An id that the gallery doesn't hold."""


class BackendError(DraError):
    """The asked-for backend isn't there, or failed."""


class SelfCheckError(DraError):
    """This host doesn't reproduce the exporter's vectors."""


class ServiceError(DraError):
    """A query that a service gave up, whatever it asked for."""


class OverloadedError(ServiceError):
    """Too many queries are waiting already; ask again later."""


class DeadlineError(ServiceError):
    """A query whose deadline passed before its turn came."""


class UsageError(DraError):
    """Arguments that don't fit each other."""
