"""Read FashionIQ's format (https://github.com/XiaoxiaoGuo/fashion-iq): three categories, two captions a query.

``captions/cap.CATEGORY.SPLIT.json`` holds the triplets, ``image_splits/split.CATEGORY.SPLIT.json`` the list of image
ids, ``images/ID.jpg`` the images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dra_runtime.errors import DatasetError
from dra_train.data.images import paths_by_stem, require_known
from dra_train.data.read import name_of, read_json, text_of
from dra_train.data.types import Dataset, Query

CATEGORIES = ("dress", "shirt", "toptee")
GALLERIES = ("original", "val_union")  #: all images of the split | the queries' references and targets only
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
STRIPPED = ".?, "  #: what the published code strips from both ends of a caption


def is_fashioniq(root: Path) -> bool:
    """Tell whether a folder looks like FashionIQ's."""
    return bool(fashioniq_splits(root))


def fashioniq_splits(root: Path) -> list[str]:
    """List the splits below ``root``."""
    files = (path for category in CATEGORIES for path in (root / "captions").glob(f"cap.{category}.*.json"))
    return sorted({path.name.split(".")[2] for path in files})


def read_fashioniq(
    root: Path, split: str, gallery: str = "original", image_root: Path | None = None
) -> tuple[Dataset, ...]:
    """Read one split below ``root``, without a look at the images: a data set for every category.

    ``gallery`` is one of `GALLERIES`: published scores use either, and they differ. A split without any ``target``
    hides its targets. DatasetError says what is malformed or inconsistent.
    """
    folder = image_root or root / "images"
    captions = root / "captions"
    if not all((captions / f"cap.{category}.{split}.json").is_file() for category in CATEGORIES):
        found = fashioniq_splits(root)
        raise DatasetError(
            f"{root} has no split {split!r} of all of {', '.join(CATEGORIES)}; it has {', '.join(found) or 'none'}"
        )
    present = paths_by_stem(folder, SUFFIXES.__contains__)
    return tuple(_read_category(root, category, split, gallery, folder, present) for category in CATEGORIES)


def _read_category(
    root: Path, category: str, split: str, gallery: str, folder: Path, present: dict[str, Path]
) -> Dataset:
    captions = root / "captions" / f"cap.{category}.{split}.json"
    listing = root / "image_splits" / f"split.{category}.{split}.json"
    entries = read_json(captions, list)
    if not entries:
        raise DatasetError(f"{captions} holds no queries")
    names = [name_of(name, f"{listing}, entry {i}") for i, name in enumerate(read_json(listing, list))]
    images = {name: present.get(name, folder / f"{name}{SUFFIXES[0]}") for name in names}
    hidden = not any(isinstance(entry, dict) and "target" in entry for entry in entries)
    queries = tuple(
        _query(entry, f"{category}-{i}", f"{captions}, entry {i}", hidden) for i, entry in enumerate(entries)
    )
    require_known((n for q in queries for n in (q.reference, *q.right_answers)), images, captions)
    if gallery == "val_union":
        used = {name for query in queries for name in (query.reference, *query.right_answers)}
        images = {name: path for name, path in images.items() if name in used}
    return Dataset(root.resolve().name, split, queries, images, format="fashioniq", gallery=gallery, category=category)


def _query(entry: Any, id: str, where: str, hidden: bool) -> Query:
    try:
        captions = [text_of(caption, where) for caption in entry["captions"]]
        if len(captions) != 2:
            raise DatasetError(f"{where}: {len(captions)} captions, expected two")
        return Query(
            id=id,
            reference=name_of(entry["candidate"], where),
            text=joined(captions[0], captions[1]),
            target="" if hidden else name_of(entry["target"], where),
            train_texts=training_texts(captions[0], captions[1]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{where}: expected FashionIQ's keys, but {error!r}") from error


def joined(first: str, second: str) -> str:
    """Join two captions as CLIP4Cir does at test time, blank ones too, so that scores stay comparable."""
    return f"{first.strip(STRIPPED).capitalize()} and {second.strip(STRIPPED)}"


def training_texts(first: str, second: str) -> tuple[str, ...]:
    """Return what training draws from, in CLIP4Cir's form: both orders, and either caption alone.

    A blank caption alone would ask for nothing, so it isn't among them.
    """
    alone = [caption.strip(STRIPPED).capitalize() for caption in (first, second)]
    return (joined(first, second), joined(second, first), *(text for text in alone if text))
