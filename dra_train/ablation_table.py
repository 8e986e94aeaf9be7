"""What a study of variants says: means over seeds, differences by seed, intervals over queries, and both in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_runtime.console import table

RESAMPLES = 2000  #: of the bootstrap
LEVEL = 95  #: percent of the interval
SHOWN = ("R@1", "R@5", "R@10", "R@50", "mAP@5", "mAP@10", "Rsubset@1", "mean")  #: metrics in the table, where measured
IMPLICIT = ("pair to text R@1", "pair to text R@10", "text to pair R@1")
NO_DIFFERENCE, DISAGREE = "no difference seen", "the seeds disagree"

Runs = Sequence[Mapping[str, Any]]  #: results of `dra_train.ablate.run_task`, one a seed


def compare(variant: Runs, base: Runs, split: str) -> dict[str, Any] | None:
    """Compare a variant with the base on one split, by the seeds that both have; None without any.

    The metric is the recall at the K of the split's protocol, in points. ``interval`` is a paired bootstrap over
    queries of the difference's mean over the seeds: it says how far other queries of this kind might move the
    difference, and nothing about other seeds, for which the spread of ``by_seed`` stands.
    """
    ours, theirs = ({run["seed"]: run["splits"][split] for run in runs} for runs in (variant, base))
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    k = int(ours[seeds[0]]["hit_at"])
    hits = np.array([_hits(ours[s], k) - _hits(theirs[s], k) for s in seeds])  # (S, Q): -1, 0 or 1
    by_seed = (100 * hits.mean(axis=1)).tolist()
    low, high = bootstrap_interval(hits.mean(axis=0))
    return {
        "metric": f"R@{k}",
        "seeds": seeds,
        "by_seed": [round(value, 2) for value in by_seed],
        "mean": round(mean(by_seed), 2),
        "sd": round(stdev(by_seed), 2) if len(by_seed) > 1 else None,
        "interval": [round(low, 2), round(high, 2)],
        "verdict": verdict(by_seed, low, high),
    }


def bootstrap_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile interval, in points, of the mean of paired differences (Q,), by resampling queries."""
    random = np.random.default_rng(0)  # the same study gives the same table
    count = len(differences)
    means = [100 * differences[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def verdict(by_seed: Sequence[float], low: float, high: float) -> str:
    """Say a comparison in words."""
    if low <= 0 <= high:
        return NO_DIFFERENCE
    if min(by_seed) < 0 < max(by_seed):
        return DISAGREE
    return "better" if low > 0 else "worse"


def study_markdown(study: Mapping[str, Any]) -> str:
    """Lay out a study (the content of ablation.json) as Markdown: a section a split, then what it can't say."""
    parts = []
    for split in study["splits"]:
        runs = study["variants"][0]["runs"]
        if not runs:
            continue
        about = runs[0]["splits"][split]["about"]
        parts += [
            f"### {split}",
            f"{about['queries']} queries, {about['gallery']} images; {about['protocol']}. In %, mean ± standard "
            f"deviation over seeds; the difference is to “{study['base']}”, by seed, with its {LEVEL} % "
            "interval over queries.",
            recall_table(study, split),
            says(study, split),
        ]
        if measured := implicit_table(study, split):
            parts += [
                "How well the implicit relation is learnt, by the pair's own F_v (TAC isn't used to answer queries):",
                measured,
            ]
    return "\n\n".join([*parts, "What was changed:", what_list(study), cannot_say(study)])


def recall_table(study: Mapping[str, Any], split: str) -> str:
    """Return a row a variant: recalls, difference to the base, and the verdict."""
    metrics = study["variants"][0]["runs"][0]["splits"][split]["metrics"]
    shown = [name for name in SHOWN if name in metrics]
    rows = []
    for variant in study["variants"]:
        values = [run["splits"][split]["metrics"] for run in variant["runs"]]
        cells = [spread([v[name] for v in values]) for name in shown]
        rows.append([variant["name"], len(values), *cells, *_difference(variant["differences"].get(split))])
    k = study["variants"][0]["runs"][0]["splits"][split]["hit_at"]
    return table(["variant", "seeds", *shown, f"R@{k} against base (seeds)", "interval", "so"], rows)


def implicit_table(study: Mapping[str, Any], split: str) -> str:
    """Return a row a variant with TAC: recalls between pairs and texts; "" without any."""
    rows, texts = [], 0.0
    for variant in study["variants"]:
        values = [run["splits"][split]["implicit"] for run in variant["runs"]]
        if values and all(values):
            rows.append([variant["name"], *(spread([v[name] for v in values]) for name in IMPLICIT)])
            texts = values[0]["texts"]
    return table([f"variant (of {texts:.0f} distinct texts)", *IMPLICIT], rows) if rows else ""


def what_list(study: Mapping[str, Any]) -> str:
    """Return a line a variant: what is different, and its settings."""
    lines = []
    for variant in study["variants"]:
        settings = " ".join(f"`{override}`" for override in variant["overrides"])
        lines.append(f"- **{variant['name']}**: {variant['what']}{f' ({settings})' if settings else ''}")
    return "\n".join(lines)


def says(study: Mapping[str, Any], split: str) -> str:
    """Say in words which variants differ from the base."""
    found: dict[str, list[str]] = {}
    for variant in study["variants"]:
        if difference := variant["differences"].get(split):
            name = f"{variant['name']} ({difference['mean']:+.1f})"
            found.setdefault(difference["verdict"], []).append(name)
    if not found:
        return "Only the base was run: there is nothing to compare."
    metric = next(v["differences"][split]["metric"] for v in study["variants"] if split in v["differences"])
    said = [f"What it says, by {metric} on {split} against “{study['base']}”:"]
    for word in ("better", "worse", DISAGREE, NO_DIFFERENCE):
        if word in found:
            said.append(f"{word}: {', '.join(found[word])}.")
    return " ".join(said)


def cannot_say(study: Mapping[str, Any]) -> str:
    """Say what the study leaves open, from what it was run on."""
    e = study["environment"]
    seeds = len(study["seeds"])
    comparisons = sum(len(v["differences"]) for v in study["variants"])
    said = [
        "What it can't say: an interval is over queries and "
        + (f"takes the {seeds} seeds as they are" if seeds > 1 else "says nothing about other seeds than the one")
        + "; queries that share a concept aren't independent, so the true ones are wider.",
        f"Of {comparisons} comparisons about {comparisons * (100 - LEVEL) / 100:.1f} would differ by chance alone."
        if comparisons
        else "",
        "Texts that say the same in other words count as different in the implicit recalls: they are lower bounds.",
        "“No difference seen” isn't “no difference”: the interval says how large a one may hide.",
        "Everything else, learning rates included, was tuned for the base and stays as it is.",
        f"Backbone {study['settings']['model']['backbone']} on {study['dataset']}: other data may say otherwise.",
    ]
    if (chosen := study["settings"]["validation"]["split"]) in study["splits"]:
        said.append(f"The best epoch was chosen on {chosen}, so the recalls there flatter, all variants' alike.")
    if any(v["name"] == "implicit only" for v in study["variants"]):
        said.insert(
            1,
            "“implicit only” has no Combiner: its recalls are the plain sum's after stage 1, whatever TAC learns.",
        )
    made = (
        f"`{study['command']}`; {e['cores']} cores, {e['threads']} thread{'s' if e['threads'] > 1 else ''} a run, "
        f"{study['seconds'] / 60:.0f} minutes of training and measuring in all; PyTorch {e['torch']}."
    )
    return " ".join(sentence for sentence in said if sentence) + "\n\n" + made


def spread(values: Sequence[float]) -> str:
    """Return mean ± standard deviation; one value alone has none."""
    if not values:
        return "-"
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def _difference(difference: Mapping[str, Any] | None) -> list[str]:
    if difference is None:
        return ["", "", "base"]
    low, high = difference["interval"]
    sd = "" if difference["sd"] is None else f" ± {difference['sd']:.1f}"
    count = len(difference["seeds"])
    return [f"{difference['mean']:+.1f}{sd} ({count})", f"{low:+.1f} to {high:+.1f}", difference["verdict"]]


def _hits(split: Mapping[str, Any], k: int) -> NDArray[np.float64]:
    return (np.array(split["ranks"]) < k).astype(np.float64)
