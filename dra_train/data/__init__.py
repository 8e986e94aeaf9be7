"""Data sets as they lie on the disk: CIRR, FashionIQ, CIRCO and own images (docs/data.md)."""

from dra_train.data.circo import load_circo
from dra_train.data.cirr import load_cirr
from dra_train.data.fashioniq import CATEGORIES, GALLERIES, load_fashioniq
from dra_train.data.images import unreadable_error
from dra_train.data.jsonl import load_jsonl
from dra_train.data.open import BUILTIN, FORMATS, builtin_dataset, dataset_root, open_dataset
from dra_train.data.types import Dataset, Query, join, require_targets

__all__ = [
    "BUILTIN",
    "CATEGORIES",
    "FORMATS",
    "GALLERIES",
    "Dataset",
    "Query",
    "builtin_dataset",
    "dataset_root",
    "join",
    "load_circo",
    "load_cirr",
    "load_fashioniq",
    "load_jsonl",
    "open_dataset",
    "require_targets",
    "unreadable_error",
]
