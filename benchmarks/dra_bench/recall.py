"""The same queries through PyTorch and through every artifact: recalls, and whose first answer changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.figures import cosine, recall_name
from dra_export.parity.artifacts import Artifact, bundle_artifact, emulated_artifact
from dra_export.parity.graphs import Difference
from dra_export.parity.limits import misses
from dra_export.parity.ranks import answer, compare_ranks
from dra_export.parity.reference import Reference
from dra_export.parity.verify import RUNTIME
from dra_runtime.console import progress, table
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, UsageError
from dra_train.data import BUILTIN
from dra_train.evaluate import describe

MOST_SHOWN = 5  #: queries with another first answer that are printed an artifact; the JSON has all
PYTORCH_ROW = "PyTorch"


@dataclass(frozen=True)
class Contender:
    """One artifact that answers the queries, under the name that `dra-bench latency` gives it too."""

    name: str  #: such as "onnxruntime-cpu int8" or "onnxruntime-cpu fp16, half emulated"
    bundle: str  #: its folder's name
    artifact: Artifact

    def identity(self) -> dict[str, Any]:
        """Return what it is, in plain values."""
        return {
            "artifact": self.name,
            "bundle": self.bundle,
            "bundle_id": self.artifact.bundle.bundle_id,
            "precision": self.artifact.precision,
            "backend": self.artifact.backend,
            "limits": asdict(self.artifact.limits),
        }


def open_artifacts(
    bundles: Sequence[Path], backends: Sequence[str], threads: int
) -> tuple[list[Encoder], list[dict[str, str]]]:
    """Open every bundle in every backend; returns the encoders, and what can't be had here with the reason.

    BackendError where a bundle, or a backend that was asked for, would be left out altogether.
    """
    encoders: list[Encoder] = []
    unavailable: list[dict[str, str]] = []
    failures: dict[tuple[Path, str], BackendError] = {}
    for bundle in bundles:
        for backend in backends:
            try:
                encoders.append(Encoder.open(bundle, backend, threads))
            except BackendError as error:
                failures[bundle, backend] = error
                # The result goes into files that others read: they have other folders
                reason = str(error).replace(str(bundle), bundle.name)
                unavailable.append({"bundle": bundle.resolve().name, "backend": backend, "reason": reason})
    for wanted in (*bundles, *backends):
        mine = [error for pair, error in failures.items() if wanted in pair]
        if mine and len(mine) == (len(backends) if wanted in bundles else len(bundles)):
            raise mine[0]
    return encoders, unavailable


def contenders_of(encoders: Sequence[Encoder]) -> list[Contender]:
    """Name the artifacts: each bundle as its users run it and, after an FP16 one on the CPU, its half arithmetic."""
    found = []
    for named in bundle_encoders(encoders):
        folder = named.encoder.bundle.path.resolve().name
        found.append(Contender(named.name, folder, bundle_artifact(named.encoder)))
        if emulated := emulated_artifact(named.encoder):
            found.append(Contender(f"{named.name}, {emulated.name}", folder, emulated))
    return found


def source_of(given: str) -> str:
    """Return how a data set was given, without its folder: ``builtin``, or a name that tells which one to give."""
    return BUILTIN if given in ("builtin", BUILTIN) else Path(given).resolve().name


def datasets_and_splits(given: Sequence[str], splits: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """Read ``PATH`` or ``PATH=SPLIT,SPLIT``: which splits of which data set; without ``=`` those of ``splits``."""
    pairs = []
    for word in given:
        path, equals, own = word.rpartition("=")
        if not equals or Path(word).exists():
            pairs.append((word, tuple(splits)))
            continue
        named = tuple(part.strip() for part in own.split(","))
        if not path or not all(named):
            raise UsageError(f"--dataset {word!r} names no split behind '='; write PATH or PATH=SPLIT,SPLIT")
        pairs.append((path, named))
    return pairs


def compare_split(
    reference: Reference, contender: Contender, source: str, tolerance: float | None = None
) -> dict[str, Any]:
    """Answer a split's queries with an artifact, from image files and texts, and compare with PyTorch's answers.

    Judged by the limits that `dra-export verify` has for its precision; with ``tolerance``, by nothing else than that
    no recall differs by more percentage points. An artifact whose vectors can't be ranked has no recall and is wanting.
    """
    artifact, composed = contender.artifact, Difference()
    with progress(len(reference.names) + len(reference.queries), contender.name) as advance:
        answers = answer(reference, artifact.open, advance)
    composed.add(answers.composed, reference.composed)
    compared = compare_ranks(reference, answers) if answers.is_finite else None
    if tolerance is None or compared is None:
        missed = misses(artifact.limits, {RUNTIME: composed}, compared)
    else:
        missed = beyond(compared["reference"], compared["candidate"], tolerance)
    if compared is None:
        missed.append("recall: not measured, since there are NaN, infinite or zero vectors")
    return {
        **describe(reference.dataset),
        "source": source,
        **contender.identity(),
        "passed": not missed,
        "missed": missed,
        "cosine": composed.to_dict(),
        **(compared or _unranked(reference)),
    }


def beyond(reference: Mapping[str, float], candidate: Mapping[str, float], tolerance: float) -> list[str]:
    """Return a line for every recall that differs by more than ``tolerance`` percentage points."""
    # Recalls are rounded to hundredths: what is left of the difference below that is the float's own.
    return [
        f"{k}: {candidate[k]:.2f} % where PyTorch has {was:.2f} %, more than {tolerance:g} points apart"
        for k, was in reference.items()
        if round(abs(was - candidate[k]), 6) > tolerance
    ]


def artifact_verdicts(splits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Judge each artifact over all splits: it passed where it passed in all of them; a line for each miss."""
    verdicts: dict[str, dict[str, Any]] = {}
    for split in splits:
        identity = {key: split[key] for key in ("artifact", "bundle", "bundle_id", "precision", "backend", "limits")}
        verdict = verdicts.setdefault(split["artifact"], {**identity, "passed": True, "missed": []})
        verdict["passed"] = verdict["passed"] and split["passed"]
        verdict["missed"] += [f"{split_title(split)}: {line}" for line in split["missed"]]
    return list(verdicts.values())


