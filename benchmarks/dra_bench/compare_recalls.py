"""Two results of dra-bench recall: which artifact's recall is another than before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dra_bench.recall import PYTORCH_ROW, split_title
from dra_runtime.console import table

Key = tuple[str, str]  #: split and artifact


@dataclass(frozen=True)
class RecallChange:
    """One artifact's recalls of one split in two runs."""

    split: str
    artifact: str
    queries: int
    a: Mapping[str, float]
    b: Mapping[str, float]
    points: float  #: how many points a recall may be lower in b
    changed: tuple[int, int]  #: queries whose first answer isn't PyTorch's, in a and in b

    @property
    def worst(self) -> str:
        """Return the metric that lost most, or gained least."""
        return min(self.a, key=lambda k: self.b[k] - self.a[k])

    @property
    def loss(self) -> float:
        """Return by how many points that is lower; negative for a gain."""
        return round(self.a[self.worst] - self.b[self.worst], 6)

    @property
    def failed(self) -> bool:
        """Tell whether it lost more than it may."""
        return self.loss > self.points


def compare_recalls(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[RecallChange], list[Key], list[Key]]:
    """Compare the recalls of every split and artifact that both have; returns also what only one of them has.

    A recall may be lower by the points that `dra-export verify` allows the artifact's precision. Recalls of one
    checkpoint have no noise: the same files on the same processor give the same answers.
    """
    before, after = _recalls(a), _recalls(b)
    changes = []
    for key, first in before.items():
        second = after.get(key)
        if second is None or set(first["candidate"]) != set(second["candidate"]) or not first["candidate"]:
            continue
        points = float(first.get("limits", {}).get("recall_points", 0.0))
        changed = (first["changed_queries"], second["changed_queries"])
        changes.append(RecallChange(*key, first["queries"], first["candidate"], second["candidate"], points, changed))
    compared = {(c.split, c.artifact) for c in changes}
    return changes, [k for k in before if k not in compared], [k for k in after if k not in compared]


def _recalls(result: Mapping[str, Any]) -> dict[Key, Mapping[str, Any]]:
    found: dict[Key, Mapping[str, Any]] = {}
    for split in result["splits"]:
        title = split_title(split)
        pytorch = {"candidate": split["reference"], "queries": split["queries"], "changed_queries": 0}
        found.setdefault((title, PYTORCH_ROW), pytorch)
        found[title, split.get("artifact", "bundle")] = split
    return found


def recall_verdict(changes: list[RecallChange]) -> list[str]:
    """Say whose recall is lower than it may be, by name, or that nobody's is."""
    if not changes:
        return ["nothing to judge: the two runs have no split and artifact in common"]
    failed = [c for c in changes if c.failed]
    lines = [
        f"LOWER: {c.artifact} on {c.split}: {c.worst} {c.a[c.worst]:.2f} % before, {c.b[c.worst]:.2f} % now, "
        f"{_queries(c)} of {c.queries} queries (allowed: {c.points:g} points)"
        for c in failed
    ]
    worst = max(changes, key=lambda c: c.loss)
    if worst.loss <= 0:
        return lines or ["no recall is lower than before"]
    what = f"{worst.loss:.2f} points, {worst.worst} of {worst.artifact} on {worst.split}"
    return lines or [f"no recall is lower than its limit allows; the largest loss: {what}"]


def _queries(change: RecallChange) -> int:
    return round(change.loss * change.queries / 100)


def recall_changes_table(changes: list[RecallChange]) -> str:
    """Lay out every recall that is compared: before, now, and the largest loss."""
    columns = list(dict.fromkeys(k for c in changes for k in c.a))
    rows = [
        (
            c.split,
            c.artifact,
            *(_both(c.a[k], c.b[k]) if k in c.a else "" for k in columns),
            f"{c.changed[0]} → {c.changed[1]}",
            "LOWER" if c.failed else "",
        )
        for c in changes
    ]
    return table(("split", "model", *columns, "first answers not PyTorch's", "verdict"), rows)


def _both(a: float, b: float) -> str:
    return f"{a:.2f}" if a == b else f"{a:.2f} → {b:.2f}"


def recall_changes_to_dict(changes: list[RecallChange], only_a: list[Key], only_b: list[Key]) -> dict[str, Any]:
    """Return plain values for the JSON."""
    return {
        "passed": not any(c.failed for c in changes),
        "verdict": recall_verdict(changes),
        "changes": [
            {
                "split": c.split,
                "artifact": c.artifact,
                "queries": c.queries,
                "a": dict(c.a),
                "b": dict(c.b),
                "allowed_points": c.points,
                "largest_loss": c.loss,
                "changed_queries": list(c.changed),
                "failed": c.failed,
            }
            for c in changes
        ],
        "only_in_a": [list(key) for key in only_a],
        "only_in_b": [list(key) for key in only_b],
    }
