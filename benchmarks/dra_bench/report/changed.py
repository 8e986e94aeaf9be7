"""Pictures of the queries whose first answer changed: reference, what it was, what it is, what is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dra_bench.report.images import picture_uri
from dra_bench.report.page import PageImage, PageQuery
from dra_train.data import Dataset

MOST_SHOWN = 6  #: of all artifacts together; recall.json has all


@dataclass(frozen=True)
class ChangedPictures:
    """The changed queries that are shown, and a note about those that aren't."""

    queries: tuple[PageQuery, ...] = ()
    note: str = ""


def changed_pictures(splits: Sequence[Mapping[str, Any]], datasets: Iterable[Dataset]) -> ChangedPictures:
    """Show changed queries, answers that were lost first, in turns of the artifacts.

    ``splits`` are those of recall.json, ``datasets`` the opened splits that have the images; a split that isn't among
    them has no pictures, and the note says so.
    """
    images = {_key(data.name, data.category, data.split): data.images for data in datasets}
    queues: list[list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = []
    without: list[str] = []
    for split in splits:
        known = images.get(_key(split["dataset"], split.get("category", ""), split["split"]))
        if known is None:
            without += [str(split["dataset"])] if split["changed"] else []
            continue
        there = [c for c in split["changed"] if all(c[k] in known for k in ("reference", "was", "is", "target"))]
        queues.append([(split, c) for c in sorted(there, key=_order)])
    turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
    uri = cache(picture_uri)
    shown = tuple(
        _page_query(split, c, images[_key(split["dataset"], split.get("category", ""), split["split"])], uri)
        for split, c in turns[:MOST_SHOWN]
    )
    total = sum(len(split["changed"]) for split in splits)
    note = f"{len(shown)} of {total} are shown, lost answers first." if len(shown) < total else ""
    if without:
        note += f" The pictures of {', '.join(dict.fromkeys(without))} are shown with --dataset."
    return ChangedPictures(shown, note.strip())


def _order(change: Mapping[str, Any]) -> int:
    """Put answers that were right before those that are right now, and those before the others."""
    return 0 if change["was"] == change["target"] else 1 if change["is"] == change["target"] else 2


def _page_query(split: Mapping[str, Any], change: Mapping[str, Any], images: Mapping[str, Path], uri: Any) -> PageQuery:
    artifact = split.get("artifact", "bundle")
    state = ("lost", "now right", "wrong in both")[_order(change)]
    named = (("was", "PyTorch"), ("is", artifact), ("target", "right answer"))
    return PageQuery(
        text=change["text"],
        note=f"{artifact}, {split['split']}: {state}",
        reference=PageImage(change["reference"], uri(images[change["reference"]])),
        answers=tuple(
            PageImage(change[key], uri(images[change[key]]), change[key] == change["target"], caption)
            for key, caption in named
        ),
    )


def _key(*words: str | None) -> tuple[str, ...]:
    return tuple(word or "" for word in words)
