"""The images of a folder and their ids."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import GalleryError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")


@dataclass(frozen=True, slots=True)
class FolderImage:
    """An image file: its id, its path below the folder (with ``/``), its size in bytes and when it was changed.

    Where the file can't be looked at, ``size`` is -1.
    """

    id: str
    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, eq=False)
class IndexedFiles:
    """The files that a gallery's rows were made from: ``sizes`` and ``mtimes_ns`` (N,) int64 as they were then."""

    folder: Path
    sizes: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.int64]


def folder_images(folder: Path) -> list[FolderImage]:
    """Find all image files below a folder, in ascending order of their ids.

    An image is what ends in one of `SUFFIXES`, in any case; names that begin with a dot are left out, and links to
    folders aren't followed. An id is the path below the folder, with ``/``, without the suffix; images that would share
    an id (``a.jpg`` and ``a.png``) keep theirs. About 300 bytes of memory an image.

    Raises
    ------
    GalleryError
        No folder, one that can't be listed, or none with an image in it.
    """
    if not folder.is_dir():
        raise GalleryError(f"{folder}: no such folder; give one with images in it")
    names = []
    for parent, folders, files in os.walk(folder, onerror=_unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        names += [prefix + n for n in files if not n.startswith(".") and n.lower().endswith(SUFFIXES)]
    if not names:
        raise GalleryError(f"{folder}: no images in it; give a folder with {', '.join(SUFFIXES)} files")
    ids = {name: name[: -len(PurePosixPath(name).suffix)] for name in sorted(names)}
    # A full name may in turn be another's short one (a.jpg, a.png, a.jpg.webp), hence the loop
    while shared := {name for name, count in Counter(ids.values()).items() if count > 1}:
        ids = {full: full if name in shared else name for full, name in ids.items()}
    ids_in_order = sorted(ids.items(), key=lambda item: item[1])
    return [FolderImage(name, full, *_size_and_time(folder / full)) for full, name in ids_in_order]


def images_of_folder(folder: Path) -> dict[str, Path]:
    """Return the paths of `folder_images` by id, in ascending order of the ids.

    Raises
    ------
    GalleryError
        As there.
    """
    return {image.id: folder / image.name for image in folder_images(folder)}


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # a link to nowhere: decoding says so in its place
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _unlisted(error: OSError) -> NoReturn:
    # a folder passed over in silence would be images missing in silence
    raise GalleryError(f"{error.filename}: can't be listed ({error.strerror}); change its permissions or remove it")
