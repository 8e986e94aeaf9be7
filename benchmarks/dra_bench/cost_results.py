"""The page's sections on load, growth and the machine's limits, each where its JSON file is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dra_bench.growth_table import growth_tables
from dra_bench.load.tables import load_text
from dra_bench.recall import recall_cells, verdict_lines
from dra_bench.roofline import in_words, machine_table, parts_table
from dra_bench.runtime_results import capital, command_line
from dra_runtime.console import table

Results = Mapping[str, Any]

LOAD = """\
Whole queries in the shapes of MLPerf Inference ([benchmarks.md](benchmarks.md) says how each is measured): {queries},
out of {items:,} items. A latency counts from the query's arrival."""

GROWTH = """\
Medians; the spread is half the distance between quartiles, at the point where it is largest, n the smallest number of
samples. What a `~` marks was not measured but extrapolated, by the law that stands below its table."""

ROOFLINE = """\
What a part can't fall below on this machine: its operations at the rate of a matrix product, or its bytes at the rate
of reading memory, whichever takes longer; both measured in the same rounds."""

ARTIFACTS = """\
The same queries through PyTorch and through each artifact, judged by the limits of `dra-export verify`: what
`dra-bench recall` found. `emulated` is the FP16 bundle with every half value rounded, which a CPU doesn't do by
itself."""


def cost_sections(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    """Yield the sections' paragraphs and tables, in order; nothing where nothing was measured.

    ``results`` are JSON contents by file name without suffix, ``models`` the titles of models by name.
    """
    yield from _artifacts(results, models)
    yield from _load(results, models)
    yield from _growth(results, models)
    yield from _roofline(results, models)


def _artifacts(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    for name in models:
        if f"{name}-recall" in results:
            result = results[f"{name}-recall"]
            columns = list(result["splits"][0]["reference"])
            yield "## Recall of every artifact"
            yield ARTIFACTS
            header = ["split", "model", "queries", *columns]
            yield table(header, recall_cells(result["splits"], columns))
            header = ["artifact", "split", "first ten in common %", "first answers changed", "smallest cosine"]
            yield table(header, [_overlap(split) for split in result["splits"]])
            yield "\n".join(f"- {line.strip()}" for line in verdict_lines(result["artifacts"], result["tolerance"]))
            yield command_line(result)


def _overlap(split: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        split["artifact"],
        split["split"],
        f"{split['top10_overlap']:.2f}",
        f"{split['changed_queries']} of {split['queries']}",
        f"{split['cosine']['min_cosine']:.5f}",
    )


def _load(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-load" in results]
    if found:
        first = results[f"{found[0]}-load"]
        yield "## Load"
        yield LOAD.format(queries=first["queries"], items=first["gallery"]["items"][0])
    for name in found:
        yield f"### {capital(models[name])}"
        yield load_text(results[f"{name}-load"])
        yield command_line(results[f"{name}-load"])


def _growth(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-growth" in results]
    if found:
        yield "## How cost grows"
        yield GROWTH
    for name in found:
        yield f"### {capital(models[name])}"
        yield growth_tables(results[f"{name}-growth"]["curves"])
        yield command_line(results[f"{name}-growth"])


def _roofline(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-roofline" in results]
    if found:
        yield "## How far from the machine's limits"
        yield ROOFLINE
        yield results[f"{found[0]}-roofline"]["rules"]
    for name in found:
        result = results[f"{name}-roofline"]
        yield f"### {capital(models[name])}"
        yield machine_table(result["machine"])
        yield parts_table(result["parts"])
        yield "\n".join(f"- {in_words(row)}" for row in result["parts"])
        yield command_line(result)
