"""The images of a folder and their ids."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from dra_runtime.errors import GalleryError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")


def images_of_folder(folder: Path) -> dict[str, Path]:
    """Find all image files below a folder.

    An image is what ends in one of `SUFFIXES`, in any case; names that begin with a dot are left out, and links to
    folders aren't followed. An id is the path below the folder, with ``/``, without the suffix; images that would share
    an id (``a.jpg`` and ``a.png``) keep theirs.

    Returns
    -------
    dict
        Paths by id, in ascending order of the ids.

    Raises
    ------
    GalleryError
        No folder, or none with an image in it.
    """
    if not folder.is_dir():
        raise GalleryError(f"{folder}: no such folder; give one with images in it")
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                paths.append(Path(parent) / name)
    if not paths:
        raise GalleryError(f"{folder}: no images in it; give a folder with {', '.join(SUFFIXES)} files")
    full = {path: path.relative_to(folder).as_posix() for path in paths}
    ids = {path: name[: -len(path.suffix)] for path, name in full.items()}
    # A full name may in turn be another's short one (a.jpg, a.png, a.jpg.webp), hence the loop
    while shared := [name for name, count in Counter(ids.values()).items() if count > 1]:
        ids = {path: full[path] if name in shared else name for path, name in ids.items()}
    return {name: path for path, name in sorted(ids.items(), key=lambda item: item[1])}
