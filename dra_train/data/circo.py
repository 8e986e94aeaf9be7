"""Read CIRCO's format (https://github.com/miccunifi/CIRCO): several right answers, all of COCO's unlabeled images.

``annotations/SPLIT.json`` holds the queries, ``COCO2017_unlabeled/annotations/image_info_unlabeled2017.json`` lists the
images, ``COCO2017_unlabeled/unlabeled2017/*.jpg`` are the images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dra_runtime.errors import DatasetError
from dra_train.data.images import require_known
from dra_train.data.read import read_json, text_of
from dra_train.data.types import Dataset, Query

COCO = "COCO2017_unlabeled"


def is_circo(root: Path) -> bool:
    """Tell whether a folder looks like CIRCO's."""
    return (root / "annotations").is_dir() and ((root / COCO).is_dir() or (root / "annotations" / "val.json").is_file())


def circo_splits(root: Path) -> list[str]:
    """List the splits below ``root``."""
    return sorted(path.stem for path in (root / "annotations").glob("*.json"))


def read_circo(root: Path, split: str, image_root: Path | None = None) -> Dataset:
    """Read one split below ``root``, without a look at the images; ``image_root`` is an ``unlabeled2017`` elsewhere.

    An image's name is its COCO id as 12 digits. ``edit`` holds the semantic aspects, joined by "+". A split without any
    ``target_img_id`` hides its targets. DatasetError says what is malformed or inconsistent.
    """
    source = root / "annotations" / f"{split}.json"
    if not source.is_file():
        raise DatasetError(f"{root} has no split {split!r}; it has {', '.join(circo_splits(root)) or 'none'}")
    folder = image_root or root / COCO / "unlabeled2017"
    listing = root / COCO / "annotations" / "image_info_unlabeled2017.json"
    try:
        infos = read_json(listing, dict)["images"]
        images = {image_name(info["id"]): folder / info["file_name"] for info in infos}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{listing}: expected COCO's images with id and file_name, but {error!r}") from error
    entries = read_json(source, list)
    if not entries:
        raise DatasetError(f"{source} holds no queries")
    hidden = not any(isinstance(entry, dict) and "target_img_id" in entry for entry in entries)
    queries = tuple(_query(entry, f"{source}, entry {i}", hidden) for i, entry in enumerate(entries))
    require_known((n for q in queries for n in (q.reference, *q.right_answers)), images, source)
    return Dataset(root.resolve().name, split, queries, images, format="circo")


def image_name(id: Any) -> str:
    """Write a COCO image id as the 12 digits of its file's name; ValueError when it is no id."""
    if type(id) is not int or not 0 <= id < 10**12:
        raise ValueError(f"{id!r} is no image id")
    return f"{id:012d}"


def _query(entry: Any, where: str, hidden: bool) -> Query:
    try:
        target = "" if hidden else image_name(entry["target_img_id"])
        targets = () if hidden else tuple(image_name(id) for id in entry["gt_img_ids"])
        if not hidden and (target not in targets or len(set(targets)) != len(targets)):
            raise DatasetError(f"{where}: gt_img_ids must hold target_img_id, and each id once")
        return Query(
            id=int(entry["id"]),
            reference=image_name(entry["reference_img_id"]),
            text=text_of(entry["relative_caption"], where),
            target=target,
            edit="+".join(text_of(aspect, where) for aspect in entry.get("semantic_aspects", ())),
            targets=targets,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{where}: expected CIRCO's keys, but {error!r}") from error
