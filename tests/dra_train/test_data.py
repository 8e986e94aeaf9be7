"""Reading CIRR's format: both layouts, and one line for every way to be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from dra_runtime.errors import DatasetError
from dra_train.data import Query, builtin_dataset, load_cirr

Folder = Any


@pytest.mark.parametrize("layout", ["beside", "around"])
def test_both_layouts_are_read(cirr_folder: Callable[..., Folder], layout: str) -> None:
    folder = cirr_folder(layout)
    data = load_cirr(folder.root, "val")
    assert (data.name, data.split, len(data.queries), len(data.images)) == ("data", "val", 24, 12)
    assert data.queries[1] == Query(
        1,
        "c0-bright",
        "in colour 1!!!",
        "c1-bright",
        ("c0-bright", "c1-bright", "c0-dark", "c1-dark", "c2-bright", "c2-dark"),
    )
    assert list(data.images) == list(json.loads(folder.split("val").read_text()))  # in the file's order
    assert all(path.is_file() and path.stem == name for name, path in data.images.items())
    assert ("img_raw" in str(data.images["c0-bright"])) == (layout == "beside")


def edited(change: Callable[[list[Any]], Any]) -> Callable[[Folder], None]:
    def damage(folder: Folder) -> None:
        entries = json.loads(folder.captions("val").read_text())
        replaced = change(entries)
        folder.captions("val").write_text(json.dumps(entries if replaced is None else replaced))

    return damage


DAMAGE = {
    "missing image": (
        lambda f: (f.images / "val" / "c3-dark.png").unlink(),
        "1 of 12 images .* missing: c3-dark ",
    ),
    "malformed captions": (lambda f: f.captions("val").write_text("[{"), "cap.rc2.val.json can't be read as JSON"),
    "captions as an object": (lambda f: f.captions("val").write_text("{}"), "holds a dict, expected a list"),
    "no split file": (lambda f: f.split("val").unlink(), "split.rc2.val.json can't be read as JSON"),
    "split as a list": (lambda f: f.split("val").write_text("[]"), "holds a list, expected a dict"),
    "path that is a number": (lambda f: f.split("val").write_text('{"a": 3}'), "no path for 1 images, such as 'a'"),
    "captions that are no text": (lambda f: f.captions("val").write_bytes(b"\xff\xfe\xfa"), "can't be read as JSON"),
    "no target": (edited(lambda e: e[2].pop("target_hard") and None), "entry 2: expected CIRR's keys.*target_hard"),
    "no group": (edited(lambda e: e[0].pop("img_set") and None), "entry 0: .*img_set"),
    "pairid that is a word": (edited(lambda e: e[1].update(pairid="first")), "entry 1: .*first"),
    "caption that is null": (
        edited(lambda e: e[1].update(caption=None)),
        "entry 1: expected a text as string, found None",
    ),
    "entry that is a list": (edited(lambda e: [[], *e]), "entry 0"),
    "unknown target": (edited(lambda e: e[4].update(target_hard="c9-dark")), "names 1 images .*: c9-dark;"),
    "no queries": (edited(lambda e: e.clear()), "holds no queries"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_data_is_one_line(cirr_folder: Callable[..., Folder], name: str) -> None:
    damage, message = DAMAGE[name]
    folder = cirr_folder()
    damage(folder)
    with pytest.raises(DatasetError, match=message) as caught:
        load_cirr(folder.root, "val")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_unknown_split_names_the_ones_there_are(cirr_folder: Callable[..., Folder]) -> None:
    with pytest.raises(DatasetError, match=r"no split 'test1'; it has train, val$"):
        load_cirr(cirr_folder().root, "test1")


def test_folder_that_is_no_data_set_says_what_was_expected(tmp_path: Any) -> None:
    with pytest.raises(DatasetError, match=r"no CIRR data: expected .*cirr.captions"):
        load_cirr(tmp_path, "val")


def test_many_missing_images_are_counted_and_ten_are_named(cirr_folder: Callable[..., Folder]) -> None:
    folder = cirr_folder()
    for path in (folder.images / "val").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="12 of 12 images") as caught:
        load_cirr(folder.root, "val")
    names = str(caught.value).partition("missing: ")[2].partition("…")[0]
    assert len(names.split(", ")) == 10


@pytest.mark.parametrize("split", ["train", "val", "val_unseen"])
def test_builtin_data_reads_whole(split: str) -> None:
    data = load_cirr(builtin_dataset(), split)
    assert data.name == "emoji_cir"
    assert len({q.id for q in data.queries}) == len(data.queries)
    for query in data.queries:
        assert query.text.strip()
        assert query.reference != query.target
        assert len(query.group) == 6
        assert {query.reference, query.target} <= set(query.group)
        assert query.edit
