"""Ids equal open_clip's on any string."""

import html.entities
import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dra_runtime.errors import TextError, UsageError
from dra_runtime.tokenizer import Tokenizer

VOCABULARY = Path(importlib.util.find_spec("open_clip").origin).parent / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load(VOCABULARY)


@pytest.fixture(scope="module")
def reference():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def expected(reference, text: str) -> list[int]:
    row = reference([text])[0].tolist()
    length = 2 + len(reference.encode(text))
    return row[: min(length, 77)]


TEXTS = [
    "",
    " ",
    "is shorter, with long sleeves",
    "It's the SAME dress, we'd've liked it's'S'T sleeves",
    "<start_of_text>a<end_of_text> <START_OF_TEXT><|endoftext|>",
    "a cat <end_of_text> and more",
    "<\u017ftart_of_text> '\u017f",
    "Tom &amp; Jerry &amp;lt;3 &#x1F600; &eacute; &notanentity; &#0; &#xD800;",
    "<i> &amp;lt; twice &amp;amp;lt; &amp;amp;amp;lt; more",
    "a <b>bold</b> &lt;word&gt; & ampersand",
    "“quoted” ‘text’ it’s — dash… naïve café CAFÉ",
    "fullwidth ＡＢＣ１２３！　ideographic",
    "mojibake: âœ” no problem; Ã©tÃ©",
    "emoji 👩🏽‍🚒 🏳️‍🌈 🤷🏿‍♂️ ❤️",
    "日本語のテキスト 한국어 العربية हिन्दी ไทย",
    "１２３ 456 ½ Ⅻ x² ١٢٣",
    "tabs\tand\nnewlines\r\n\x0b\x0c\x85\u2028\xa0end",
    "control \x00\x01\x1b[31mred\x1b[0m \x7f \u200b\ufeff\u202e",
    "\ud800 lone \udfff surrogates \ud83d\ude00",
    "İstanbul ß ſ ŉ ﬁ ǅ Σίσυφος",
    "e\u0301 composed é",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!!!!????....,,,,----====____####",
    "a" * 10_000,
    "word " * 2_000,
    "".join(chr(97 + i * i % 26) for i in range(3_000)),
    "".join(chr(0x4E00 + i * 37 % 20_000) for i in range(2_000)),
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_equal_to_open_clip(tokenizer, reference, text):
    assert tokenizer.encode(text) == expected(reference, text)


PIECES = st.sampled_from(
    [
        *("<start_of_text>", "<end_of_text>", "<", ">", "&amp;", "&lt;", "&#39;", "&", ";", "'s", "'LL", "’", "“"),
        *("\x1b[0m", "Ａ", "ﬁ", "İ", "ſ", "�", "👩🏽\u200d🚒", "é", "é", "Ã©", " ", "\n", "\xa0"),
        *("\u200b", "0", "½", "dress", "x"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(st.characters(), max_size=60), st.lists(PIECES, max_size=20).map("".join)))
@example("<<start_of_text>>")
def test_fuzzed_equal_to_open_clip(tokenizer, reference, text):
    assert tokenizer.encode(text) == expected(reference, text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyzABC '.,-!?0123456789&<>\"#_/"), max_size=80))
def test_fuzzed_plain_text_equal_to_open_clip(tokenizer, reference, text):
    assert tokenizer.encode(text) == expected(reference, text)


@pytest.mark.parametrize("last", [0x3000, pytest.param(0x110000, marks=pytest.mark.slow)])
def test_code_points_equal_to_open_clip(tokenizer, reference, last):
    wide = Tokenizer(tokenizer.merges, 10_000)
    for start in range(0, last, 64):
        text = " ".join(map(chr, range(start, start + 32))) + "".join(map(chr, range(start + 32, start + 64)))
        assert wide.encode(text)[1:-1] == reference.encode(text), hex(start)


def _entity(name):
    return f"&{name}"


MANY_PIECES = st.one_of(
    PIECES,
    st.text(st.characters(), max_size=12),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF), max_size=3),  # surrogates, lone and paired
    st.text(st.characters(categories=["Cc", "Cf", "Zs", "Zl", "Zp"]), max_size=6),
    st.text(st.characters(categories=["Mn", "Mc", "Me"]), max_size=8).map("e".__add__),
    st.text(st.characters(min_codepoint=0x590, max_codepoint=0x8FF), max_size=12),  # written from right to left
    st.text(st.sampled_from("👩👨🏽🏿🚒🏳🌈❤🤷♂♀\u200d\ufe0f\u20e3🇩🇪🏴\U000e0067\U000e007f"), max_size=10),
    st.text(st.characters(min_codepoint=0xFF00, max_codepoint=0xFFEF), max_size=8),  # full-width
    st.sampled_from(sorted(html.entities.html5)).map(_entity),
    st.integers(0, 0x120000).map(lambda n: f"&#{n};"),
    st.integers(0, 0x120000).map(lambda n: f"&#x{n:X}"),
    st.text(st.characters(codec="utf-8"), max_size=6).map(lambda t: t.encode().decode("latin-1")),  # mojibake
    st.text(st.characters(codec="utf-8"), max_size=6).map(lambda t: t.encode().decode("cp1252", "ignore")),
    st.text("ab1'", max_size=40),
)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MANY_PIECES, max_size=40), st.sampled_from(["", " ", " ", "\n"]))
def test_thousands_of_texts_equal_open_clip(tokenizer, reference, pieces, between):
    text = between.join(pieces)
    assert tokenizer.encode(text) == expected(reference, text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "ab ", "dress ", "1", "é", "👩\u200d🚒", ", ", "sleeves"]), min_size=30, max_size=150
    )
)
def test_texts_are_cut_where_open_clip_cuts_them(tokenizer, reference, pieces):
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert ids == expected(reference, text)
    assert len(ids) <= 77
    assert ids[-1] == tokenizer.end_token


