"""What a study says is computed from its runs: differences, intervals, verdicts, and the words around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dra_train.ablation_table import bootstrap_interval, compare, spread, study_markdown, verdict

QUERIES = 400


def run(seed: int, hits: np.ndarray, implicit: dict[str, float] | None = None) -> dict[str, Any]:
    """Return one run's result, whose query is answered at once where ``hits``."""
    ranks = np.where(hits, 0, 7).tolist()
    about = {"queries": len(ranks), "gallery": 50, "protocol": "cirr"}
    metrics = {"R@1": 100 * float(np.mean(hits)), "R@10": 100.0}
    split = {"about": about, "metrics": metrics, "implicit": implicit, "hit_at": 1, "ranks": ranks, "by_attributes": {}}
    return {"seed": seed, "splits": {"val": split}}


def answers(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(QUERIES) < share


def study(variants: dict[str, list[dict[str, Any]]], base: str = "both relations") -> dict[str, Any]:
    entries = []
    for name, runs in variants.items():
        difference = None if name == base else compare(runs, variants[base], "val")
        differences = {"val": difference} if difference else {}
        entries.append({"name": name, "what": "w", "overrides": ["a.b=1"], "differences": differences, "runs": runs})
    return {
        "base": base,
        "splits": ["val"],
        "seeds": [0, 1, 2],
        "dataset": "emoji_cir",
        "settings": {"model": {"backbone": "demo"}, "validation": {"split": ""}},
        "environment": {"cores": 2, "threads": 1, "torch": "2.14"},
        "command": "dra-train ablate --preset demo",
        "seconds": 600,
        "variants": entries,
    }


def test_differences_are_by_seed_and_only_where_both_have_it() -> None:
    base = [run(s, answers(0.5, s)) for s in (0, 1, 2)]
    variant = [run(s, answers(0.6, 50 + s)) for s in (2, 1, 5)]
    found = compare(variant, base, "val")
    assert found is not None
    expected = []
    for seed, place in ((2, 0), (1, 1)):
        ours, theirs = variant[place]["splits"]["val"]["ranks"], base[seed]["splits"]["val"]["ranks"]
        gained = sum((a < 1) - (b < 1) for a, b in zip(ours, theirs, strict=True))
        expected.append(100 * gained / QUERIES)
    assert found["seeds"] == [2, 1]
    assert found["by_seed"] == pytest.approx(expected, abs=0.01)
    assert found["mean"] == pytest.approx(sum(expected) / 2, abs=0.01)
    assert found["sd"] == pytest.approx(abs(expected[0] - expected[1]) / math.sqrt(2), abs=0.01)
    assert compare([run(9, answers(0.5, 0))], base, "val") is None
    alone = compare(variant[:1], base, "val")
    assert alone is not None
    assert alone["sd"] is None


def test_interval_is_that_of_a_mean_over_queries() -> None:
    """Against the normal approximation, which is close for so many queries."""
    random = np.random.default_rng(1)
    differences = random.choice([-1.0, 0.0, 1.0], size=3000, p=[0.1, 0.75, 0.15])
    low, high = bootstrap_interval(differences)
    middle, error = 100 * differences.mean(), 100 * differences.std() / math.sqrt(len(differences))
    assert low == pytest.approx(middle - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(middle + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(differences) == (low, high)
    assert bootstrap_interval(np.zeros(10)) == (0, 0)


def test_paired_queries_narrow_the_interval() -> None:
    """The same queries that fail in both say nothing about the difference."""
    hard = answers(0.5, 3)
    better = hard | answers(0.04, 4)
    found = compare([run(0, better)], [run(0, hard)], "val")
    assert found is not None
    assert found["verdict"] == "better"
    assert found["interval"][1] - found["interval"][0] < 4


def test_interval_is_of_the_mean_over_the_seeds() -> None:
    """What one seed wins and the next one loses on the same queries is no difference at all."""
    hits, none = answers(0.3, 1), np.zeros(QUERIES, dtype=bool)
    found = compare([run(0, hits), run(1, none)], [run(0, none), run(1, hits)], "val")
    assert found is not None
    assert found["by_seed"][0] == -found["by_seed"][1] > 20
    assert found["interval"] == [0, 0]


@pytest.mark.parametrize(
    ("by_seed", "low", "high", "expected"),
    [
        ([1.0, 2.0], -0.1, 3.0, "no difference seen"),
        ([0.0, 0.0], 0.0, 0.0, "no difference seen"),
        ([5.0, -1.0], 0.5, 3.0, "the seeds disagree"),
        ([5.0, 1.0], 0.5, 5.0, "better"),
        ([-5.0, -1.0], -5.0, -0.5, "worse"),
    ],
)
def test_verdicts(by_seed: list[float], low: float, high: float, expected: str) -> None:
    assert verdict(by_seed, low, high) == expected


def test_page_follows_the_figures() -> None:
    implicit = {"texts": 30.0, "pair to text R@1": 4.0, "pair to text R@10": 20.0, "text to pair R@1": 3.0}
    base = [run(s, answers(0.5, s), implicit) for s in (0, 1, 2)]
    same = [run(s, answers(0.5, s), implicit) for s in (0, 1, 2)]
    page = study_markdown(
        study(
            {
                "both relations": base,
                "explicit only": same,
                "implicit only": [run(s, answers(0.1, s), implicit) for s in (0, 1, 2)],
                "plain view": [run(s, answers(0.9, s), None) for s in (0, 1, 2)],
            }
        )
    )
    means = [100 * answers(0.5, s).mean() for s in (0, 1, 2)]
    assert f"| both relations |     3 | {spread(means)} |" in page
    assert "better: plain view (+" in page
    assert "worse: implicit only (-" in page
    assert "no difference seen: explicit only (+0.0)" in page
    assert "of 30 distinct texts" in page
    assert page.count("plain view") == 3  # recall table, sentence, list of changes; it has no TAC to measure
    assert "“implicit only” has no Combiner" in page
    assert "Of 3 comparisons about 0.1 would differ by chance" in page
    assert "10 minutes" in page
    assert page.count("4.0 ± 0.0") == 3


def test_page_of_the_base_alone_compares_nothing() -> None:
    page = study_markdown(study({"both relations": [run(0, answers(0.5, 0))]}))
    assert "nothing to compare" in page
    assert "comparisons" not in page
    assert "implicit only" not in page
    assert "distinct texts" not in page


def test_a_split_that_chose_the_epochs_is_named() -> None:
    content = study({"both relations": [run(0, answers(0.5, 0))]})
    assert "chosen on" not in study_markdown(content)
    content["settings"]["validation"]["split"] = "val"
    assert "The best epoch was chosen on val" in study_markdown(content)


def test_spread_of_one_seed_is_none() -> None:
    assert (spread([3.0]), spread([3.0, 5.0]), spread([])) == ("3.0", "4.0 ± 1.4", "-")
