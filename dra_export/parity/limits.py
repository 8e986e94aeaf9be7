"""How far an artifact may be from PyTorch float32, by its precision: docs/verify.md gives the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dra_export.parity.graphs import Difference
from dra_runtime.manifest import Manifest


@dataclass(frozen=True)
class Limits:
    """What an artifact must hold; None: shown, not judged."""

    min_cosine: float | None
    recall_points: float  #: how many percentage points any recall may be lower; 0: none may differ at all
    top10_overlap: float | None  #: in percent

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the JSON."""
        recall = "equal" if self.recall_points == 0 else f"at most {self.recall_points:g} points lower"
        return {"min_cosine": self.min_cosine, "recall": recall, "top10_overlap": self.top10_overlap}

    def words(self, with_recall: bool) -> str:
        """Return what is judged as text; without recalls, what is left of it."""
        judged = []
        if self.min_cosine is not None:
            judged.append(f"smallest cosine at least {self.min_cosine}")
        if with_recall:
            judged.append(f"recall {self.to_dict()['recall']} at every K")
        if with_recall and self.top10_overlap is not None:
            judged.append(f"at least {self.top10_overlap:g} % of the first ten in common")
        return ", ".join(judged)


LIMITS = {"fp32": Limits(0.99999, 0.0, None), "fp16": Limits(0.999, 0.1, 99.0)}
DEFAULT_RECALL_LOSS = 0.5  #: points, of an INT8 bundle that states none


def limits_of(manifest: Manifest) -> Limits:
    """Return what a bundle must hold: INT8 the limit that it was made for, the others what `LIMITS` says."""
    if manifest.precision != "int8":
        return LIMITS[manifest.precision]
    made = manifest.provenance.get("int8")
    loss = made.get("max_recall_loss") if isinstance(made, Mapping) else None
    given = isinstance(loss, int | float) and not isinstance(loss, bool) and loss >= 0
    return Limits(None, float(loss) if given else DEFAULT_RECALL_LOSS, None)  # type: ignore[arg-type]


def misses(limits: Limits, graphs: Mapping[str, Difference], recall: Mapping[str, Any] | None) -> list[str]:
    """Return a line for every threshold that was missed, naming graph or metric; none when all hold."""
    found = []
    for name, difference in graphs.items():
        if difference.failed:
            found.append(f"{name}: {difference.failed}")
        elif difference.not_finite:
            found.append(f"{name}: {difference.not_finite} of {difference.pairs} vectors hold NaN or infinity")
        elif limits.min_cosine is not None and difference.min_cosine < limits.min_cosine:
            found.append(f"{name}: smallest cosine {difference.min_cosine:.6f}, below {limits.min_cosine}")
    if recall is None:
        return found
    for name, was in recall["reference"].items():
        now = recall["candidate"][name]
        change = round(now - was, 6)  # recalls have two decimals; what lies below is the subtraction's own
        # A gain is chance among near ties, and no loss; where no recall may differ, it is a difference all the same
        if -change > limits.recall_points or (limits.recall_points == 0 and change):
            allowed = "" if limits.recall_points == 0 else f", more than {limits.recall_points:g} points lower"
            found.append(f"{name}: {now:.2f} % where PyTorch has {was:.2f} %{allowed}")
    if limits.top10_overlap is not None and recall["top10_overlap"] < limits.top10_overlap:
        found.append(f"first ten in common: {recall['top10_overlap']:.2f} %, below {limits.top10_overlap:g} %")
    return found
