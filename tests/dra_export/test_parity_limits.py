"""Each threshold from both sides."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dra_export.parity.graphs import Difference
from dra_export.parity.limits import LIMITS, Limits, limits_of, misses
from dra_runtime.bundle import Bundle


def difference(cosine: float) -> Difference:
    return Difference([np.array([1.0, cosine])])


def recall(now: float, overlap: float = 100.0) -> dict:
    return {"reference": {"R@1": 50.0, "R@5": 80.0}, "candidate": {"R@1": now, "R@5": 80.0}, "top10_overlap": overlap}


@pytest.mark.parametrize(
    ("precision", "cosine", "now", "overlap", "missed"),
    [
        ("fp32", 0.99999, 50.0, 0.0, ""),
        ("fp32", 0.999989, 50.0, 100.0, "text_encoder: smallest cosine 0.999989, below 0.99999"),
        ("fp32", 1.0, 50.01, 100.0, "R@1: 50.01 % where PyTorch has 50.00 %"),
        ("fp32", 1.0, 49.99, 100.0, "R@1: 49.99 % where PyTorch has 50.00 %"),
        ("fp16", 0.999, 49.9, 99.0, ""),
        ("fp16", 0.9989, 50.0, 100.0, "text_encoder: smallest cosine 0.998900, below 0.999"),
        ("fp16", 1.0, 49.89, 100.0, "R@1: 49.89 % where PyTorch has 50.00 %, more than 0.1 points lower"),
        ("fp16", 1.0, 51.0, 100.0, ""),
        ("fp16", 1.0, 50.0, 98.99, "first ten in common: 98.99 %, below 99 %"),
        ("int8", 0.5, 49.5, 50.0, ""),
        ("int8", 0.5, 49.49, 50.0, "R@1: 49.49 % where PyTorch has 50.00 %, more than 0.5 points lower"),
    ],
)
def test_thresholds(precision: str, cosine: float, now: float, overlap: float, missed: str) -> None:
    limits = LIMITS.get(precision, Limits(None, 0.5, None))
    found = misses(limits, {"text_encoder": difference(cosine), "query": difference(1.0)}, recall(now, overlap))
    assert found == ([missed] if missed else [])


def test_without_recall_cosines_are_judged_alone() -> None:
    assert misses(LIMITS["fp16"], {"query": difference(1.0)}, None) == []
    assert LIMITS["fp16"].words(with_recall=False) == "smallest cosine at least 0.999"
    assert Limits(None, 0.5, None).words(with_recall=False) == ""


@pytest.mark.parametrize(
    ("said", "points"),
    [
        ({"max_recall_loss": 0.25}, 0.25),
        ({"max_recall_loss": 2}, 2.0),
        ({"max_recall_loss": True}, 0.5),
        ({}, 0.5),
        ("nothing", 0.5),
    ],
)
def test_an_int8_bundle_states_its_own_limit(tiny_bundle: Path, said: object, points: float) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    found = limits_of(replace(manifest, precision="int8", provenance={"int8": said}))
    assert found == Limits(None, points, None)
    assert json.dumps(found.to_dict())
    assert limits_of(manifest) == LIMITS["fp32"]
