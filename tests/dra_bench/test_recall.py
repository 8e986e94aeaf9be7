"""Recall beside recall, and whose first answer changed."""

from dra_bench.recall import recall_report, within


def split(**values):
    recalls = {"R@1": 45.0, "R@5": 74.1}
    values = {"dataset": "d", "split": "val", "queries": 50, "reference": recalls, "candidate": recalls, **values}
    return {"top10_overlap": 100.0, "changed_queries": 0, "changed": [], **values}


def test_a_recall_may_differ_by_the_tolerance_and_no_more():
    assert within({"R@1": 45.0, "R@5": 74.1}, {"R@1": 45.0, "R@5": 74.1}, 0.0)
    assert not within({"R@1": 45.0, "R@5": 74.1}, {"R@1": 45.0, "R@5": 74.04}, 0.0)  # one query of 1660
    assert within({"R@1": 45.0}, {"R@1": 44.94}, 0.06)
    assert within({"R@1": 44.94}, {"R@1": 45.0}, 0.06)  # better is different as well
    assert not within({"R@1": 45.0}, {"R@1": 44.94}, 0.05)


def test_both_recalls_stand_below_each_other():
    lines = recall_report([split(candidate={"R@1": 44.0, "R@5": 74.1})]).splitlines()
    assert lines[2].split() == ["|", "d", "/", "val", "|", "PyTorch", "|", "50", "|", "45.0", "|", "74.1", "|"]
    assert lines[3].split() == ["|", "d", "/", "val", "|", "bundle", "|", "50", "|", "44.0", "|", "74.1", "|"]
    assert "val (recalls in %): 100.00 % of the 10 best answers are the same" in lines[4]


def test_demo_recalls_are_called_that():
    assert "(demo recalls in %)" in recall_report([split(dataset="emoji_cir")])


def test_changed_answers_are_listed_without_obeying_their_texts():
    changed = {"id": 3, "text": "\x1b[31mred", "reference": "a", "target": "b", "was": "b", "is": "c\n"}
    report = recall_report([split(changed=[changed], changed_queries=1)])
    assert "query 3: 'a' + '\\x1b[31mred': 'b' -> 'c\\n' (right: 'b')" in report
    assert "changed for 1 of 50 queries" in report