def split_title(split: Mapping[str, Any]) -> str:
    """Name data set, category and split."""
    return " / ".join(part for part in (split["dataset"], split.get("category"), split["split"]) if part)


RECALL_HEADER = ("split", "model", "queries")


def recall_cells(splits: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Write the recalls of each split as text: a row for PyTorch, then one an artifact."""
    rows = []
    for title, compared in groupby(splits, key=split_title):
        several = list(compared)
        sides = [(PYTORCH_ROW, several[0]["reference"])]
        sides += [(split.get("artifact", "bundle"), split["candidate"]) for split in several]
        queries = str(several[0]["queries"])
        rows += [
            (title, name, queries, *(f"{recalls[c]:.2f}" if c in recalls else "" for c in columns))
            for name, recalls in sides
        ]
    return rows


def recall_report(splits: Sequence[Mapping[str, Any]]) -> str:
    """Lay a comparison out for people: recalls, overlap, and the queries whose first answer changed."""
    columns = list(dict.fromkeys(k for split in splits for k in split["reference"]))
    kinds = " and ".join(dict.fromkeys(recall_name(split["dataset"]) for split in splits))
    parts = [f"{kinds}s in %".capitalize(), table([*RECALL_HEADER, *columns], recall_cells(splits, columns))]
    parts += ["\n".join(lines) for split in splits if (lines := list(_changes(split)))]
    return "\n\n".join(parts)


def verdict_lines(artifacts: Sequence[Mapping[str, Any]], tolerance: float | None) -> Iterator[str]:
    """Say of each artifact whether it passed, by what it was judged, and what it missed."""
    for found in artifacts:
        limits = found["limits"]
        judged = [f"cosine at least {limits['min_cosine']}"] if limits["min_cosine"] is not None else []
        points = limits["recall_points"]
        judged.append(f"recall {'equal' if points == 0 else f'at most {points:g} points lower'}")
        judged += [f"{limits['top10_overlap']:g} % of the first ten"] if limits["top10_overlap"] is not None else []
        by = ", ".join(judged) if tolerance is None else f"recall within {tolerance:g} points"
        state = "passed" if found["passed"] else "FAILED"
        yield f"{found['artifact']} ({found['bundle']}): {state} ({by})"
        yield from (f"  {line}" for line in found["missed"])


def _changes(split: Mapping[str, Any]) -> Iterator[str]:
    changed = split["changed"]
    lost, won = (sum(c[side] == c["target"] for c in changed) for side in ("was", "is"))
    yield (
        f"{split_title(split)}, {split.get('artifact', 'bundle')}: "
        f"{split['top10_overlap']:.2f} % of the 10 best answers are the same; "
        f"the first answer changed for {split['changed_queries']} of {split['queries']} queries"
        + (f" ({lost} were right before, {won} are now)" if changed else "")
        + (f"; smallest cosine of a query {cosine(split['cosine']['min_cosine'])}" if "cosine" in split else "")
    )
    # repr: a text or a name from a data set may hold anything, terminal commands too
    for c in changed[:MOST_SHOWN]:
        yield (
            f"  query {c['id']}: {c['reference']!r} + {c['text']!r}: {c['was']!r} -> {c['is']!r} "
            f"(right: {c['target']!r})"
        )
    if len(changed) > MOST_SHOWN:
        yield f"  and {len(changed) - MOST_SHOWN} more: the JSON has all"


def _unranked(reference: Reference) -> dict[str, Any]:
    """Return the keys of `compare_ranks` for an artifact that finds nothing, because its vectors aren't finite."""
    queries = len(reference.queries)
    return {
        "reference": {},
        "candidate": {},
        "ranks": None,
        "changed_queries": queries,
        "top10_overlap": 0.0,
        "queries": queries,
        "changed": [],
    }
