"""Write results by a temporary name and a rename, so that a reader never meets half of one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from dra_runtime.errors import UsageError


def check_output(path: Path | None) -> None:
    """Refuse, before minutes of work, an output whose folder isn't there.

    Raises
    ------
    UsageError
        It isn't.
    """
    if path and not path.resolve().parent.is_dir():
        raise UsageError(f"{path} can't be written: the folder of that file doesn't exist; make it first")


def write_json(path: Path, values: object) -> None:
    """Write JSON as a whole; see `write_bytes`."""
    write_bytes(path, (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole.

    Raises
    ------
    UsageError
        The folder isn't there, or can't be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror or error}; check the folder") from error


def replace_folder(work: Path, out: Path) -> None:
    """Rename the folder ``work`` to ``out``; what stood there goes last, or comes back when that fails."""
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    replaced = out.exists()
    if replaced:
        out.rename(old)
    try:
        work.rename(out)
    except OSError:
        if replaced:
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
