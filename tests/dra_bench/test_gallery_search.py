"""Search in large galleries."""

import json

import pytest

from dra_bench import gallery_cache
from dra_bench.cli import main
from dra_bench.gallery_search import recall_against


def run(capsys, *words):
    """Run a command; returns its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(word) for word in words])
    return (exit_info.value.code, *capsys.readouterr())


def test_recall_is_the_share_of_the_exact_answers():
    exact = [["a", "b"], ["c", "d"], ["e", "f"]]
    assert recall_against(exact, exact) == 1
    assert recall_against(exact, [["b", "a"], ["c", "x"], ["x", "y"]]) == 0.5


@pytest.mark.slow  # encodes the built-in pictures, and runs fresh processes
def test_galleries_are_made_once_and_measured(capsys, monkeypatch, tiny_bundle, tmp_path):
    words = ("gallery", "--bundle", tiny_bundle, "--items", 500, "--items", 2000, "--index", "flat", "--index", "hnsw")
    words = (*words, "--cache", tmp_path / "cache", "--threads", 1)
    code, out, _ = run(capsys, *words, "--build-only")
    assert code == 0
    assert len(out.splitlines()) == 8
    assert len(list((tmp_path / "cache").glob("*.gallery"))) == 8

    def again(*_):
        raise AssertionError("made a second time")

    monkeypatch.setattr(gallery_cache, "mixed_blocks", again)
    output = tmp_path / "gallery.json"
    code, out, _ = run(capsys, *words, "--samples", 11, "--runs", 2, "--seconds", 2, "--queries", 40, "-o", output)
    assert code == 0
    assert out.count("HNSW index, half") == 4  # two sizes, in the table of times and in that of files
    text = output.read_text()
    assert str(tmp_path) not in text
    assert [size["items"] for size in json.loads(text)["sizes"]] == [500, 2000]
    for size in json.loads(text)["sizes"]:
        rows = {row["search"]: row for row in size["rows"]}
        assert list(rows) == ["float32", "float16", "flat", "hnsw"]
        assert rows["float32"]["recall_at_10"] == 1
        assert min(row["recall_at_10"] for row in rows.values()) > 0.9
        assert rows["hnsw"]["built"]["threads"] == 1
        assert rows["float16"]["file_mb"] < rows["float32"]["file_mb"]
        assert len(size["raw_ms"]["hnsw"]) == 11
        assert len(size["raw_processes"]["hnsw"]) == 2
        assert "2155 built-in pictures" in size["recipe"]


def test_a_missing_bundle_leaves_nothing_behind(capsys, tmp_path):
    words = ("gallery", "--bundle", tmp_path / "none", "--items", 500, "--cache", tmp_path / "cache")
    code, out, err = run(capsys, *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not (tmp_path / "cache").exists()
