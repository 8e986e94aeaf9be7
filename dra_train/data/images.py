"""Which images lie on the disk, which can be opened, and what is left of a data set without the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dra_runtime.console import progress
from dra_runtime.errors import DatasetError, ImageError
from dra_runtime.preprocess import open_image
from dra_runtime.threads import available_threads
from dra_train.data.types import Dataset

SHOWN = 10  #: names that an error or a result lists of many
AHEAD = 8  #: images in flight for each thread: enough to keep it busy, few enough to keep memory small


@dataclass(frozen=True)
class Opened:
    """An image after an attempt to open it."""

    size: tuple[int, int]  #: width and height; (0, 0) when it can't be opened
    error: str = ""  #: why it can't be opened
    is_empty: bool = False  #: the file has no bytes


def file_names(folder: Path) -> frozenset[str]:
    """List the files of a folder in one pass, without a look at each; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def missing_images(images: Mapping[str, Path]) -> list[str]:
    """Return the names of images that aren't on the disk, in order; every folder is listed once."""
    listed: dict[str, frozenset[str]] = {}
    missing = []
    for name, path in images.items():
        folder, _, file = os.fspath(path).rpartition(os.sep)
        if folder not in listed:
            listed[folder] = file_names(Path(folder or "."))
        if file not in listed[folder]:
            missing.append(name)
    return missing


def open_all(images: Mapping[str, Path], label: str = "opening images") -> dict[str, Opened]:
    """Open and decode every image, several at a time, under a progress bar."""
    result: dict[str, Opened] = {}
    names = list(images)
    workers = available_threads() + 2  # some of them wait for the disk
    # In pieces: a pool that is given everything at once would hold 100,000 futures.
    with ThreadPoolExecutor(workers) as pool, progress(len(names), label) as advance:
        for start in range(0, len(names), workers * AHEAD):
            piece = names[start : start + workers * AHEAD]
            result |= zip(piece, pool.map(lambda name: _open(images[name]), piece), strict=True)
            advance(len(piece))
    return result


def _open(path: Path) -> Opened:
    try:
        return Opened(open_image(path).size)
    except ImageError as error:
        return Opened((0, 0), str(error), path.is_file() and path.stat().st_size == 0)


def unreadable_images(images: Mapping[str, Path]) -> dict[str, str]:
    """Open every image; return why, by name, for those that can't be."""
    return {name: opened.error for name, opened in open_all(images).items() if opened.error}


def unreadable_error(dataset: Dataset) -> DatasetError | None:
    """Make the one error that tells how many of a data set's images can't be opened and which; None if all can.

    For use after one of them has failed: it opens them all.
    """
    reasons = unreadable_images(dataset.images)
    if not reasons:
        return None
    return DatasetError(
        f"{len(reasons)} of {len(dataset.images)} images of {dataset.title} can't be opened: "
        f"{first_names(list(reasons))} ({next(iter(reasons.values()))}); repair them, or leave them out with "
        "--allow-missing"
    )


def without_missing(dataset: Dataset, allow_missing: bool) -> Dataset:
    """Return the data set if all its images are there; DatasetError with the count and the first ten if not.

    With ``allow_missing`` the images that are missing or can't be opened (all are tried) and the queries that need one
    of them are left out, and both are recorded in the data set.
    """
    missing = missing_images(dataset.images)
    if not allow_missing:
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(dataset.images)} images of {dataset.title} are missing: "
                f"{first_names(missing)} ({dataset.images[missing[0]]}: no such file); complete the download, "
                "or leave them out with --allow-missing"
            )
        return dataset
    gone = set(missing)
    gone |= unreadable_images({name: path for name, path in dataset.images.items() if name not in gone}).keys()
    if not gone:
        return dataset
    images = {name: path for name, path in dataset.images.items() if name not in gone}
    queries = []
    for query in dataset.queries:
        if gone.isdisjoint((query.reference, query.target)):
            others = tuple(name for name in query.targets if name not in gone)
            group = tuple(name for name in query.group if name not in gone)
            queries.append(replace(query, targets=others, group=group))
    if not queries:
        raise DatasetError(f"no query of {dataset.title} is left without its {len(gone)} missing images; download them")
    return replace(
        dataset,
        queries=tuple(queries),
        images=images,
        missing=tuple(name for name in dataset.images if name in gone),
        dropped=len(dataset.queries) - len(queries),
    )


def require_known(names: Iterable[str], known: Mapping[str, Path], source: Path) -> None:
    """Refuse queries that name images which the split doesn't list; raises DatasetError."""
    if unknown := sorted(set(names) - known.keys()):
        raise DatasetError(
            f"{source} names {len(unknown)} images that the split lacks: {first_names(unknown)}; "
            "captions and image list must be of one version"
        )


def first_names(names: Sequence[str]) -> str:
    """Write the first ten names of many."""
    return ", ".join(names[:SHOWN]) + ("…" if len(names) > SHOWN else "")


def paths_by_stem(folder: Path, accept: Callable[[str], bool]) -> dict[str, Path]:
    """Map file names without suffix to paths, for the files whose suffix is accepted; JPEG wins over others."""
    found: dict[str, Path] = {}
    for file in sorted(file_names(folder), key=lambda name: (not name.lower().endswith((".jpg", ".jpeg")), name)):
        stem, dot, suffix = file.rpartition(".")
        if dot and accept("." + suffix.lower()):
            found.setdefault(stem, folder / file)
    return found
