"""dra-train check-data: what it finds, and its three exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from data_folders import circo, cirr_test_split, fashioniq, lines, own_data, write_image, write_json

from dra_train.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["check-data", *(str(a) for a in arguments)])


def findings(result: Result, part: int = 0) -> dict[str, dict[str, Any]]:
    return {f["kind"]: f for f in json.loads(result.stdout)["splits"][part]["findings"]}


def test_a_sound_data_set_is_fine(tmp_path: Path) -> None:
    result = run(own_data(tmp_path / "shop"))
    assert result.exit_code == 0, result.stdout
    assert "shop / val (jsonl): 2 queries, 4 images" in result.stdout
    assert "4 images open, from 12 x 10 to 12 x 10 pixels" in result.stdout
    assert "training would see 2 triplets over 4 images" in result.stdout
    assert "evaluation would rank 4 images for each query" in result.stdout
    assert result.stdout.splitlines()[-1] == "fine"
    assert json.loads(run(tmp_path / "shop", "--json").stdout)["passed"]


def test_what_is_wrong_is_counted_and_named(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop")
    images = root / "images"
    (images / "empty.jpg").write_bytes(b"")
    (images / "cut.jpg").write_bytes(write_image(images / "whole.jpg", 9, (200, 100)).read_bytes()[:700])
    pair = {"reference": "a.jpg", "text": "in blue", "target": "b.png"}
    entries = [
        pair,
        pair,
        {**pair, "target": "a.jpg", "id": 1},
        {**pair, "target": "gone.jpg"},
        {**pair, "text": " "},
        {**pair, "text": "word " * 90},
        {**pair, "reference": "empty.jpg", "group": []},
    ]
    lines(root / "pairs.jsonl", entries)
    result = run(root, "--json")
    assert result.exit_code == 1
    found = findings(result)
    assert {kind: (f["count"], f["is_problem"]) for kind, f in found.items()} == {
        "missing images": (1, True),
        "empty images": (1, True),
        "unreadable images": (1, True),
        "queries without their images": (2, True),
        "repeated ids": (1, True),
        "targets that are the reference": (1, True),
        "repeated triplets": (2, False),
        "blank texts": (1, False),
        "texts that are cut": (1, False),
    }
    assert found["missing images"]["first"] == ["gone.jpg"]
    assert found["empty images"]["first"] == ["empty.jpg"]
    assert "truncated" in found["unreadable images"]["first"][0]
    assert found["texts that are cut"]["first"] == ["query 6 (92)"]  # 90 words, start and end
    assert found["repeated ids"]["first"] == ["query 1"]

    shown = run(root).stdout
    assert "both would stop at 3 images; --allow-missing leaves them out, with 2 queries that need them" in shown
    assert "! 1 missing images" in shown
    assert "- 2 repeated triplets" in shown
    assert shown.splitlines()[-1].startswith("FOUND WANTING")


def test_every_split_is_checked_and_shared_queries_are_noted(cirr_folder: Callable[..., Any]) -> None:
    result = run(cirr_folder().root)
    assert result.exit_code == 0
    assert "data / train (cirr): 24 queries, 12 images" in result.stdout
    assert "data / val (cirr): 24 queries, 12 images" in result.stdout
    assert "note: train and val share 24 queries" in result.stdout
    assert "data / train" not in run(cirr_folder(root="b").root, "--split", "val").stdout


def test_groups_that_cannot_be_ranked(cirr_folder: Callable[..., Any]) -> None:
    folder = cirr_folder(splits=["val"])
    entries = json.loads(folder.captions("val").read_text())
    entries[0]["img_set"]["members"] = entries[0]["img_set"]["members"][1:]  # without the reference
    entries[1]["img_set"]["members"] = entries[1]["img_set"]["members"][:3]
    folder.captions("val").write_text(json.dumps(entries))
    result = run(folder.root, "--json")
    assert result.exit_code == 1
    found = findings(result)
    assert {kind: f["first"] for kind, f in found.items()} == {
        "groups without the target": ["query 0"],
        "small groups": ["query 1"],
    }


def test_published_formats_and_their_blank_captions_are_fine(tmp_path: Path) -> None:
    hidden = run(cirr_test_split(tmp_path / "cirr", 12))
    assert hidden.exit_code == 0
    assert "targets are hidden: dra-train submit answers 12 queries" in hidden.stdout
    assert "- 1 blank texts" in hidden.stdout

    fashion = run(fashioniq(tmp_path / "fiq"), "--gallery", "val_union")
    assert fashion.exit_code == 0
    assert "fiq / dress / val (fashioniq, val_union gallery): 3 queries, 4 images" in fashion.stdout
    assert "a text drawn from up to 4 at each step" in fashion.stdout
    assert "- 2 blank captions of two" in fashion.stdout

    coco = run(circo(tmp_path / "circo"))
    assert coco.exit_code == 0
    assert "evaluation would rank 60 images for each query, 2.00 right answers each" in coco.stdout


@pytest.mark.parametrize("damage", ["line", "json", "none"])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    root = own_data(tmp_path / "shop")
    if damage == "line":
        lines(root / "pairs.jsonl", ["{"])
    elif damage == "json":
        (root / "pairs.jsonl").unlink()
        write_json(root / "captions" / "cap.dress.val.json", {})
    result = run(tmp_path / "nowhere" if damage == "none" else root, "--split", "val")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert {"line": "line 1", "json": "no split 'val'", "none": "nowhere is no folder"}[damage] in result.stderr


def test_control_characters_of_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    root = own_data(tmp_path / "shop")
    lines(root / "pairs.jsonl", [{"reference": "a.jpg", "text": "x", "target": "\x1b[2J.jpg"}])
    assert "\x1b" not in run(root).stdout
    assert "?[2J.jpg" in run(root).stdout
