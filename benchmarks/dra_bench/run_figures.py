"""What one result file says, as figures that can be compared with another file's: latency, load and growth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_bench.contenders.backend import PYTORCH
from dra_bench.latency import LABELS
from dra_bench.timing import RESAMPLES
from dra_runtime.errors import UsageError

MEDIAN_ERROR = 1.2533  #: standard error of a median over that of a mean, of normal samples: sqrt(pi / 2)
BLOCKS = 10  #: that a run is cut into to be resampled
IQR_DEVIATIONS = 1.349  #: interquartile range of a normal distribution, in standard deviations
# What tells a command's result from the others'
KINDS = {
    "latency": ("rows", "raw_ms"),
    "load": ("single_stream", "offline"),
    "growth": ("curves",),
    "recall": ("splits", "passed"),
}

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Figure:
    """One measured figure of one contender, with resamples of it that tell its spread."""

    group: str  #: what was measured, such as "image, batch 1": figures of a group are set in relation to each other
    contender: str
    detail: str  #: what tells two figures of a contender in a group apart, such as "12 text tokens"; or ""
    unit: str
    value: float
    samples: int
    faster: NDArray[np.float64] = field(compare=False, repr=False)  #: (RESAMPLES,) log of the speed: higher is better
    reference: Key | None = None  #: the figure of the same run that this one is set in relation to

    @property
    def key(self) -> Key:
        """Return what finds the same figure in another run."""
        return self.group, self.contender, self.detail

    @property
    def log_speed(self) -> float:
        """Return the logarithm of the speed, measured rather than resampled."""
        return float(np.log(self.value)) * (1 if self.unit.endswith("a second") else -1)


def read_result(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a result file; returns which command wrote it, and its content. UsageError when it isn't one of `KINDS`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} doesn't exist; write it with dra-bench latency … -o {path.name}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as JSON ({error}); write it anew") from error
    for kind, keys in KINDS.items():
        if isinstance(content, dict) and all(key in content for key in keys):
            return kind, content
    raise UsageError(f"{path} is no result of dra-bench {', '.join(KINDS)}; only those can be compared")


def run_figures(kind: str, result: Mapping[str, Any], seed: int) -> dict[Key, Figure]:
    """Return a result's figures by their keys, each with its reference: PyTorch eager's of its group, else the first.

    ``seed`` draws the resamples: two runs need two. UsageError when the file lacks what its command writes.
    """
    random = np.random.default_rng(seed)
    readers = {"latency": _latency, "load": _load, "growth": _growth}
    try:
        figures = list(readers[kind](result, random))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"a dra-bench {kind} result isn't as this version writes it ({error!r}); measure anew"
        ) from error
    return {figure.key: figure for figure in _with_references(figures)}


def _with_references(figures: Iterable[Figure]) -> Iterator[Figure]:
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    pytorchs_query = next((f for name, g in groups.items() for f in g if _is_whole_query(f, name)), None)
    for group in groups.values():
        own = [f for f in group if f.contender == PYTORCH]
        reference = max(own, key=_text_tokens) if own else group[0]  # PyTorch pads to 77 tokens, as it is used
        for figure in group:
            if figure is not reference:
                yield replace(figure, reference=reference.key)
            elif figure.contender != PYTORCH and figure.unit == "ms" and pytorchs_query:
                yield replace(figure, reference=pytorchs_query.key)  # nobody else does this part: preprocessing
            else:
                yield figure


def _text_tokens(figure: Figure) -> int:
    return int(figure.detail.split()[0]) if figure.detail else 0


def _is_whole_query(figure: Figure, group: str) -> bool:
    return figure.contender == PYTORCH and group == f"{LABELS['query']}, batch 1"


def _latency(result: Mapping[str, Any], random: np.random.Generator) -> Iterator[Figure]:
    """Figures of raw samples: rows of one run are resampled by the same rounds, as they were measured side by side."""
    draws: dict[int, NDArray[np.int64]] = {}
    for row in result["raw_ms"]:
        samples = np.array(row["ms"], dtype=np.float64)
        count = len(samples)
        if count not in draws:
            draws[count] = block_draws(count, random)
        tokens = row["text_tokens"]
        yield Figure(
            f"{LABELS.get(row['part'], row['part'])}, batch {row['batch']}",
            row["backend"],
            "" if tokens is None else f"{tokens} text tokens",
            "ms",
            float(np.median(samples)),
            count,
            -np.log(np.median(samples[draws[count]], axis=1)),
        )


def block_draws(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draw rounds (RESAMPLES, count) with replacement, a tenth of the run at a time.

    Neighbouring rounds are alike, because a machine's mood lasts for seconds: drawn one by one they would promise an
    interval that the next run doesn't keep. Blocks go round from the last round to the first (Politis and Romano 1992).
    """
    length = max(1, count // BLOCKS)
    starts = random.integers(0, count, size=(RESAMPLES, -(-count // length), 1))
    rounds: NDArray[np.int64] = (starts + np.arange(length)).reshape(RESAMPLES, -1)[:, :count] % count
    return rounds


def _load(result: Mapping[str, Any], random: np.random.Generator) -> Iterator[Figure]:
    for row in result["single_stream"]:
        half = row["iqr_ms"] / 2
        quartiles = (row["p50_ms"] - half, row["p50_ms"] + half)
        yield _of_quartiles(
            _group("one stream", row), row["backend"], "ms", row["p50_ms"], quartiles, row["samples"], random
        )
    for title, name, label in (("offline", "offline", "batch"), ("threads", "throughput", "threads")):
        for row in result.get(title, ()):
            group, rate = f"{_group(name, row)}, {label} {row[label]}", row["queries_per_second"]
            quartiles = (row["low"], row["high"])
            yield _of_quartiles(group, row["backend"], "queries a second", rate, quartiles, row["samples"], random)
    for row in result.get("server", ()):
        held = row["queries_per_second"]
        if held <= 0:
            continue  # no rate held: nothing to compare
        lost = [a["queries_per_second"] for a in row["attempts"] if not a["held"] and a["queries_per_second"] > held]
        # The true limit lies somewhere between this rate and the lowest one above it that didn't hold
        step = np.log(min(lost, default=held) / held)
        figure = Figure(
            _group("server", row), row["backend"], "", "queries a second", held, row["samples"], np.empty(0)
        )
        yield replace(figure, faster=figure.log_speed + step * random.uniform(-1, 1, RESAMPLES))


def _group(name: str, row: Mapping[str, Any]) -> str:
    reference = str(row.get("reference", "")).replace("_", " ")
    return f"{name}, {reference}" if reference else name


def _growth(result: Mapping[str, Any], random: np.random.Generator) -> Iterator[Figure]:
    for curve in result["curves"]:
        unit = "items a second" if "second" in curve["y"] or "/s" in curve["y"] else curve["y"]
        title = ", ".join(filter(None, (curve["title"], curve["part"])))
        for point in curve["points"]:
            if point["extrapolated"] or point["y"] <= 0:
                continue
            group, quartiles = f"{title}, {curve['x']} {point['x']:g}", (point["low"], point["high"])
            yield _of_quartiles(group, curve["backend"], unit, point["y"], quartiles, point["samples"], random)


def _of_quartiles(
    group: str,
    contender: str,
    unit: str,
    median: float,
    quartiles: tuple[float, float],
    samples: int,
    random: np.random.Generator,
) -> Figure:
    """Make a figure of a median and its quartiles: its resamples are log-normal, with the median's standard error."""
    low, high = quartiles
    spread = np.log(high / low) / IQR_DEVIATIONS if 0 < low <= high else 0.0
    figure = Figure(group, contender, "", unit, float(median), int(samples), np.empty(0))
    error = MEDIAN_ERROR * spread / np.sqrt(max(samples, 1))
    return replace(figure, faster=figure.log_speed + error * random.standard_normal(RESAMPLES))
