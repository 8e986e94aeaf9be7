"""Open files that somebody else has named, without hanging on a pipe, waking a device or following a link."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

# NONBLOCK: opening a pipe would wait for its other end. Not all platforms have each of them.
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: Path, *, links: bool = False) -> BufferedReader:
    """Open a regular file for reading; check it and read it by the one descriptor, so that nobody can swap it between.

    Parameters
    ----------
    path
        The file.
    links
        Follow a symbolic link: for paths that the user has typed, never for names that came with a folder.

    Raises
    ------
    OSError
        It isn't there, can't be read, or is a link, a folder, a pipe, a socket or a device.
    ValueError
        The path holds a zero byte.
    """
    found = path.stat() if links else path.lstat()  # first: opening some devices does something already
    _require_regular(found.st_mode)
    descriptor = os.open(path, _FLAGS | (0 if links else _NO_LINK))
    try:
        _require_regular(os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int, *, links: bool = False) -> bytes:
    """Return the content of a regular file of at most ``most`` bytes; a longer one is a ValueError and isn't read."""
    with open_regular(path, links=links) as file:
        size = size_of(file)
        if size > most:
            raise ValueError(f"{size} bytes, more than the {most} allowed")
        content = file.read(size + 1)  # not most + 1: Python takes as much memory as it is asked to read
    if len(content) > size:
        raise ValueError(f"more than the {size} bytes it had: it grew while it was read")
    return content


def size_of(file: BufferedReader) -> int:
    """Return an open file's size in bytes."""
    return os.fstat(file.fileno()).st_size


def _require_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    raise OSError(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file")
