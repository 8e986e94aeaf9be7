"""Compare a bundle on disk with PyTorch float32: every graph, the whole query, ranks and recall (docs/verify.md)."""

from __future__ import annotations

from typing import Any

from dra_export.parity.artifacts import (
    Artifact,
    bundle_artifact,
    emulated_artifact,
    engine_artifact,
    engines_of,
)
from dra_export.parity.graphs import BATCH_SIZES, Difference, compare_graphs, steps
from dra_export.parity.limits import misses
from dra_export.parity.ranks import answer, compare_ranks
from dra_export.parity.reference import Reference, reference_from_model
from dra_runtime.backends.engines import ENGINES
from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError, BundleError, EngineError
from dra_runtime.preprocess import Preprocess
from dra_train.data import Dataset
from dra_train.model import DRA

RUNTIME = "encode_queries"  #: the runtime's own way from files and texts to queries, listed beside the graphs

_CPU_HALF = (
    "ONNX Runtime's CPU computes half graphs in float32 and rounds nothing but the weights: its run shows what a CPU "
    "answers, not what half arithmetic does; 'half emulated' rounds every half value where it is made"
)
_INT8_UNJUDGED = "an INT8 bundle is judged by recall, which --pairs leaves out: these cosines passed no threshold"


def verify(model: DRA, encoder: Encoder, dataset: Dataset, pairs: int | None = None) -> dict[str, Any]:
    """Compare a bundle with its model on real image-text pairs; see `verify_bundle`.

    With ``pairs``, that many queries spread over the split are compared graph by graph; without, all of them, and ranks
    and recalls of the whole split as well.
    """
    return verify_bundle(reference_from_model(model, dataset, pairs), encoder, model.preprocess)


def verify_bundle(reference: Reference, encoder: Encoder, preprocess: Preprocess) -> dict[str, Any]:
    """Compare a bundle, and everything else that runs its graphs, with a reference.

    Returns the bundle's own ``passed``, ``missed`` (a line a threshold), ``graphs``, ``recall`` (None unless the whole
    split was compared) and what they were measured on; ``variants`` holds the same for its half graphs emulated and
    for its engines, and ``notes`` what was not run, and why. ``passed`` holds for all of them.
    """
    artifact = bundle_artifact(encoder)
    own = compare(reference, artifact, preprocess)
    missed, variants, notes = list(own["missed"]), [], []
    if artifact.precision == "int8" and not reference.is_whole_split:
        notes.append(_INT8_UNJUDGED)
    if emulated := emulated_artifact(encoder):
        variants.append({"name": emulated.name, **compare(reference, emulated, preprocess)})
        notes.append(_CPU_HALF)
    engines = engines_of(encoder)
    missed += engines.broken
    path = encoder.bundle.path.resolve()
    # The result goes into files that others read: they have other folders
    notes += [f"not run: {line}".replace(str(path), path.name) for line in engines.not_run]
    for key, plans in engines.usable.items():
        try:
            engine = engine_artifact(encoder, key, plans)
        except BackendError as error:
            notes.append(f"not run: {path.name}/{ENGINES}/{key}: {error}")
        except EngineError as error:
            missed.append(str(error))
        else:
            variants.append({"name": engine.name, **compare(reference, engine, preprocess)})
    return {
        "passed": not missed and all(variant["passed"] for variant in variants),
        "name": encoder.bundle.path.resolve().name,
        "dataset": reference.dataset.name,
        "split": reference.dataset.split,
        "queries": len(reference.queries),
        "bundle_id": encoder.bundle_id,
        "batch_sizes": list(BATCH_SIZES),
        **{key: value for key, value in own.items() if key not in ("passed", "missed")},
        "missed": missed,
        "variants": variants,
        "notes": notes,
    }


def compare(reference: Reference, artifact: Artifact, preprocess: Preprocess) -> dict[str, Any]:
    """Compare one artifact with a reference: its graphs and, of a whole split, its ranks and recalls.

    ``recall`` is None where it wasn't measured: of some pairs only, without all graphs, or when vectors aren't finite,
    which is a miss.
    """
    recall = None
    total = steps(reference, artifact.graphs) + len(reference.names) + len(reference.queries)
    with progress(total, f"comparing {artifact.name or artifact.precision}") as advance:
        graphs = compare_graphs(reference, artifact.open, artifact.graphs, preprocess, advance)
        if artifact.answers_queries:
            graphs[RUNTIME] = Difference()
            try:
                answers = answer(reference, artifact.open, advance)
                graphs[RUNTIME].add(answers.composed, reference.composed)
                if reference.is_whole_split and answers.is_finite:
                    recall = compare_ranks(reference, answers)
            except BackendError as error:
                graphs[RUNTIME].failed = str(error)
    missed = misses(artifact.limits, graphs, recall)
    if artifact.answers_queries and reference.is_whole_split and recall is None:
        missed.append("recall: not measured, since graphs fail or give NaN, infinite or zero vectors")
    return {
        "passed": not missed,
        "missed": missed,
        "precision": artifact.precision,
        "backend": artifact.backend,
        "threshold": artifact.limits.to_dict(),
        "judged": artifact.limits.words(recall is not None),
        "graphs": {name: graph.to_dict() for name, graph in graphs.items()},
        "recall": recall,
    }


def compare_recall(model: DRA, encoder: Encoder, dataset: Dataset) -> dict[str, Any]:
    """Answer every query of a split with PyTorch and with the runtime, from image files and texts to ranks.

    Returns the recalls of both, how far ranks moved, whose first answer changed, and the overlap of the first ten.
    BundleError when the runtime's vectors aren't finite.
    """
    reference = reference_from_model(model, dataset)
    with progress(len(reference.names) + len(reference.queries), "runtime: images, queries") as advance:
        answers = answer(reference, lambda *_: encoder, advance)
    if not answers.is_finite:
        raise BundleError(
            f"{encoder.bundle.path} gives NaN, infinite or zero vectors, which can't be ranked; dra-export verify says "
            "which graph does"
        )
    return compare_ranks(reference, answers)
