"""Check values that came from JSON; what is refused is named by its place, as ``graphs.query.file``."""

from __future__ import annotations

import re
from typing import Any

from dra_runtime.strict_json import short


class WrongValueError(ValueError):
    """A value that breaks a rule of its format: where it stands, what it is, what was expected."""


def wrong(place: str, found: Any, expected: str) -> WrongValueError:
    """Return the error of a value."""
    return WrongValueError(f"{place} has {short(found)}; expected {expected}")


def object_of(value: Any, place: str) -> dict[str, Any]:
    """Return an object, or raise WrongValueError, as all of these do."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise wrong(place, value, "an object")
    return value


def keys_of(value: Any, place: str, expected: str) -> dict[str, Any]:
    """Return an object that has exactly the expected keys, given as words."""
    checked, names = object_of(value, place), expected.split()
    if unknown := [key for key in checked if key not in names]:
        raise wrong(place, unknown[0], f"only the keys {', '.join(names)}; a newer toolkit may know more")
    if missing := [name for name in names if name not in checked]:
        raise wrong(place, sorted(checked), f"the key {missing[0]} too")
    return checked


def list_of(value: Any, place: str) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise wrong(place, value, "a list")
    return value


def text_of(value: Any, place: str, pattern: re.Pattern[str], expected: str) -> str:
    """Return a text that a pattern matches as a whole; ``expected`` describes it."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise wrong(place, value, expected)
    return value


def one_of(value: Any, place: str, allowed: tuple[str, ...]) -> str:
    """Return one of the allowed texts."""
    if not isinstance(value, str) or value not in allowed:
        raise wrong(place, value, " or ".join(map(repr, allowed)))
    return value


def whole_of(value: Any, place: str, least: int, most: int) -> int:
    """Return a whole number within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise wrong(place, value, f"a whole number from {least} to {most}")
    return value


def flag_of(value: Any, place: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise wrong(place, value, "true or false")
    return value
