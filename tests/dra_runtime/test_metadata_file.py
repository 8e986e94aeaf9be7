"""Metadata from CSV and JSON Lines, its types, and every unusable file."""

import pytest

from dra_runtime.errors import UsageError
from dra_runtime.folder import FolderImage
from dra_runtime.metadata_file import matched_metadata, read_metadata


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_csv_columns_types(tmp_path):
    text = (
        "id,category,price,year,sku,new,note\r\n"
        'a,dress,19.5,2024,007,true,"long, red"\r\n'
        "b,skirt,20,-3,12,FALSE,\r\n"
        "\r\n"
        'c/d,"über ""all""",1e3,,5,,n/a\r\n'
    )
    items = read_metadata(written(tmp_path, "items.csv", "\N{ZERO WIDTH NO-BREAK SPACE}" + text))
    assert items == {
        "a": {"category": "dress", "price": 19.5, "year": 2024, "sku": "007", "new": True, "note": "long, red"},
        "b": {"category": "skirt", "price": 20.0, "year": -3, "sku": "12", "new": False},
        "c/d": {"category": 'über "all"', "price": 1000.0, "sku": "5", "note": "n/a"},
    }
    assert [type(items["b"][key]) for key in ("price", "year", "new")] == [float, int, bool]


@pytest.mark.parametrize(
    "cell", ["1_000", "٣", " 1", "0x1", "inf", "nan", "+1", "1.", ".5", "99999999999999999999", "01"]
)
def test_what_only_looks_like_a_number_is_text(tmp_path, cell):
    expected = float(cell) if cell.startswith("999") else cell  # too long for a whole number, and still a number
    items = read_metadata(written(tmp_path, "items.csv", f"id,x\na,{cell}\nb,2\n"))
    assert items["a"]["x"] == expected
    assert type(items["b"]["x"]) is type(expected)


def test_tabs_and_json_lines(tmp_path):
    assert read_metadata(written(tmp_path, "a.tsv", "x\tid\n1\ta,b\n")) == {"a,b": {"x": 1}}
    text = '{"id": "a", "x": 1, "y": null, "z": ["r", "g"], "w": true, "v": 1.5, "u": "1"}\n\n{"id": "b"}\n'
    assert read_metadata(written(tmp_path, "a.jsonl", text)) == {
        "a": {"x": 1, "z": ["r", "g"], "w": True, "v": 1.5, "u": "1"},
        "b": {},
    }


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "id\na\n", [".csv"]),
        ("a.csv", "", ["columns"]),
        ("a.csv", "name,x\na,1\n", ["'name, x'", "id"]),
        ("a.csv", "id,x,x\na,1,2\n", ["different names"]),
        ("a.csv", "id,\na,1\n", ["different names"]),
        ("a.csv", "id,x\n", ["no metadata"]),
        ("a.csv", "id,x\na,1\na,2\n", ["line 3", "'a'", "twice"]),
        ("a.csv", "id,x\na,1,2\n", ["line 2", "3 cells"]),
        ("a.csv", 'id,x\na,"1\n', ["can't be read"]),
        ("a.csv", b"id,x\na,\xff\n", ["UTF-8"]),
        ("a.csv", "id,x\na," + "y" * 5000 + "\n", ["line 2", "4096"]),
        ("a.csv", "id," + ",".join(f"k{i}" for i in range(65)) + "\na" + ",1" * 65 + "\n", ["65", "64"]),
        ("a.jsonl", "[]\n", ["line 1", "object"]),
        ("a.jsonl", '{"id": "a"}\n{"id": 3}\n', ["line 2", "id"]),
        ("a.jsonl", '{"id": "a"\n', ["line 1", "JSON"]),
        ("a.jsonl", '{"id": "a", "x": {"y": 1}}\n', ["line 1", "'x'"]),
        ("a.jsonl", '{"id": "a", "x": NaN}\n', ["line 1", "NaN"]),
        ("a.jsonl", b'{"id": "\xff"}\n', ["line 1"]),
        ("a.jsonl", "[" * 100_000 + "\n", ["line 1"]),
    ],
)
def test_unusable_files(tmp_path, name, text, words):
    with pytest.raises(UsageError) as caught:
        read_metadata(written(tmp_path, name, text))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_metadata(tmp_path / "missing.csv")


def test_ids_and_paths_both_match(tmp_path):
    images = [FolderImage("a", "a.jpg", 1, 1), FolderImage("s/b", "s/b.png", 1, 1), FolderImage("c", "c.png", 1, 1)]
    notes = []
    found = matched_metadata(images, {"a": {"x": 1}, "s/b.png": {"x": 2}, "nobody": {"x": 3}}, notes.append)
    assert found == {"a": {"x": 1}, "s/b": {"x": 2}}
    assert notes == [
        "metadata: 1 of 3 ids are no image's, such as 'nobody'",
        "metadata: 1 of 3 images have none, such as 'c'",
    ]
    with pytest.raises(UsageError, match="'zzz', is an image's; these look like 'a'"):
        matched_metadata(images, {"zzz": {"x": 1}}, notes.append)


def test_no_usable_image_at_all():
    with pytest.raises(UsageError, match="no image"):
        matched_metadata([], {"a": {"x": 1}}, lambda line: None)
