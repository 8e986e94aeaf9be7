"""The queries that a report shows: drawn by rule, answered without their references."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_bench.shown import answer, choose
from dra_train.data import Dataset, Query


def queries(*edits):
    return [Query(i, "a", f"text {i}", "c", (), edit) for i, edit in enumerate(edits)]


def test_kinds_of_edit_are_shown_about_as_often_as_they_occur():
    edits = ["tone"] * 600 + ["hair"] * 250 + ["role"] * 150
    shown = Counter(q.edit for q in choose(queries(*edits), 20, seed=0))
    assert shown == {"tone": 12, "hair": 5, "role": 3}


def test_the_draw_depends_on_the_seed_alone():
    row = queries(*["tone", "hair"] * 200)
    assert choose(row, 8, 0) == choose(row, 8, 0)
    assert choose(row, 8, 0) != choose(row, 8, 1)


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 99))
def test_a_draw_never_repeats_a_query(edits, count, seed):
    shown = choose(queries(*edits), count, seed)
    assert len({q.id for q in shown}) == len(shown) == min(count, len(edits))


def test_every_query_can_be_drawn():
    row = queries(*["tone"] * 9 + ["hair"] * 3)
    drawn = {q.id for seed in range(80) for q in choose(row, 2, seed)}
    assert drawn == set(range(12))


def test_answers_leave_the_reference_out_and_know_the_targets_rank():
    dataset = Dataset("d", "val", (), {n: Path(n) for n in "abcdefgh"})
    query = Query(1, reference="b", text="t", target="g", group=())
    (shown,) = answer([query], dataset, lambda q: ["b", "a", "c", "d", "e", "f", "g", "h"])
    assert [p.name for p in shown.answers] == ["a", "c", "d", "e", "f"]
    assert shown.rank == 6
    assert not shown.is_first


def test_a_first_answer_counts_as_first_even_behind_the_reference():
    dataset = Dataset("d", "val", (), {n: Path(n) for n in "abc"})
    (shown,) = answer([Query(1, "b", "t", "c", ())], dataset, lambda q: ["b", "c", "a"])
    assert shown.is_first


@pytest.mark.parametrize("count", [1, 8, 33])
def test_the_number_asked_for_is_shown(count):
    assert len(choose(queries(*["tone"] * 33), count, 0)) == count


def test_the_draw_starts_anywhere_so_no_kind_always_comes_first():
    row = queries(*["hair"] * 5 + ["tone"] * 5)
    assert {choose(row, 1, seed)[0].edit for seed in range(20)} == {"hair", "tone"}
