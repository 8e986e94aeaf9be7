"""Data sets as they lie on the disk: CIRR, FashionIQ, CIRCO and own images (docs/data.md)."""

from dra_train.data.cirr import load_cirr
from dra_train.data.fashioniq import CATEGORIES, GALLERIES
from dra_train.data.images import unreadable_error
from dra_train.data.open import BUILTIN, FORMATS, builtin_dataset, open_dataset, read_dataset, splits_of
from dra_train.data.types import Dataset, Query, join, require_targets

__all__ = [
    "BUILTIN",
    "CATEGORIES",
    "FORMATS",
    "GALLERIES",
    "Dataset",
    "Query",
    "builtin_dataset",
    "join",
    "load_cirr",
    "open_dataset",
    "read_dataset",
    "require_targets",
    "splits_of",
    "unreadable_error",
]