@pytest.mark.parametrize("text", ["&#" + "1" * 5_000 + ";", "a &#" + "9" * 4_301, "&amp;#" + "1" * 5_000])
def test_what_open_clip_fails_on_is_a_text_error(tokenizer, reference, text):
    with pytest.raises(ValueError, match="integer string"):
        reference.encode(text)
    with pytest.raises(TextError) as caught:
        tokenizer.encode(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_numbers_of_clip(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.start_token, tokenizer.end_token) == (49408, 49406, 49407)
    assert len(tokenizer.merges) == 48_894
    assert tokenizer.merges[:2] == ("i n", "t h")


def test_merges_are_learned_after_their_parts(tokenizer):
    # what makes merging by a heap equal to merging pass by pass
    made = {pair.replace(" ", ""): rank for rank, pair in enumerate(tokenizer.merges)}
    assert len(made) == len(tokenizer.merges)
    assert all(made.get(part, -1) < rank for rank, pair in enumerate(tokenizer.merges) for part in pair.split(" "))


def test_plain_file_equals_the_compressed_one(tokenizer, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(tokenizer.merges) + "\n", encoding="utf-8")
    loaded = Tokenizer.load(path)
    assert loaded.merges == tokenizer.merges
    assert loaded.encode("is shorter") == tokenizer.encode("is shorter")


def test_other_context_lengths_are_cut_as_open_clip_cuts(tokenizer, reference):
    text = "one two three four five six"
    for length in (2, 3, 5, 8, 9):
        short = Tokenizer(tokenizer.merges, length)
        assert short(["", text], length).tolist() == reference(["", text], length).tolist()


def test_batches_are_padded_with_zeros(tokenizer, reference):
    texts = ["a", "is shorter, with long sleeves", ""]
    tokens = tokenizer(texts)
    assert tokens.dtype == np.int32
    assert tokens.shape == (3, 8)
    full = tokenizer(texts, 77)
    assert np.array_equal(full, reference(texts).numpy())
    assert np.array_equal(full[:, :8], tokens)
    assert tokenizer([]).shape == (0, 0)
    with pytest.raises(UsageError, match="8 tokens"):
        tokenizer(texts, 7)
    with pytest.raises(UsageError, match="list"):
        tokenizer("a")


@pytest.mark.parametrize(
    "content",
    [b"a b c\n", b"ab\n", b"\xff\xfe", b"a b\r\nc d\r\n", b"\x1f\x8bnot gzip", b"a b\n\n"],
)
def test_no_merges(content, tmp_path):
    path = tmp_path / "merges.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_short_context(tmp_path):
    with pytest.raises(UsageError):
        Tokenizer.load(tmp_path / "missing.txt")
    with pytest.raises(UsageError, match="context_length"):
        Tokenizer([], 1)


def test_cache_is_bounded(tokenizer):
    fresh = Tokenizer(tokenizer.merges)
    for i in range(3):
        for j in range(12_000):
            fresh.encode("".join(chr(97 + (i * 12_000 + j) // 26**p % 26) for p in range(5)))
    assert len(fresh._cache) <= 20_000


def test_threads_get_the_serial_answers(tokenizer, monkeypatch):
    monkeypatch.setattr("dra_runtime.tokenizer._CACHED_WORDS", 50)  # emptied all the time
    texts = [f"word{i} is {i} times longer and {chr(97 + i % 26) * 3}" for i in range(300)]
    serial = [Tokenizer(tokenizer.merges).encode(text) for text in texts[:1]] + [tokenizer.encode(t) for t in texts[1:]]
    shared, answers = Tokenizer(tokenizer.merges), [[] for _ in range(8)]

    def work(out):
        out.extend(shared.encode(text) for text in texts)

    threads = [threading.Thread(target=work, args=(out,)) for out in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(out == serial for out in answers)
