"""The test servers' files: their form, their order, and that nothing wrong or half is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from data_folders import circo, cirr_test_split, own_data

from dra_runtime.errors import DatasetError, UsageError
from dra_train.checkpoint import load_checkpoint
from dra_train.cli import main
from dra_train.data import Dataset, Query, open_dataset
from dra_train.evaluate import score
from dra_train.submission import check_submission, submission, write_submission


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["submit", *(str(a) for a in arguments)])


def assert_one_line(result: Result, message: str) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def sorted_names(row: Any, names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (-float(row[name]), name))


def test_cirr_files_hold_the_best_names_without_the_reference(tiny_checkpoint: Path, tmp_path: Path) -> None:
    root = cirr_test_split(tmp_path / "cirr")
    result = run(tiny_checkpoint, "--dataset", root, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "cirr_test1_recall.json written: 60 queries" in result.stdout
    whole, subset = (
        json.loads((tmp_path / "out" / f"cirr_test1_{metric}.json").read_text())
        for metric in ("recall", "recall_subset")
    )
    assert (whole.pop("version"), whole.pop("metric")) == ("rc2", "recall")
    assert (subset.pop("version"), subset.pop("metric")) == ("rc2", "recall_subset")
    (data,) = open_dataset(root, "test1")
    scores = score(load_checkpoint(tiny_checkpoint).model, data).composed
    assert len(whole) == len(subset) == 60
    for query, values in zip(data.queries, scores, strict=True):
        row = dict(zip(data.images, values, strict=True))
        others = [n for n in data.images if n != query.reference]
        assert whole[str(query.id)] == sorted_names(row, others)[:50]
        assert subset[str(query.id)] == sorted_names(row, [n for n in query.group if n != query.reference])[:3]


def test_circo_file_holds_ids_as_numbers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    root = circo(tmp_path / "circo")
    (tmp_path / "out").mkdir()  # an empty folder may be there
    result = run(tiny_checkpoint, "--dataset", root, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["circo_test.json"]
    answers = json.loads((tmp_path / "out" / "circo_test.json").read_text())
    (data,) = open_dataset(root, "test")
    scores = score(load_checkpoint(tiny_checkpoint).model, data).composed
    for query, values in zip(data.queries, scores, strict=True):
        row = dict(zip(data.images, values, strict=True))
        assert answers[str(query.id)] == [int(n) for n in sorted_names(row, list(data.images))[:50]]


def test_what_the_server_would_refuse_is_not_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    few = cirr_test_split(tmp_path / "few", 12)  # eleven candidates, not fifty
    message = "query 12000 has 11 different answers, the server wants 50; the gallery has 12 images"
    assert_one_line(run(tiny_checkpoint, "--dataset", few, "-o", tmp_path / "out"), message)
    own = own_data(tmp_path / "shop")
    assert_one_line(
        run(tiny_checkpoint, "--dataset", own, "-o", tmp_path / "out"), "test servers exist for cirr and circo"
    )
    with pytest.raises(UsageError, match="test servers exist for cirr and circo"):
        submission(load_checkpoint(tiny_checkpoint).model, open_dataset(own, "val")[0])
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    for folder, message in ((tmp_path / "used", "isn't an empty folder"), (tmp_path / "no" / "out", "parent folder")):
        assert_one_line(run(tmp_path / "ckpt.pt", "--dataset", tmp_path, "-o", folder), message)


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    files = {"a.json": {"1": [1]}, "no/such/b.json": {"1": [1]}}
    with pytest.raises(UsageError, match="out can't be written"):
        write_submission(files, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


NAMES = [f"{i:03d}" for i in range(60)]
QUERIES = tuple(Query(i, NAMES[i], "", "", tuple(NAMES[:6])) for i in range(3))
CIRR = Dataset("cirr", "test1", QUERIES, {name: Path(name) for name in NAMES})


def recall() -> dict[str, Any]:
    return {"version": "rc2", "metric": "recall", **{str(i): NAMES[5:55] for i in range(3)}}


def subset() -> dict[str, Any]:
    return {"version": "rc2", "metric": "recall_subset", **{str(i): NAMES[3:6] for i in range(3)}}


WRONG = {
    "a query without answers": (recall, {"1": None}, "answers 2 of the 3 queries and 0 others"),
    "a query of another split": (recall, {"99": NAMES[5:55]}, "answers 3 of the 3 queries and 1 others"),
    "too few": (recall, {"1": NAMES[5:54]}, "49 different answers, the server wants 50"),
    "a name twice": (recall, {"1": [*NAMES[5:54], NAMES[5]]}, "49 different answers"),
    "an unknown name": (recall, {"1": [*NAMES[5:54], "x"]}, "'x', which isn't a candidate"),
    "the reference": (recall, {"1": [*NAMES[5:54], NAMES[1]]}, "'001', which isn't a candidate"),
    "a name outside the group": (subset, {"1": NAMES[4:7]}, "'006', which isn't a candidate"),
    "the reference among the group": (subset, {"1": [NAMES[1], *NAMES[4:6]]}, "'001', which isn't a candidate"),
    "another version": (recall, {"version": "rc1"}, "version 'rc1' and metric 'recall' aren't"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_checker_sees_what_is_wrong(name: str) -> None:
    make, change, message = WRONG[name]
    check_submission(make(), CIRR, "f")
    content = {key: value for key, value in {**make(), **change}.items() if value is not None}
    with pytest.raises(DatasetError, match=message):
        check_submission(content, CIRR, "f")


def test_the_checker_weighs_the_file_and_wants_numbers_for_circo(monkeypatch: pytest.MonkeyPatch) -> None:
    circo_data = replace(CIRR, format="circo")
    numbers = {str(i): list(range(50)) for i in range(3)}
    check_submission(numbers, circo_data, "f")
    with pytest.raises(DatasetError, match="'000', which isn't a candidate"):
        check_submission({**numbers, "1": NAMES[:50]}, circo_data, "f")
    monkeypatch.setattr("dra_train.submission.MAX_BYTES", 100)
    with pytest.raises(DatasetError, match=r"f has .* bytes, the server takes 100"):
        check_submission(numbers, circo_data, "f")


def test_ids_that_stand_for_two_queries_are_seen() -> None:
    twice = replace(CIRR, queries=(*QUERIES, QUERIES[0]))
    with pytest.raises(DatasetError, match="ids of cirr / test1 stand for several queries"):
        check_submission(recall(), twice, "f")
