"""CIRR's test split, FashionIQ, CIRCO and own data, in the forms in which they are published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_folders import CATEGORIES, circo, cirr_test_split, fashioniq, lines, own_data, write_image, write_json

from dra_runtime.errors import DatasetError, UsageError
from dra_train.data import Query, builtin_dataset, join, open_dataset, require_targets, splits_of
from dra_train.features import tokenize
from dra_train.vocabulary import END_TOKEN


@pytest.mark.parametrize("layout", ["beside", "around"])
def test_cirr_test_split_hides_its_targets_and_may_have_a_blank_caption(tmp_path: Path, layout: str) -> None:
    (data,) = open_dataset(cirr_test_split(tmp_path / "d", 12, layout), "test1")
    assert (data.format, data.hides_targets, len(data.queries), len(data.images)) == ("cirr", True, 12, 12)
    assert data.queries[3].text == ""
    assert data.queries[3].target == ""
    assert data.queries[3].right_answers == ()
    assert data.queries[3].group == tuple(list(data.images)[:6])
    with pytest.raises(DatasetError, match="d / test1 hides its targets, and training needs them"):
        require_targets(data, "training")


def test_blank_caption_has_a_start_and_an_end_token() -> None:
    class Tower:
        context_length = 77

    class Model:
        text = Tower()

    tokens = tokenize(Model(), ["", " "])  # type: ignore[arg-type]
    assert tokens.shape == (2, 2)
    assert (tokens[:, 1] == END_TOKEN).all()


def test_cirr_images_are_found_from_inside_the_annotations_and_by_their_root(tmp_path: Path) -> None:
    root = cirr_test_split(tmp_path / "d", 6)
    (inside,) = open_dataset(root / "cirr", "test1")
    assert set(inside.images.values()) == set((root / "img_raw" / "test1").iterdir())
    (root / "img_raw").rename(tmp_path / "photos")
    with pytest.raises(DatasetError, match="6 of 6 images of d / test1 are missing"):
        open_dataset(root, "test1")
    (data,) = open_dataset(root, "test1", image_root=tmp_path / "photos")
    assert all(path.is_file() for path in data.images.values())


def test_fashioniq_is_a_data_set_for_each_category(tmp_path: Path) -> None:
    datasets = open_dataset(fashioniq(tmp_path / "fiq", suffixes={2: ".png", 3: ".jpeg", 4: ".webp"}), "val")
    assert [d.category for d in datasets] == list(CATEGORIES)
    dress = datasets[0]
    assert (dress.format, dress.gallery, len(dress.images)) == ("fashioniq", "original", 7)
    assert dress.queries[0] == Query(
        "dress-0",
        "B00D0",
        "Is shiny and silver and fit and flare",
        "B00D1",
        train_texts=(
            "Is shiny and silver and fit and flare",
            "Fit and flare and is shiny and silver",
            "Is shiny and silver",
            "Fit and flare",
        ),
    )
    assert [path.suffix for path in dress.images.values()] == [".jpg", ".jpg", ".png", ".jpeg", ".webp", ".jpg", ".jpg"]


def test_blank_fashioniq_captions_keep_the_published_test_text_but_are_never_drawn_alone(tmp_path: Path) -> None:
    first_blank, second_blank = open_dataset(fashioniq(tmp_path / "fiq"), "val")[0].queries[1:]
    assert (first_blank.text, second_blank.text) == (" and is red", "Is long and ")
    assert first_blank.train_texts == (" and is red", "Is red and ", "Is red")
    assert second_blank.train_texts == ("Is long and ", " and is long", "Is long")


def test_fashioniq_galleries(tmp_path: Path) -> None:
    root = fashioniq(tmp_path / "fiq")
    union = open_dataset(root, "val", gallery="val_union")
    assert list(union[0].images) == ["B00D0", "B00D1", "B00D2", "B00D3"]
    assert {d.gallery for d in union} == {"val_union"}
    (root / "images" / "B00S6.jpg").unlink()  # in the original gallery only
    open_dataset(root, "val", gallery="val_union")
    with pytest.raises(DatasetError, match="1 of 7 images of fiq / shirt / val are missing: B00S6 "):
        open_dataset(root, "val")
    with pytest.raises(UsageError, match="gallery 'union' is unknown; use original or val_union"):
        open_dataset(root, "val", gallery="union")


def test_fashioniq_test_split_hides_its_targets(tmp_path: Path) -> None:
    assert all(d.hides_targets for d in open_dataset(fashioniq(tmp_path / "fiq", "test"), "test"))


def test_fashioniq_joins_for_training(tmp_path: Path) -> None:
    joined = join(open_dataset(fashioniq(tmp_path / "fiq", "train"), "train"))
    assert (len(joined.queries), len(joined.images), joined.category) == (9, 21, "")
    assert len({q.id for q in joined.queries}) == 9


def test_parts_that_name_different_files_alike_are_not_joined(tmp_path: Path) -> None:
    one, other = (open_dataset(own_data(tmp_path / name), "val")[0] for name in ("one", "other"))
    with pytest.raises(DatasetError, match=r"give 'a.jpg' different files"):
        join((one, other))


def test_circo_has_many_right_answers_and_padded_names(tmp_path: Path) -> None:
    (data,) = open_dataset(circo(tmp_path / "circo"), "val")
    assert (data.format, len(data.images)) == ("circo", 60)
    assert data.queries[1] == Query(
        1,
        "000000000021",
        "is darker",
        "000000000028",
        edit="addition+viewpoint",
        targets=("000000000028", "000000000035", "000000000042"),
    )
    assert data.images["000000000028"].name == "000000000028.jpg"
    (hidden,) = open_dataset(tmp_path / "circo", "test")
    assert hidden.hides_targets
    assert splits_of(tmp_path / "circo") == ["test", "val"]


def test_own_data_takes_every_image_of_the_folder_as_gallery(tmp_path: Path) -> None:
    (data,) = open_dataset(own_data(tmp_path / "shop"), "val")
    assert (data.name, data.format, data.split) == ("shop", "jsonl", "val")
    assert list(data.images) == ["a.jpg", "b.png", "more/c.webp", "more/d.jpg"]
    assert data.queries == (
        Query(1, "a.jpg", "in blue", "b.png"),
        Query(3, "more/c.webp", "like d", "more/d.jpg", ("more/c.webp", "more/d.jpg", "a.jpg", "b.png")),
    )
    empty = {"id": None, "group": None, "edit": None}
    lines(tmp_path / "shop" / "null.jsonl", [{**PAIR, **empty}])
    assert open_dataset(tmp_path / "shop" / "null.jsonl", "val")[0].queries == data.queries[:1]
    (by_file,) = open_dataset(tmp_path / "shop" / "pairs.jsonl", "val")
    assert by_file.queries == data.queries
    assert by_file.name == "pairs"


def test_own_data_without_an_image_folder_has_the_named_images_as_gallery(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop", images=".")
    write_image(root / "unnamed.jpg")
    assert "unnamed.jpg" not in open_dataset(root, "val")[0].images
    assert "unnamed.jpg" in open_dataset(root, "val", image_root=root)[0].images


def test_own_data_splits_by_file_or_by_line(tmp_path: Path) -> None:
    root = own_data(tmp_path / "files", "train.jsonl")
    lines(root / "val.jsonl", [{"reference": "b.png", "text": "in red", "target": "a.jpg"}])
    assert splits_of(root) == ["train", "val"]
    assert [len(open_dataset(root, split)[0].queries) for split in ("train", "val")] == [2, 1]
    with pytest.raises(DatasetError, match=r"no split 'test': expected test.jsonl or a single .jsonl, found train"):
        open_dataset(root, "test")
    with pytest.raises(DatasetError, match=r"train.jsonl is the split 'train', but 'val' was asked for"):
        open_dataset(root / "train.jsonl", "val")

    pair = {"reference": "a.jpg", "text": "in blue", "target": "b.png"}
    root = own_data(tmp_path / "lines")
    lines(root / "pairs.jsonl", [{**pair, "split": "train"}, {**pair, "split": "val"}, {**pair, "split": "val"}])
    assert splits_of(root) == ["train", "val"]
    assert [q.id for q in open_dataset(root, "val")[0].queries] == [2, 3]
    with pytest.raises(DatasetError, match="no split 'test'; it has train, val"):
        open_dataset(root, "test")
    lines(root / "pairs.jsonl", [{**pair, "split": "train"}, pair])
    with pytest.raises(DatasetError, match="line 2: no split, but other lines name theirs"):
        open_dataset(root, "train")


def test_group_by_name_holds_the_images_of_its_lines(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop")
    texts = [("a.jpg", "b.png", "shirts"), ("more/c.webp", "b.png", "shirts"), ("more/d.jpg", "a.jpg", "hats")]
    lines(root / "pairs.jsonl", [{"reference": r, "text": "x", "target": t, "group": g} for r, t, g in texts])
    groups = [q.group for q in open_dataset(root, "val")[0].queries]
    assert groups == [("a.jpg", "b.png", "more/c.webp")] * 2 + [("more/d.jpg", "a.jpg")]


PAIR = {"reference": "a.jpg", "text": "in blue", "target": "b.png"}
BROKEN_LINES: dict[str, tuple[Any, str]] = {
    "cut off": ('{"reference": "a.jpg", "text"', r"line 2: no JSON object \(Expecting ':' delimiter at column 30\)"),
    "a list": ("[1, 2]", "line 2: a list, expected an object"),
    "nested without end": ("[" * 100_000, "line 2: no JSON object"),
    "no target": ({"reference": "a.jpg", "text": "x"}, "line 2: no 'target'; expected reference, text and target"),
    "text that is a number": ({**PAIR, "text": 3}, "line 2: expected a text as string, found 3"),
    "text of 10,000": ({**PAIR, "text": "long " * 2000}, "line 2: a text of 10000 characters, at most 2000"),
    "empty target": ({**PAIR, "target": ""}, "line 2: expected names as non-empty strings, found ''"),
    "path out of the folder": ({**PAIR, "target": "../b.png"}, r"line 2: '\.\./b.png' isn't a path below"),
    "absolute path": ({**PAIR, "reference": "/etc/passwd"}, "line 2: '/etc/passwd' isn't a path below"),
    "path with a zero byte": ({**PAIR, "reference": "a\0.jpg"}, "line 2: .* isn't a path below"),
    "group that is a number": ({**PAIR, "group": 4}, "line 2: group is a int; expected a list of paths"),
    "group that leads out": ({**PAIR, "group": ["../../x.jpg"]}, "line 2: .* isn't a path below"),
    "id that is a list": ({**PAIR, "id": []}, "line 2: id is a list"),
}


@pytest.mark.parametrize("name", BROKEN_LINES)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, name: str) -> None:
    line, message = BROKEN_LINES[name]
    root = own_data(tmp_path / "shop")
    lines(root / "pairs.jsonl", [PAIR, line, PAIR])
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(root, "val")
    assert "pairs.jsonl, line 2" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop")
    (root / "pairs.jsonl").write_text('{"reference": "a.jpg", "text": "x\u2028y", "target": "b.png"}\r\n', "utf-8")
    assert open_dataset(root, "val")[0].queries[0].text == "x\u2028y"


BROKEN_ENTRIES: dict[str, tuple[Callable[[Path], Path], str, Callable[[Any], None], str]] = {
    "FashionIQ, three captions": (
        fashioniq,
        "captions/cap.shirt.val.json",
        lambda e: e[1]["captions"].append("x"),
        "cap.shirt.val.json, entry 1: 3 captions, expected two",
    ),
    "FashionIQ, no target in one": (
        fashioniq,
        "captions/cap.dress.val.json",
        lambda e: e[2].pop("target"),
        r"entry 2: expected FashionIQ's keys, but KeyError\('target'\)",
    ),
    "FashionIQ, unknown image": (
        fashioniq,
        "captions/cap.dress.val.json",
        lambda e: e[0].update(target="B1"),
        "cap.dress.val.json names 1 images that the split lacks: B1;",
    ),
    "FashionIQ, caption of 10,000": (
        fashioniq,
        "captions/cap.toptee.val.json",
        lambda e: e[0].update(captions=["long " * 2000, "x"]),
        "cap.toptee.val.json, entry 0: a text of 10000 characters, at most 2000",
    ),
    "FashionIQ, split that holds numbers": (
        fashioniq,
        "image_splits/split.dress.val.json",
        lambda e: e.append(3),
        "split.dress.val.json, entry 7: expected names as non-empty strings, found 3",
    ),
    "CIRCO, target that is no right answer": (
        circo,
        "annotations/val.json",
        lambda e: e[1].update(target_img_id=49),
        "val.json, entry 1: gt_img_ids must hold target_img_id",
    ),
    "CIRCO, id as text": (
        circo,
        "annotations/val.json",
        lambda e: e[0].update(reference_img_id="7"),
        "entry 0: expected CIRCO's keys, but ValueError.*'7' is no image id",
    ),
    "CIRCO, image outside": (
        circo,
        "annotations/val.json",
        lambda e: e[0].update(reference_img_id=8),
        "val.json names 1 images that the split lacks: 000000000008",
    ),
    "CIRCO, listing without names": (
        circo,
        "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json",
        lambda e: e["images"][3].pop("file_name"),
        "expected COCO's images with id and file_name, but KeyError",
    ),
}


@pytest.mark.parametrize("name", BROKEN_ENTRIES)
def test_a_broken_entry_is_one_line_with_its_file(tmp_path: Path, name: str) -> None:
    make, file, damage, message = BROKEN_ENTRIES[name]
    path = make(tmp_path / "d") / file
    content = json.loads(path.read_text())
    damage(content)
    write_json(path, content)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(tmp_path / "d", "val")
    assert len(str(caught.value).splitlines()) == 1


def test_missing_images_are_left_out_on_request_and_written_down(tmp_path: Path) -> None:
    root = circo(tmp_path / "circo")
    folder = root / "COCO2017_unlabeled" / "unlabeled2017"
    (folder / "000000000014.jpg").unlink()  # the target of query 0
    (folder / "000000000042.jpg").write_bytes(b"")  # a further right answer of query 1
    (folder / "000000000070.jpg").write_bytes((folder / "000000000077.jpg").read_bytes()[:200])  # nobody's
    (data,) = open_dataset(root, "val", allow_missing=True)
    assert data.missing == ("000000000014", "000000000042", "000000000070")
    assert data.dropped == 1
    assert [q.id for q in data.queries] == [1]
    assert data.queries[0].targets == ("000000000028", "000000000035")
    assert len(data.images) == 57


def test_groups_lose_the_images_that_are_left_out(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop")
    (root / "images" / "b.png").write_bytes(b"no picture")
    (data,) = open_dataset(root, "val", allow_missing=True)
    assert data.missing == ("b.png",)
    assert [(q.id, q.group) for q in data.queries] == [(3, ("more/c.webp", "more/d.jpg", "a.jpg"))]


def test_images_of_a_whole_data_set_that_are_missing_are_an_error_even_when_allowed(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop")
    for name in ("a.jpg", "more/c.webp"):
        (root / "images" / name).unlink()
    with pytest.raises(DatasetError, match="no query of shop / val is left without its 2 missing images"):
        open_dataset(root, "val", allow_missing=True)


def test_formats_are_told_apart_and_can_be_forced(tmp_path: Path) -> None:
    assert open_dataset("builtin", "val")[0].name == "emoji_cir"
    assert open_dataset(builtin_dataset(), "val", format="cirr")[0].format == "cirr"
    root = own_data(tmp_path / "mixed")
    circo(root)
    assert open_dataset(root, "val")[0].format == "circo"
    assert open_dataset(root, "val", format="jsonl")[0].format == "jsonl"
    with pytest.raises(UsageError, match="format 'coco' is unknown; use auto, cirr"):
        open_dataset(root, "val", format="coco")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="looks like no known data set"):
        open_dataset(tmp_path / "empty", "val")
    for missing in ("none", "none.jsonl"):
        for format in ("auto", "cirr", "jsonl"):
            with pytest.raises(DatasetError, match="is no folder with a data set"):
                open_dataset(tmp_path / missing, "val", format=format)
    with pytest.raises(DatasetError, match="photos is no folder"):
        open_dataset(root, "val", image_root=tmp_path / "photos")
