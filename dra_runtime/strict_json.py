"""JSON that keeps to the letter, for everything that comes from elsewhere: manifests, sidecars, galleries.

Parsers disagree on what the letter leaves open, so two readers would see two documents. What a hostile text could make
expensive is bounded before it is parsed: depth, and the digits of a number.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

DEEPEST = 64  #: lists and objects within each other
MAX_DIGITS = 400  #: of one number; reading a whole number takes the square of its length

# A text in quotes to its end, or to the document's where it has none: possessive, so that it never looks twice
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def values_from_json(text: bytes) -> Any:
    """Parse JSON in UTF-8 without a byte order mark.

    Refused as well: a key twice in one object, NaN, Infinity and numbers beyond float64, numbers of more than
    `MAX_DIGITS` digits, more than `DEEPEST` levels, and escapes that are half a character (surrogates). Takes time and
    memory in proportion to the text.

    Raises
    ------
    ValueError
        With the reason in one line.
    """
    _check_depth(text)
    values = json.loads(
        text.decode("utf-8"),
        object_pairs_hook=_without_duplicates,
        parse_constant=_no_constant,
        parse_float=_finite,
        parse_int=_whole,
    )
    if b"\\u" in text:  # without an escape UTF-8 has kept them out
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    return values


def short(value: object, most: int = 80) -> str:
    """Return a value from elsewhere as one short line for an error message, whatever it is."""
    try:
        text = repr(value[:most] if isinstance(value, str | bytes) else value)
    except (RecursionError, ValueError):  # ValueError: a whole number too long to be written
        text = f"a {type(value).__name__} too deep or too long to be shown"
    return text if len(text) <= most else text[: most - 3] + "..."


def _check_depth(text: bytes) -> None:
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return
    depth = 0
    for bracket in _QUOTED.sub(b"", text).translate(None, _NO_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and objects within each other")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} stands twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    if len(digits) > MAX_DIGITS or not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:20]}... is too long or too large")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)
