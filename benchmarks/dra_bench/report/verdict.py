"""What the run found, in at most three sentences: what it finds, what was lost, how fast; problems by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dra_bench.contenders.backend import PYTORCH
from dra_bench.environment import BUSY
from dra_bench.figures import DEMO_DATASET, cosine, percent, recall_name, times
from dra_bench.latency import LABELS, find_ratio
from dra_bench.report.run_folder import Run

CAVEAT = (
    "These are demo recalls on emoji pictures by a small model that trains in minutes: they show that the path works, "
    "and are neither the paper's recalls nor comparable with them."
)
OTHER_CAVEAT = (
    "These are recalls of this checkpoint on this data set; DRA here is a reconstruction of the paper's method."
)


def verdict(run: Run) -> str:
    """Say what the run found; a failed check, a slower bundle and a busy machine stand there by name."""
    finds = " and ".join(
        f"for {percent(e['metrics']['R@1'])} % of {e['queries']} queries on {e['split']}"
        f" ({', '.join(_alone(name, metrics) for name, metrics in e['baselines'].items())})"
        for e in run.evaluations
    )
    first = f"The right picture comes first {finds}: {recall_kind(run)} R@1."
    sentences = [first, f"{_faithful(run)}{_speed(run.latency)}."]
    if problems := list(_problems(run)):
        sentences.append(f"{'; '.join(problems)}.")
    return " ".join(sentences)


def caveat(run: Run) -> str:
    """Say what these recalls are not."""
    return CAVEAT if _is_demo(run) else OTHER_CAVEAT


def recall_kind(run: Run) -> str:
    """Return what these recalls are called."""
    return recall_name(DEMO_DATASET if _is_demo(run) else "")


def has_passed(run: Run) -> bool:
    """Tell whether every check passed."""
    return all(result["passed"] for result in run.verified) and bool(run.recall["passed"])


def check_line(run: Run) -> str:
    """Say how both checks ended, and which artifact missed what."""
    cosines = [(g["min_cosine"], r.get("name", "bundle")) for r in run.verified for g in r["graphs"].values()]
    smallest = ""
    if cosines:
        value, name = min(cosines)
        smallest = f" (smallest cosine {cosine(value)}{f', {name}' if len(run.verified) > 1 else ''})"
    states = {True: "passed", False: "FAILED"}
    verified = states[all(result["passed"] for result in run.verified)]
    missed = [f"{name}: {line}" for name, lines in failed_artifacts(run).items() for line in lines[:2]]
    return f"dra-export verify {verified}{smallest}, dra-bench recall {states[bool(run.recall['passed'])]}." + (
        f" Missed: {'; '.join(missed)}." if missed else ""
    )


def failed_artifacts(run: Run) -> dict[str, list[str]]:
    """Return the artifacts that failed a check, by name, each with the lines that say what it missed."""
    failed: dict[str, list[str]] = {}
    for result in run.verified:
        if not result["passed"]:
            failed.setdefault(result.get("name", "bundle"), []).extend(result.get("missed", []))
    judged = run.recall.get("artifacts") or [{**s, "artifact": "bundle"} for s in run.recall["splits"]]
    for artifact in judged:
        if not artifact["passed"]:
            failed.setdefault(_with_folder(artifact), []).extend(artifact.get("missed", []))
    if not failed and not run.recall["passed"]:
        failed["bundle"] = []
    return failed


def others_percent(environment: Mapping[str, Any]) -> float:
    """Return how many percent of the CPUs other programs used meanwhile; 0 where it was few.

    Threads that wait for each other at every step, as PyTorch's do, lose far more by that than ONNX Runtime's.
    """
    others = float(environment.get("used_by_others_percent") or 0)
    return others if others > BUSY else 0.0


def slower_bundles(latency: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """Return the bundles of which some part is surely slower than PyTorch eager's: the worst part, and its ratio."""
    bundles = {b["backend"] for b in latency.get("bundles", [])}
    slower: dict[str, tuple[str, float]] = {}
    for ratio in latency["ratios"]:
        reference, candidate = ratio["reference"], ratio["candidate"]
        name, part, value = candidate["backend"], candidate["part"], ratio["times_as_fast"]
        if (bundles and name not in bundles) or (reference["backend"], reference["part"]) != (PYTORCH, part):
            continue
        if ratio["interval"][1] < 1 and value < slower.get(name, ("", 1.0))[1]:
            slower[name] = (part, value)
    return slower


def _faithful(run: Run) -> str:
    if failed := failed_artifacts(run):
        return f"{' and '.join(failed)} differ{'s' if len(failed) == 1 else ''} from PyTorch by more than allowed"
    names = list(dict.fromkeys(split.get("artifact", "bundle") for split in run.recall["splits"]))
    who, verb = (
        ("The exported bundle", "s")
        if len(names) < 2
        else (f"{'Both' if len(names) == 2 else f'All {len(names)}'} artifacts", "")
    )
    equal = all(split["reference"] == split["candidate"] for split in run.recall["splits"])
    if equal:
        return f"{who} answer{verb} as PyTorch does"
    return f"{who} stay{verb} within the limits of {'its' if verb else 'their'} precision beside PyTorch's recall"


def _speed(latency: Mapping[str, Any]) -> str:
    if others := others_percent(latency["environment"]):
        return f"; how fast can't be said, since other programs used {others:.0f} % of the CPUs"
    found = [
        (ratio, f"{times(ratio['times_as_fast'])} as fast {what}")
        for part, against, what in (("query", None, "with a new reference"), ("query_by_id", "query", "by id"))
        if (ratio := find_ratio(latency["ratios"], part, against))
    ]
    if not found:
        return ""
    several = len({ratio["candidate"]["backend"] for ratio in latency["ratios"]}) > 1
    name = f" with {found[0][0]['candidate']['backend']}" if several else ""
    said = f", a query{name} {' and '.join(words for _, words in found)} as PyTorch's full query"
    mine = found[0][0]["candidate"]
    same = (ratio for ratio in latency.get("fastest_baselines", []) if ratio["candidate"] == mine)
    baseline = next(same, None)
    if baseline is None or baseline["reference"]["backend"] == PYTORCH:
        return said
    other = baseline["reference"]["backend"]
    return f"{said}, and {times(baseline['times_as_fast'])} as fast as {other}, the fastest other way"


def _problems(run: Run) -> Iterator[str]:
    """Yield what else a reader must know before any figure is quoted."""
    if not others_percent(run.latency["environment"]):
        for name, (part, value) in slower_bundles(run.latency).items():
            yield f"{name} is slower than PyTorch eager ({LABELS[part]}: {times(value)} as fast)"
    if busy := [name for name, content in run.more.items() if _is_busy(content)]:
        yield f"Other programs were busy while {', '.join(busy)} {'was' if len(busy) == 1 else 'were'} measured"


def _is_busy(content: Mapping[str, Any]) -> bool:
    environments = [content["environment"], *content.get("sizes", [])]
    return any(others_percent(environment) for environment in environments)


def _with_folder(artifact: Mapping[str, Any]) -> str:
    name = str(artifact["artifact"])
    return f"{name} ({artifact['bundle']})" if artifact.get("bundle") else name


def _alone(baseline: str, metrics: Mapping[str, float]) -> str:
    return f"{baseline.removesuffix('_only')} alone {percent(metrics['R@1'])} %"


def _is_demo(run: Run) -> bool:
    return any(e["dataset"] == DEMO_DATASET for e in run.evaluations)
