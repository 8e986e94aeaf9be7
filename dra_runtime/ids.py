"""The ids of a gallery's file: their UTF-8 behind each other, read where one is asked for."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import UsageError

MAX_ID = 1_024  #: characters
_BLOCK = 65_536  # ids decoded at once
_BYTES = 1_048_576  # checked at once


class PackedIds(Sequence[str]):
    """N texts in an array of bytes: number i stands from ``offsets[i]`` to ``offsets[i + 1]``.

    UTF-8 sorts by bytes as by code points. ``check_packed`` must have accepted the arrays.
    """

    def __init__(self, text: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        self.text = text
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self[i] for i in range(*place.indices(len(self))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        place %= len(self)
        return self.text[self.offsets[place] : self.offsets[place + 1]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            offsets = self.offsets[first : first + _BLOCK + 1].tolist()
            text = self.text[offsets[0] : offsets[-1]].tobytes()
            for start, end in pairwise(offsets):
                yield text[start - offsets[0] : end - offsets[0]].decode("utf-8")


def check_packed(text: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
    """Refuse arrays that aren't N texts of 1 to `MAX_ID` characters in UTF-8; ValueError with the reason.

    Takes memory for a few numbers an id. The order isn't looked at: see `check_order`.
    """
    if not (offsets[0] == 0 and offsets[-1] == len(text)):
        raise ValueError("its ids begin or end elsewhere than stated")
    lengths = np.diff(offsets)
    if len(lengths) and not (lengths.min() > 0 and lengths.max() <= 4 * MAX_ID and offsets.min() >= 0):
        raise ValueError("an id is empty or too long")
    if len(text) and ((text[offsets[:-1]] & 0xC0) == 0x80).any():
        raise ValueError("an id begins within a character")
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(text), _BYTES):
        decoder.decode(text[start : start + _BYTES].tobytes(), final=start + _BYTES >= len(text))
    for row in np.flatnonzero(lengths > MAX_ID).tolist():
        if len(text[offsets[row] : offsets[row + 1]].tobytes().decode("utf-8")) > MAX_ID:
            raise ValueError("an id is too long")


def check_order(ids: Sequence[str]) -> None:
    """Refuse ids that aren't ascending, or one that stands twice; ValueError with the reason."""
    before = ""
    for name in ids:
        if name <= before:
            raise ValueError("ids out of order, or one twice")
        before = name


def check_id(value: object) -> str:
    """Return an id, or raise UsageError if it can't be one."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID:
        raise UsageError(f"{value!r:.80} is no id; give a text of 1 to {MAX_ID} characters")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the id {value!r:.80} isn't valid Unicode; rename it") from error
    return value
