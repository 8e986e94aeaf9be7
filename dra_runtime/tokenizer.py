"""CLIP's byte-pair tokenizer: the ids of open_clip's SimpleTokenizer on any string.

A text is cleaned (ftfy, HTML entities unescaped twice, white space collapsed, lower case), split into words by CLIP's
pattern, and each word's UTF-8 bytes are merged pair by pair in the order in which the merges were learned
(Sennrich et al. 2016; Radford et al. 2021).
"""

from __future__ import annotations

import heapq
import html
import io
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.errors import TextError, UsageError
from dra_runtime.regular_file import read_regular

START, END = "<start_of_text>", "<end_of_text>"
MERGES_USED = 49152 - 256 - 2  #: of open_clip's list of 262,145 CLIP uses this many, from the top
MAX_MERGES = 2**20
MAX_MERGES_BYTES = 32 * 2**20  #: of a file of merges, unpacked

_WORD = START + "|" + END + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CACHED_WORDS = 20_000
_CACHED_LENGTH = 40  # characters; longer words rarely come twice


class Tokenizer:
    """Turn texts into token ids.

    Safe to share between threads: its cache of words is only ever read, filled and emptied by single operations on a
    dictionary, and holds at most 20,000 words.

    Parameters
    ----------
    merges
        The pairs to merge, ``"i n"``, in the order in which they were learned.
    context_length
        Most tokens a text may have, the start and end token counted.

    Raises
    ------
    UsageError
        An entry is not a pair, or the context is shorter than start and end.
    """

    def __init__(self, merges: Sequence[str], context_length: int = 77) -> None:
        self.merges: tuple[str, ...] = tuple(merges)
        if context_length < 2:
            raise UsageError(f"context_length is {context_length}; give at least 2, for the start and the end token")
        for number, pair in enumerate(self.merges, 1):
            if pair.count(" ") != 1 or len(pair) < 3 or not pair.isprintable():
                raise UsageError(f"merge {number} is {pair[:40]!r}; expected two symbols with a space between them")
        self.context_length = context_length
        symbols = _byte_symbols()
        self._byte_symbols = symbols
        self._base_ids = {symbol: i for i, symbol in enumerate(_symbols_in_order())}
        # The id of what a merge makes. A merge's rank is its id minus a constant, so this orders them too.
        self._merged_ids = dict(zip(self.merges, range(512, 512 + len(self.merges)), strict=True))
        self.vocab_size = 512 + len(self.merges) + 2
        self.start_token = self.vocab_size - 2
        self.end_token = self.vocab_size - 1
        self._special_ids = {START: [self.start_token], END: [self.end_token]}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def load(cls, path: str | Path, context_length: int = 77) -> Tokenizer:
        """Load the merges from a file.

        Parameters
        ----------
        path
            Plain text with one merge a line, or open_clip's ``bpe_simple_vocab_16e6.txt.gz``, whose header line is
            dropped and of whose merges the first 48,894 are taken.
        context_length
            See the class.

        Raises
        ------
        UsageError
            The file can't be read, or a line is no merge.
        """
        path = Path(path)
        try:
            data = read_regular(path, MAX_MERGES_BYTES, links=True)
            packed = data[:2] == b"\x1f\x8b"
            if packed:
                import gzip  # a bundle's merges are plain

                with gzip.open(io.BytesIO(data)) as file:
                    data = file.read(MAX_MERGES_BYTES + 1)
            if len(data) > MAX_MERGES_BYTES or data.count(b"\n") > MAX_MERGES:
                raise ValueError(f"more than {MAX_MERGES_BYTES} bytes or {MAX_MERGES} lines")
            lines = data.decode("utf-8").split("\n")
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UsageError(f"{path}: no list of merges ({error}); give a bundle's merges.txt") from error
        if packed:
            lines = lines[1 : MERGES_USED + 1]
        elif lines[-1] == "":
            lines.pop()
        return cls(lines, context_length)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids from start to end token; too long a text is cut and keeps its end token.

        Raises
        ------
        TextError
            The text can't be cleaned (see `clean`).
        """
        room = self.context_length - 2
        ids = [self.start_token]
        for word in _words(clean(text)):
            ids.extend(self._word_ids(word))
            if len(ids) > room:
                break
        return [*ids[: room + 1], self.end_token]

    def __call__(self, texts: Sequence[str], length: int | None = None) -> npt.NDArray[np.int32]:
        """Return the ids of many texts.

        Parameters
        ----------
        texts
            N strings.
        length
            Columns of the result, by default those of the longest text.

        Returns
        -------
        np.ndarray
            (N, length) int32, each row filled with zeros after its end token.

        Raises
        ------
        UsageError
            A single string was given, or a text has more tokens than ``length``.
        """
        if isinstance(texts, str):
            raise UsageError("a single string was given; give a list of texts")
        rows = [self.encode(text) for text in texts]
        longest = max(map(len, rows), default=0)
        if length is None:
            length = longest
        elif longest > length:
            raise UsageError(f"a text has {longest} tokens, more than the length {length} asked for; give no length")
        tokens = np.zeros((len(rows), length), np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens

    def _word_ids(self, word: str) -> list[int]:
        ids = self._cache.get(word)
        if ids is None:
            ids = self._special_ids.get(word) or self._merge(word)
            if len(word) <= _CACHED_LENGTH:
                if len(self._cache) >= _CACHED_WORDS:
                    self._cache.clear()
                self._cache[word] = ids
        return ids

    def _merge(self, word: str) -> list[int]:
        """Merge a word's bytes, always the earliest-learned pair first and from left to right.

        A heap of candidate pairs keeps this at n log n for a word of n bytes; merging pass by pass would take seconds
        for a word of some thousand. Both give the same, because a pair is learned after the symbols it is made of.
        """
        symbols: list[str | None] = [self._byte_symbols[byte] for byte in word.encode("utf-8")]
        symbols[-1] = f"{symbols[-1]}</w>"
        ids = [self._base_ids[symbol] for symbol in symbols if symbol is not None]
        after = list(range(1, len(symbols) + 1))
        before = list(range(-1, len(symbols) - 1))
        heap: list[tuple[int, int, str]] = []

        def consider(left: int, right: int) -> None:
            pair = f"{symbols[left]} {symbols[right]}"
            merged = self._merged_ids.get(pair)
            if merged is not None:
                heapq.heappush(heap, (merged, left, pair))

        for left in range(len(symbols) - 1):
            consider(left, left + 1)
        while heap:
            merged, left, pair = heapq.heappop(heap)
            right = after[left]
            if symbols[left] is None or right == len(symbols) or f"{symbols[left]} {symbols[right]}" != pair:
                continue  # one of the two was merged with another neighbour meanwhile
            symbols[left], ids[left], symbols[right] = f"{symbols[left]}{symbols[right]}", merged, None
            after[left] = after[right]
            if after[left] < len(symbols):
                before[after[left]] = left
                consider(left, after[left])
            if before[left] >= 0:
                consider(before[left], left)
        return [i for symbol, i in zip(symbols, ids, strict=True) if symbol is not None]


def clean(text: str) -> str:
    """Clean a text as CLIP does: ftfy, HTML unescaped twice, white space collapsed, lower case.

    Raises
    ------
    TextError
        It names an HTML character by a number of thousands of digits, which Python won't read.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):
        # Neither changes plain ASCII, and most queries are: they needn't wait for ftfy's import
        import ftfy

        try:
            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        except ValueError as error:  # CLIP's own tokenizer fails on it too
            raise TextError(
                "a text has an HTML entity with a number of thousands of digits; write the character itself"
            ) from error
    return " ".join(text.split()).lower()


def _words(text: str) -> Iterator[str]:
    return (match.group() for match in _word_pattern().finditer(text))


@cache
def _word_pattern() -> Any:
    import regex  # `re` lacks \p{L} and \p{N}

    return regex.compile(_WORD, regex.IGNORECASE)


@cache
def _byte_symbols() -> tuple[str, ...]:
    """Return the character that stands for each byte: itself where it is printable, else one from 256 upwards."""
    spare = iter(range(256, 512))
    return tuple(chr(byte) if _stands_for_itself(byte) else chr(next(spare)) for byte in range(256))


def _symbols_in_order() -> list[str]:
    """Return the first 512 symbols in the order of their ids: printable bytes first, and all again as word ends."""
    symbols = _byte_symbols()
    order = [byte for byte in range(256) if _stands_for_itself(byte)]
    order += [byte for byte in range(256) if not _stands_for_itself(byte)]
    return [symbols[byte] for byte in order] + [symbols[byte] + "</w>" for byte in order]


def _stands_for_itself(byte: int) -> bool:
    return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF
