"""Real runs over six colours that fail in every way, and are told so; and one that learns, of which nothing is said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dra_train.data import Dataset, load_cirr
from dra_train.diagnosis import diagnose
from dra_train.fit import fit
from dra_train.settings import load_settings

SMALL = ("model.backbone=tiny-resnet", "model.image_stages=last", "stage1.batch_size=8", "stage2.batch_size=8")
GENTLE = (*SMALL, "model.dropout=0.1", "loss.feature_noise=0.1", "loss.logit_scale=10", "stage1.epochs=12")
LEARNS = (*GENTLE, "stage1.learning_rate=5e-3", "stage2.learning_rate=3e-3", "stage2.epochs=10")


@pytest.fixture
def colours(cirr_folder: Callable[..., Any]) -> tuple[Dataset, Dataset]:
    """Return the training and the validation split of the coloured squares."""
    root = cirr_folder().root
    return load_cirr(root, "train"), load_cirr(root, "val")


@pytest.fixture
def findings(tmp_path: Path) -> Callable[..., list[str]]:
    """Train, and return what the log's entries say one after the other."""

    def train(overrides: tuple[str, ...], data: Dataset, *validation: Dataset) -> list[str]:
        settings = load_settings("demo", overrides)
        fit(settings, data, tmp_path / "run", validation=validation, cache=tmp_path / "cache")
        entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
        said = [sentence for n in range(len(entries)) for sentence in diagnose(entries[: n + 1])]
        assert said == [sentence for entry in entries for sentence in entry["findings"]]
        return said

    return train


def test_a_run_that_learns_is_left_in_peace(
    findings: Callable[..., list[str]], colours: tuple[Dataset, Dataset]
) -> None:
    assert findings((*LEARNS, "validation.split=val"), *colours) == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("stage2.learning_rate=1", "stage2.epochs=4"), "the explicit loss is 2.48, that of an even guess 2.48"),
        (("stage1.learning_rate=10", "stage2.epochs=0"), "stage 1, epoch 3: logit_scale is down to"),
        (
            ("loss.implicit_weight=1e-4", "stage2.epochs=2"),
            "% of the whole: training learns the explicit relation alone",
        ),
        (("stage2.learning_rate=1e-7", "stage2.epochs=4"), "TAC learns nothing"),
    ],
)
def test_a_run_that_fails_says_how(
    findings: Callable[..., list[str]],
    colours: tuple[Dataset, Dataset],
    overrides: tuple[str, ...],
    expected: str,
) -> None:
    said = findings((*SMALL, "stage1.epochs=3", *overrides), colours[0])
    assert any(expected in sentence for sentence in said), said


def test_a_run_whose_texts_say_nothing_reads_the_answer_off_the_relation(
    findings: Callable[..., list[str]], colours: tuple[Dataset, Dataset]
) -> None:
    """Any picture may follow any other, and the text is always the same: only F_v knows the target."""
    data = colours[0]
    query = replace(data.queries[0], text="x", group=())
    pairs = [(a, b) for a in data.images for b in data.images if a != b]
    queries = tuple(replace(query, id=i, reference=a, target=b) for i, (a, b) in enumerate(pairs))
    quiet = ("model.dropout=0.0", "loss.feature_noise=0", "stage1.epochs=2", "stage2.batch_size=32")
    said = findings((*SMALL, *quiet, "stage2.epochs=14", "stage2.learning_rate=3e-3"), replace(data, queries=queries))
    last = [sentence for sentence in said if sentence.startswith("stage 2, epoch 14")]
    assert any("the model reads the answer off F_v" in sentence for sentence in last), last


@pytest.mark.slow  # where its validation turns depends on rounding
def test_a_run_that_learns_wrong_answers_by_heart_over_fits(
    findings: Callable[..., list[str]], colours: tuple[Dataset, Dataset]
) -> None:
    data, val = (replace(d, queries=tuple(replace(q, group=()) for q in d.queries)) for d in colours)
    chance = random.Random(10)
    wrong = set(chance.sample(range(len(data.queries)), 10))
    names = list(data.images)
    queries = tuple(
        replace(q, target=chance.choice([n for n in names if n not in (q.target, q.reference)])) if i in wrong else q
        for i, q in enumerate(data.queries)
    )
    quiet = ("model.dropout=0.0", "loss.feature_noise=0", "loss.logit_scale=10", "stage1.epochs=8", "stage2.epochs=60")
    rates = ("stage1.learning_rate=3e-3", "stage2.learning_rate=3e-3")
    watched = ("validation.split=val", "validation.metric=R@1")
    said = findings((*SMALL, *quiet, *rates, *watched), replace(data, queries=queries), val)
    assert any("over-fitting; stop earlier" in sentence for sentence in said), said
