"""Evaluation of a model by each protocol, against sorting its own scores by hand; what results say about themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from data_folders import circo, cirr_test_split, fashioniq, own_data

from dra_runtime.errors import DatasetError
from dra_train import evaluate as evaluation
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main
from dra_train.data import Dataset, open_dataset
from dra_train.evaluate import evaluate, evaluate_all, score
from dra_train.metrics import Columns
from dra_train.model import DRA


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *(str(a) for a in arguments)])


@pytest.fixture
def model(tiny_checkpoint: Path) -> DRA:
    return load_checkpoint(tiny_checkpoint).model


def rankings(model: DRA, data: Dataset, drop_reference: bool) -> list[list[str]]:
    """Sort each query's gallery by the model's own scores, then by name."""
    result = []
    for query, values in zip(data.queries, score(model, data).composed, strict=True):
        row = dict(zip(data.images, values, strict=True))
        names = [n for n in data.images if not (drop_reference and n == query.reference)]
        result.append(sorted(names, key=lambda name, row=row: (-float(row[name]), name)))
    return result


def share(hits: list[Any]) -> float:
    return round(100 * float(np.mean(hits)), 2)


def test_fashioniq_keeps_the_reference_and_names_its_gallery(model: DRA, tmp_path: Path) -> None:
    root = fashioniq(tmp_path / "fiq", captions=[(f"more {i}", "red") for i in range(14)], count=16)
    for gallery, size in (("original", 16), ("val_union", 15)):
        parts = open_dataset(root, "val", gallery=gallery)
        results = evaluate_all(model, parts)
        assert [r["category"] for r in results] == ["dress", "shirt", "toptee", "mean"]
        for part, result in zip(parts, results, strict=False):
            ranked = rankings(model, part, drop_reference=False)
            hits = {k: share([q.target in r[:k] for q, r in zip(part.queries, ranked, strict=True)]) for k in (10, 50)}
            assert result["metrics"] == pytest.approx(
                {"R@10": hits[10], "R@50": hits[50], "mean": (hits[10] + hits[50]) / 2}, abs=0.006
            )
            assert (result["gallery_name"], result["gallery"]) == (gallery, size)
            assert f"gallery {gallery}" in result["protocol"]
            assert "reference kept" in result["protocol"]
        mean = results[-1]
        assert mean["queries"] == 42
        assert 0 < mean["metrics"]["R@10"] < 100
        for metric in ("R@10", "R@50", "mean"):
            assert mean["metrics"][metric] == round(sum(r["metrics"][metric] for r in results[:3]) / 3, 2)


def test_circo_scores_all_right_answers(model: DRA, tmp_path: Path) -> None:
    (data,) = open_dataset(circo(tmp_path / "circo"), "val")
    precisions = []
    for query, ranked in zip(data.queries, rankings(model, data, drop_reference=False), strict=True):
        found = [name in query.targets for name in ranked[:25]]
        terms = [sum(found[: i + 1]) / (i + 1) for i, hit in enumerate(found) if hit]
        precisions.append(sum(terms) / min(len(query.targets), 25))
    result = evaluate(model, data)
    assert result["metrics"]["mAP@25"] == share(precisions)
    assert result["gallery"] == 60
    assert set(result["by_edit"]) == {"addition", "viewpoint"}
    assert set(result["by_attributes"]) == {"one aspect", "two aspects"}


def test_own_data_is_scored_as_cirr(model: DRA, tmp_path: Path) -> None:
    (data,) = open_dataset(own_data(tmp_path / "shop"), "val")
    ranked = rankings(model, data, drop_reference=True)
    metrics = evaluate(model, data)["metrics"]
    assert metrics["R@1"] == share([q.target == r[0] for q, r in zip(data.queries, ranked, strict=True)])
    grouped = [n for n in ranked[1] if n in data.queries[1].group]
    assert metrics["Rsubset@1"] == share([grouped[0] == data.queries[1].target])  # one query has a group


def test_blocks_give_the_same_result_as_one_matrix(
    cirr_folder: Callable[..., Any], model: DRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data,) = open_dataset(cirr_folder().root, "val")
    whole = evaluate(model, data)
    seen = []
    rank_answers = evaluation.rank_answers

    def watched(scores: Any, *rest: Any) -> Any:
        seen.append(scores.shape)
        return rank_answers(scores, *rest)

    monkeypatch.setattr(evaluation, "BLOCK_SCORES", 5 * len(data.images))
    monkeypatch.setattr(evaluation, "rank_answers", watched)
    assert evaluate(model, data) == whole
    assert set(seen) == {(5, 12), (4, 12)}


def test_scores_can_be_changed_before_they_are_ranked(
    cirr_folder: Callable[..., Any], model: DRA, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data,) = open_dataset(cirr_folder().root, "val")
    columns = {name: i for i, name in enumerate(data.images)}

    def know_all(scores: Any, block: slice) -> Any:
        result = scores.copy()
        for row, query in zip(result, data.queries[block], strict=True):
            row[columns[query.target]] = 2
        return result

    encoded, names = evaluation.encode(model, data), Columns.of(list(data.images))
    monkeypatch.setattr(evaluation, "BLOCK_SCORES", 5 * len(data.images))  # the last block is smaller
    plain = evaluation.rank_all(encoded.composed, encoded.gallery, data, names)
    known = evaluation.rank_all(encoded.composed, encoded.gallery, data, names, know_all)
    assert set(known.target) == set(known.subset) == {0}
    assert len(known.target) == len(data.queries)
    assert set(plain.target) != {0}


def test_dropout_is_off_meanwhile_and_every_part_gets_its_mode_back(
    cirr_folder: Callable[..., Any], model: DRA
) -> None:
    (data,) = open_dataset(cirr_folder().root, "val")
    expected = evaluate(model, data)
    model.train()
    model.visual.eval()
    modes = [module.training for module in model.modules()]
    assert evaluate(model, data) == expected
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()


def test_hidden_targets_are_refused_before_the_work(tiny_checkpoint: Path, model: DRA, tmp_path: Path) -> None:
    root = cirr_test_split(tmp_path / "d", 6)
    with pytest.raises(DatasetError, match="hides its targets"):
        evaluate(model, open_dataset(root, "test1")[0])
    result = run(tiny_checkpoint, "--dataset", root, "--split", "test1")
    assert result.exit_code == 2
    assert "d / test1 hides its targets, and evaluation needs them; choose another split" in result.stderr


def test_images_that_cannot_be_opened_are_counted_in_one_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    root = circo(tmp_path / "circo", 20)
    folder = root / "COCO2017_unlabeled" / "unlabeled2017"
    for id in (49, 56):
        (folder / f"{id:012d}.jpg").write_bytes(b"")
    result = run(tiny_checkpoint, "--dataset", root)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "2 of 20 images of circo / val can't be opened: 000000000049, 000000000056 (" in result.stderr
    assert "empty, 0 bytes" in result.stderr
    assert "--allow-missing" in result.stderr

    result = run(tiny_checkpoint, "--dataset", root, "--allow-missing", "--json")
    assert result.exit_code == 0, result.stderr
    measured = json.loads(result.stdout)
    names = ["000000000049", "000000000056"]
    assert measured["missing"] == {"count": 2, "first": names, "dropped_queries": 0}
    assert measured["gallery"] == 18
    shown = run(tiny_checkpoint, "--dataset", root, "--allow-missing").stdout
    assert "left out: 2 missing or unreadable images (000000000049, 000000000056) and 0 queries that need" in shown


def test_another_data_set_than_trained_on_is_said(cirr_folder: Callable[..., Any], model: DRA, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", model, {"dataset": "emoji_cir", "split": "train"})
    root = cirr_folder().root
    measured = json.loads(run(tmp_path / "a.pt", "--dataset", root, "--json").stdout)
    assert measured["trained_on"] == {"dataset": "emoji_cir", "split": "train", "other_dataset": True}
    assert "trained on another data set: emoji_cir / train" in run(tmp_path / "a.pt", "--dataset", root).stdout

    save_checkpoint(tmp_path / "b.pt", model, {"dataset": "data", "split": "train"})
    assert "another data set" not in run(tmp_path / "b.pt", "--dataset", root).stdout
    save_checkpoint(tmp_path / "c.pt", model, {})
    assert json.loads(run(tmp_path / "c.pt", "--dataset", root, "--json").stdout)["trained_on"] is None


def test_tables_name_gallery_categories_and_compare_splits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shown = run(tiny_checkpoint, "--dataset", fashioniq(tmp_path / "fiq"), "--gallery", "val_union").stdout
    assert "fiq / dress / val: recall in % over a val_union gallery of 4 images" in shown
    assert "fiq / mean / val: recall in % over mean of the categories" in shown
    compared = shown.partition("compared:")[2].splitlines()
    assert [line.split("|")[1].strip() for line in compared if line.startswith("| fiq")] == [
        "fiq / dress / val",
        "fiq / shirt / val",
        "fiq / toptee / val",
        "fiq / mean / val",
    ]


def test_edits_of_two_attributes_stand_beside_those_of_one(
    cirr_folder: Callable[..., Any], tiny_checkpoint: Path
) -> None:
    folder = cirr_folder()
    entries = json.loads(folder.captions("val").read_text())
    for i, entry in enumerate(entries):
        entry["edit"] = "tone" if i % 2 else "gender+tone"
    folder.captions("val").write_text(json.dumps(entries))
    shown = run(tiny_checkpoint, "--dataset", folder.root).stdout
    for row in ("edits of one attribute", "edits of two attributes", "edit: gender+tone", "edit: tone"):
        assert f"|   {row}" in shown
    assert "compared:" not in shown


def test_one_part_alone_has_no_mean(model: DRA, tmp_path: Path) -> None:
    parts = open_dataset(fashioniq(tmp_path / "fiq"), "val")
    whole = replace(parts[0], queries=parts[0].queries[:1])
    assert evaluate_all(model, [whole]) == [evaluate(model, whole)]
