"""Every way for a run to fail is named from its log, a healthy one isn't, and a log with holes is read all the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dra_train.diagnosis import diagnose, effective_rank

Entry = dict[str, Any]


def healthy(epochs: int = 6) -> list[Entry]:
    """Return a log as a good run of the second stage writes it."""
    entries = []
    for i in range(epochs):
        explicit, implicit = 4 * 0.7**i + 0.5, 1.5 * 0.8**i + 0.2
        entries.append(
            {
                "stage": "stage 2",
                "epoch": i + 1,
                "epochs": epochs + 4,
                "step": 96 * (i + 1),
                "losses": {"explicit": explicit, "implicit": implicit},
                "chance": {"explicit": 7.2, "implicit": 2.4},
                "views": {"plain": explicit + 0.2, "compensated": explicit - 0.2},
                "learning_rate": 1e-3,
                "logit_scale": 20.0 + i,
                "implicit_logit_scale": 14.0 + i,
                "grad_norm": {"mean": 2.0 - 0.1 * i, "max": 5.0},
                "effective_rank": {"query": 60.0, "relation": 30.0 + i, "image": 80.0, "text": 50.0},
                "implicit_share": implicit / (explicit + implicit),
                "train": {"R@1": 40.0 + 4 * i},
                "val": {"R@1": 30.0 + 3 * i, "R@5": 60.0},
                "seconds": 10.0,
            }
        )
    return entries


def change(entries: list[Entry], path: str, *values: object) -> list[Entry]:
    """Return a copy whose last entries have ``values`` at ``path``."""
    changed = copy.deepcopy(entries)
    for entry, value in zip(changed[-len(values) :], values, strict=True):
        *folders, name = path.split(".")
        for folder in folders:
            entry = entry[folder]
        entry[name] = value
    return changed


FAILURES = {
    "not finite": (change(healthy(), "losses.explicit", math.nan), "isn't finite", "stage2.learning_rate (try 0.0001)"),
    "gradient not finite": (change(healthy(), "grad_norm.max", math.inf), "grad_norm.max isn't finite", "lower"),
    "loss rises": (change(healthy(), "losses.explicit", 2.9, 3.5), "loss rose from 2.84 to 4.19", "lower"),
    "loss leaps": (change(healthy(), "losses.explicit", 9.0), "the run diverges", "longer warm-up"),
    "even guess": (
        change(healthy(), "losses.explicit", *[7.21] * 5, 7.19),
        "that of an even guess 7.2",
        "learning_rate",
    ),
    "gradient explodes": (change(healthy(), "grad_norm.mean", 55.0), "norm is 55, in earlier epochs 1.8", "lower"),
    "scale at its bound": (change(healthy(), "logit_scale", 100.0), "risen from 20 to its bound, 100", "feature_noise"),
    "implicit scale at its bound": (change(healthy(), "implicit_logit_scale", 99.9), "implicit_logit_scale", "dropout"),
    "scale near 0": (change(healthy(), "logit_scale", 0.4), "down to 0.4", "lower stage2.learning_rate"),
    "one direction": (change(healthy(), "effective_rank.query", 1.5, 1.3), "query features spread over 1.3", "lower"),
    "relation collapses": (
        change(healthy(), "effective_rank.relation", 4.0, 4.1),
        "relation features spread over 4.1 dimensions (effective rank), down from 33",
        "implicit_weight",
    ),
    "TAC learns nothing": (
        change(healthy(2), "losses.implicit", 2.5, 2.45),
        "implicit loss is 2.45, that of an even guess is 2.4: TAC learns nothing",
        "raise loss.implicit_weight",
    ),
    "implicit share": (
        change(healthy(), "implicit_share", 0.002, 0.002, 0.002, 0.002, 0.002, 0.003),
        "implicit loss is 0.3 % of the whole",
        "raise loss.implicit_weight",
    ),
    "reads the answer off": (
        change(healthy(), "views", {"plain": 3.4, "compensated": 0.05}),
        "loss is 0.05 with the relation and 3.4 without it",
        "loss.views=plain",
    ),
    "reads the answer off, plain view not trained": (
        change(change(healthy(), "views", {"compensated": 0.05}), "train.R@1", 12.0),
        "loss is 0.05 with the relation, but without it train R@1 is 12",
        "loss.views=both",
    ),
    "over-fits": (
        change(healthy(), "val.R@1", 45.0, 42.0, 41.5),
        "validation R@1 fell from 45 in epoch 4 to 41.5 while train R@1 rose from 52 to 60",
        "stage2.epochs=4",
    ),
    "under-trained": (
        change(change(healthy(4), "epochs", 4), "losses.explicit", 1.0),
        "still fell from 3.62 to 1.97, and validation R@1 rose from 36 to 39",
        "raise stage2.epochs (try 8)",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_is_named_alone_with_its_numbers_and_a_cure(name: str) -> None:
    entries, seen, cure = FAILURES[name]
    findings = diagnose(entries)
    assert len(findings) == 1, findings
    assert seen in findings[0]
    assert cure in findings[0]
    assert findings[0].startswith(f"stage 2, epoch {len(entries)}: ")


def test_a_healthy_run_has_no_findings_at_any_epoch() -> None:
    entries = healthy(10)
    for entry in entries:
        entry["epochs"] = 10
    assert [diagnose(entries[:n]) for n in range(11)] == [[]] * 11


def test_what_a_small_run_does_by_chance_is_no_finding() -> None:
    """Losses of a run over three batches an epoch, as recorded; it learns."""
    explicit = [3.365, 3.802, 2.911, 2.899, 2.481, 1.947, 2.007, 2.382, 1.816, 1.817]
    implicit = [1.359, 1.165, 0.940, 0.897, 0.872, 0.841, 0.811, 0.816, 0.758, 0.764]
    entries = [
        {"stage": "stage 2", "epoch": i + 1, "epochs": 10, "losses": {"explicit": e, "implicit": m}}
        for i, (e, m) in enumerate(zip(explicit, implicit, strict=True))
    ]
    for entry in entries:
        entry["chance"] = {"explicit": math.log(12), "implicit": 0.5 * math.log(8)}
    assert [diagnose(entries[: n + 1]) for n in range(10)] == [[]] * 10


@pytest.mark.parametrize(
    "harmless",
    [
        change(healthy(), "logit_scale", *[100.0] * 6),  # set there, as CLIP's is
        change(healthy(), "grad_norm.mean", 0.01, 0.01, 0.01, 0.01, 0.01, 0.5),  # below the norm of clipping
        change(healthy(), "implicit_share", 0.3, 0.1, 0.05, 0.01, 0.005, 0.001),  # TAC has learnt its texts
        change(healthy(), "views", {"plain": 0.08, "compensated": 0.01}),  # both views answer
        change(healthy(), "val.R@1", 45.0, 44.0, 43.5),  # within the noise
        change(healthy(), "val.R@1", 45.0, 42.0),  # one bad epoch
        change(change(healthy(), "val.R@1", 45.0, 42.0, 41.5), "train.R@1", 51.0),  # worse on both: not fitted too well
        change(change(healthy(4), "epochs", 4), "val.R@1", 36.5),  # more would bring nothing, whatever the loss does
        change(change(healthy(2), "epochs", 2), "losses.explicit", 1.0),  # two epochs tell no slope
        change(healthy(), "effective_rank.text", *[8.0] * 6),  # few texts
        change(healthy(), "losses.explicit", 3.3),  # one epoch a little worse
        change(healthy(), "losses.explicit", 2.0, 3.0, 2.0, 2.9, 2.9),  # up and down, as it was before
        change(healthy(), "effective_rank.text", 1.2),  # one batch of few texts
        change(change(healthy(), "views", {"compensated": 0.05}), "train.R@1", 60.0),  # both are learnt
    ],
)
def test_what_looks_alike_but_is_harmless_is_no_finding(harmless: list[Entry]) -> None:
    assert diagnose(harmless) == []


def test_over_fitting_shows_in_the_loss_where_train_recall_is_not_measured() -> None:
    entries = change(healthy(), "val.R@1", 45.0, 42.0, 41.5)
    for entry in entries:
        entry["train"] = None
    (finding,) = diagnose(entries)
    assert "the training loss fell from 2.84 to 1.86" in finding


def test_only_the_last_entry_counts_and_only_its_stage() -> None:
    before = [{**entry, "stage": "stage 1", "losses": {"explicit": 0.1}} for entry in healthy()]
    assert diagnose([*before, *healthy(1)]) == []  # another stage's loss is another loss
    sick = FAILURES["one direction"][0]
    assert diagnose([*sick, {**healthy(7)[-1]}]) == []


def test_any_field_may_be_missing_or_null() -> None:
    for name, (entries, seen, _) in FAILURES.items():
        for field in healthy(1)[0]:
            for hole in ({}, {field: None}):
                holed = [{**{k: v for k, v in entry.items() if k != field}, **hole} for entry in entries]
                for sentence in diagnose(holed):
                    assert isinstance(sentence, str)
        bare = [{"stage": "stage 2", "losses": entry["losses"]} for entry in entries]
        if name in ("not finite", "loss rises", "loss leaps"):
            assert any(seen in sentence for sentence in diagnose(bare))
    assert diagnose([]) == []
    assert diagnose([{}]) == []


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["mean", "explicit", "R@1"]), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from([*healthy(1)[0]]), anything, max_size=8), max_size=4))
def test_no_log_makes_it_fail(entries: list[Mapping[str, Any]]) -> None:
    assert all(isinstance(sentence, str) for sentence in diagnose(entries))


def spectrum_entropy(rows: np.ndarray) -> float:
    """Return exp of the entropy of the normalised singular values, by eigenvalues and a plain loop."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(unit.T @ unit), 0, None))
    total, entropy = values.sum(), 0.0
    for value in values:
        if value > 1e-9 * total:
            entropy -= value / total * math.log(value / total)
    return math.exp(entropy)


@pytest.mark.parametrize(("count", "width", "scale"), [(200, 12, 1.0), (7, 30, 5.0), (50, 50, 0.01)])
def test_effective_rank_is_its_formula(count: int, width: int, scale: float) -> None:
    rows = np.random.default_rng(count).normal(size=(count, width)) * np.linspace(0.1, scale, width)
    assert effective_rank(torch.from_numpy(rows)) == pytest.approx(spectrum_entropy(rows), rel=1e-3)


def test_effective_rank_at_its_limits() -> None:
    assert effective_rank(torch.eye(9)) == pytest.approx(9)
    assert effective_rank(torch.eye(9) * torch.arange(1, 10)) == pytest.approx(9)  # lengths don't count: cosines
    one = torch.randn(1, 64)
    assert effective_rank(one * torch.rand(40, 1)) == pytest.approx(1, abs=1e-4)
    collapsed = one + 1e-6 * torch.randn(40, 64)  # onto a point: what is left is rounding, and counts for nothing
    assert effective_rank(collapsed) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(4, 4)) == 0
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan]])))
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf]])))
    assert effective_rank(torch.randn(30, 8).half().requires_grad_()) > 6
