"""Small data sets on disk in the published formats, for tests to damage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

CATEGORIES = ("dress", "shirt", "toptee")
THREE_PAIRS = (("is shiny and silver.", "fit and flare"), ("", "is red"), ("is long, ", " ?"))  # two with a blank


def write_image(path: Path, shade: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    """Write a plain picture whose colour follows from ``shade``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade * 37 % 256, shade * 91 % 256, shade * 151 % 256)).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def cirr_test_split(root: Path, count: int = 60, layout: str = "beside") -> Path:
    """Write a test1 split without targets: ``count`` images in groups of six, a query each, one of them blank."""
    names = [f"test1-{i}-0-img{i % 2}" for i in range(count)]
    images = root / "img_raw" if layout == "beside" else root
    entries = []
    for i, name in enumerate(names):
        write_image(images / "test1" / f"{name}.png", i)
        members = names[i // 6 * 6 : i // 6 * 6 + 6]
        caption = "" if i == 3 else f"more of {i}"
        members_of = {"id": i // 6, "members": members, "reference_rank": members.index(name)}
        entries.append({"pairid": 12000 + i, "reference": name, "caption": caption, "img_set": members_of})
    write_json(root / "cirr" / "captions" / "cap.rc2.test1.json", entries)
    write_json(root / "cirr" / "image_splits" / "split.rc2.test1.json", {n: f"./test1/{n}.png" for n in names})
    return root


def fashioniq(
    root: Path,
    split: str = "val",
    captions: Sequence[Sequence[str]] = THREE_PAIRS,
    suffixes: Mapping[int, str] | None = None,
    count: int = 7,
) -> Path:
    """Write three categories of ``count`` images: one query a pair of captions, from image i to image i + 1."""
    for c, category in enumerate(CATEGORIES):
        ids = [f"B00{category[0].upper()}{i}" for i in range(count)]
        for i, id in enumerate(ids):
            write_image(root / "images" / f"{id}{(suffixes or {}).get(i, '.jpg')}", 10 * c + i)
        entries = [{"candidate": ids[i], "captions": list(pair)} for i, pair in enumerate(captions)]
        if split != "test":
            entries = [{"target": ids[i + 1], **entry} for i, entry in enumerate(entries)]
        write_json(root / "captions" / f"cap.{category}.{split}.json", entries)
        write_json(root / "image_splits" / f"split.{category}.{split}.json", ids)
    return root


def circo(root: Path, count: int = 60) -> Path:
    """Write val and test over ``count`` images with ids 7, 14, …: two queries each, the second with three answers."""
    coco = root / "COCO2017_unlabeled"
    ids = [7 * (i + 1) for i in range(count)]
    for id in ids:
        write_image(coco / "unlabeled2017" / f"{id:012d}.jpg", id)
    infos = [{"license": 3, "file_name": f"{id:012d}.jpg", "height": 10, "width": 12, "id": id} for id in ids]
    listing = {"info": {}, "licenses": [], "images": infos}
    write_json(coco / "annotations" / "image_info_unlabeled2017.json", listing)
    first = {"reference_img_id": 7, "relative_caption": "has a dog", "shared_concept": "a boat", "id": 0}
    second = {"reference_img_id": 21, "relative_caption": "is darker", "shared_concept": "a bed", "id": 1}
    write_json(root / "annotations" / "test.json", [first, second])
    first |= {"target_img_id": 14, "gt_img_ids": [14], "semantic_aspects": ["addition"]}
    second |= {"target_img_id": 28, "gt_img_ids": [28, 35, 42], "semantic_aspects": ["addition", "viewpoint"]}
    write_json(root / "annotations" / "val.json", [first, second])
    return root


def lines(path: Path, entries: Sequence[Any]) -> Path:
    """Write JSON lines; a string is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(e if isinstance(e, str) else json.dumps(e) for e in entries) + "\n", encoding="utf-8")
    return path


def own_data(root: Path, name: str = "pairs.jsonl", images: str = "images") -> Path:
    """Write own data: four pictures in two folders, two queries, the second with a group."""
    for i, path in enumerate(("a.jpg", "b.png", "more/c.webp", "more/d.jpg")):
        write_image(root / images / path, i)
    second = {"reference": "./more/c.webp", "text": "like d", "target": "more/d.jpg", "group": ["a.jpg", "b.png"]}
    lines(root / name, [{"reference": "a.jpg", "text": "in blue", "target": "b.png"}, "", second])
    return root
