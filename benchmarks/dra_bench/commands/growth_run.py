"""Run the measurements behind dra-bench growth, curve by curve."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dra_bench.commands.common import progress_of, run_in_turns, timed_in_turns
from dra_bench.contenders.backend import Floats
from dra_bench.fresh import Probe, raw
from dra_bench.gallery_cache import EXACT, KINDS, Collection, cached_gallery, held_out_queries
from dra_bench.gallery_search import NAMES
from dra_bench.growth import Curve, Gap, Name, Step, affordable, gaps, raw_samples, unextended
from dra_bench.growth_galleries import (
    BEYOND,
    CACHED,
    Key,
    available_memory,
    chosen_sizes,
    gallery_steps,
    memory_curves,
    search_curves,
)
from dra_bench.mixed_vectors import lifted, real_vectors
from dra_bench.timing import Timings
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.gallery import Gallery

QUERIES = 500
PROBE_QUERIES = 20
NO_MEMORY = "all galleries would fill more than half of the free memory, so that the disk would be measured"


@dataclass
class Found:
    """What is collected, curve by curve."""

    curves: list[Curve] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    runs: dict[str, Any] = field(default_factory=dict)
    warmup: dict[str, Any] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)  #: percent of the CPUs that other programs used


@dataclass(frozen=True)
class Span:
    """What one curve may take."""

    samples: int | None
    seconds: float


@dataclass(frozen=True)
class GalleryPlan:
    """Which galleries are measured, and where they lie."""

    bundle: Path
    features: Path | None  #: None: those of the bundle
    cache: Path
    sizes: Sequence[int]
    runs: int
    seed: int


def run_timed(
    found: Found,
    name: Name,
    steps: Sequence[Step],
    span: Span,
    curves: Callable[[Sequence[Step], Timings], list[Curve]],
) -> None:
    """Time the steps that fit into the time, in turns, and make their curves."""
    kept, dropped = affordable(steps, span.samples, span.seconds)
    if not kept:
        found.gaps += gaps(name, dropped, [])
        return
    timings, others = timed_in_turns([step.cell for step in kept], span.samples, span.seconds, f"by {name}")
    made = curves(kept, timings)
    found.curves += made
    found.gaps += gaps(name, dropped, made)
    found.samples += raw_samples(name, kept, timings)
    found.warmup[name] = {"rounds": timings.warmup_rounds, "steady": timings.steady}
    found.others += [others] if others is not None else []


def run_galleries(
    found: Found, encoder: Encoder, plan: GalleryPlan, chosen: Sequence[Name], span: Span | None
) -> dict[str, str] | None:
    """Make the galleries and measure searching and memory, as chosen.

    Returns
    -------
    dict or None
        Which backend isn't available, and why; None where all are.
    """
    installed = importlib.util.find_spec("faiss") is not None
    variants = (*EXACT, *(KINDS if installed else ()))
    source = encoder if plan.features is None else Encoder.open(plan.features, threads=encoder.threads)
    if source.dim > encoder.dim:
        raise UsageError(
            f"--features has {source.dim} columns, more than the bundle's {encoder.dim}; give a narrower one"
        )
    real = lifted(real_vectors(source, plan.cache), encoder.dim, plan.seed)
    collections = {
        items: Collection(encoder, real, source.dim, source.bundle_id, items, plan.seed, plan.cache)
        for items in sorted({*plan.sizes, *CACHED})
    }
    keys, too_large = chosen_sizes(plan.sizes, variants, collections, available_memory())
    for items, variant in too_large:
        found.gaps += [Gap(n, n, NAMES[variant], (items,), NO_MEMORY) for n in chosen if n in ("search", "memory")]
    paths = {}
    for items, variant in keys:
        with progress_of(f"{items:,}, {NAMES[variant]}") as advance:
            paths[items, variant] = cached_gallery(collections[items], variant, advance)
    queries = held_out_queries(next(iter(collections.values())), QUERIES)
    if span is not None:
        galleries = {key: Gallery.open(path, encoder, "size") for key, path in paths.items()}
        run_timed(found, "search", gallery_steps(galleries, queries), span, search_curves)
        del galleries
    if "memory" in chosen:
        _memory(found, encoder, plan, paths, queries, collections)
    known = {NAMES[variant] for variant in EXACT}  # their memory has a formula
    fitting = [c for c in found.curves if c.curve == "search" or (c.curve == "memory" and c.backend not in known)]
    found.gaps += unextended(fitting, BEYOND)
    found.runs["vectors"] = next(iter(collections.values())).recipe
    reason = 'faiss isn\'t installed; pip install "dra-toolkit[gallery]"'
    return None if installed else {"backend": ", ".join(NAMES[kind] for kind in KINDS), "reason": reason}


def _memory(
    found: Found,
    encoder: Encoder,
    plan: GalleryPlan,
    paths: Mapping[Key, Path],
    queries: Floats,
    collections: Mapping[int, Collection],
) -> None:
    """Search every gallery in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "queries.npy"
        np.save(file, queries[: PROBE_QUERIES + 1])
        names = {f"{items:,} items, {NAMES[variant]}": (items, variant) for items, variant in paths}
        probes = [
            Probe(name, "gallery", (plan.bundle.resolve(), paths[key].resolve(), file, encoder.threads))
            for name, key in names.items()
        ]
        stages, others = run_in_turns(probes, plan.runs, "memory, fresh processes")
    found.curves += memory_curves({names[name]: runs for name, runs in stages.items()}, collections)
    found.runs["processes"] = {name: raw(runs) for name, runs in stages.items()}
    found.others += [others] if others is not None else []
