"""Read JSON and check what it holds: every mistake is one line with the file and the entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dra_runtime.errors import DatasetError

MAX_TEXT = 2000  #: characters of a caption; CLIP reads about the first 300, so more is a mistake in the file


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file that holds a list or a dict; DatasetError when it can't be read or holds another thing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} can't be read as JSON: {_reason(error)}") from error
    if not isinstance(content, kind):
        raise DatasetError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def read_json_lines(path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    """Read a file of one JSON object a line: (line number from 1, object); blank lines are skipped.

    DatasetError names the line that is no object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: texts may hold U+2028
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} can't be read as text: {_reason(error)}") from error
    entries: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise DatasetError(f"{path}, line {number}: no JSON object ({reason}); write one object a line") from error
        if not isinstance(entry, dict):
            raise DatasetError(f"{path}, line {number}: a {type(entry).__name__}, expected an object in braces")
        entries.append((number, entry))
    return entries


def text_of(value: Any, where: str) -> str:
    """Return a caption; DatasetError when it is no string, or longer than `MAX_TEXT` characters."""
    if not isinstance(value, str):
        raise DatasetError(f"{where}: expected a text as string, found {_short(value)}")
    if len(value) > MAX_TEXT:
        raise DatasetError(f"{where}: a text of {len(value)} characters, at most {MAX_TEXT} are allowed; shorten it")
    return value


def name_of(value: Any, where: str) -> str:
    """Return an image's name; DatasetError when it is no string, or empty."""
    if not isinstance(value, str) or not value:
        raise DatasetError(f"{where}: expected names as non-empty strings, found {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
