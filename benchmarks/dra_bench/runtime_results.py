"""The page's section on the runtime: what `dra-bench` measured of throughput, memory, starts, whole ways, galleries.

Each part is there where its JSON file is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dra_bench.coldstart import coldstart_table
from dra_bench.endtoend import endtoend_table
from dra_bench.gallery_search import cost_table, search_table
from dra_bench.memory import memory_table, stages_table
from dra_bench.throughput import throughput_table

Results = Mapping[str, Any]

THROUGHPUT = """\
Items a second at batch 16, medians, against the fastest of PyTorch's eager ways: images contiguous or channels last,
texts padded to 77 tokens or cut."""

MEMORY = """\
A fresh process answers {queries} queries of a picture file and a text. PyTorch holds the checkpoint's weights once,
mapped from its file. The peak is the most that was ever resident, mapped files included (VmHWM); medians of the runs.
Of PyTorch's memory a good part is its import: stage by stage below."""

COLD_START = """\
From starting Python to the first ten answers out of {gallery} images, files in the system's cache; medians of the runs.
The bundle and the gallery are opened with all hashes compared, or sizes only."""

END_TO_END = """\
From a file and a text to ten answers out of {items:,} items, searched exactly in float32, one query at a time. The
picture is {picture}. A step's share is its median over the sum of all steps' medians; the whole is one call of
`Gallery.search`."""

GALLERY = """\
One query at a time, searched by `Gallery.search_vectors` for ten answers. Recall is against exact search in float32,
over {queries} queries. An index proposes candidates, which are scored as in exact search. Memory and opening are those
of fresh processes with the files in the system's cache; resident counts what of the mapped file was touched."""

VECTORS = "The vectors: {recipe}. Any two have a mean cosine of {mean_cosine}, an item and the nearest other of 4,096 \
{nearest_cosine}; they spread over {dimensions} dimensions (participation ratio)."


def runtime_sections(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    """Yield the section's paragraphs and tables, in order; nothing where nothing was measured.

    ``results`` are JSON contents by file name without suffix, ``models`` the titles of models by name.
    """
    parts = [
        *_throughput(results, models),
        *_memory(results, models),
        *_cold_start(results, models),
        *_end_to_end(results, models),
        *_gallery(results),
    ]
    if parts:
        yield "## Runtime"
        yield from parts


def _throughput(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-throughput" in results]
    if found:
        yield "### Throughput"
        yield THROUGHPUT
    for name in found:
        result = results[f"{name}-throughput"]
        yield f"{capital(models[name])}:"
        yield throughput_table(result["throughput"])
        yield command_line(result)


def _memory(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-memory" in results]
    if found:
        yield "### Memory"
        yield MEMORY.format(queries=results[f"{found[0]}-memory"]["queries"])
    for name in found:
        result = results[f"{name}-memory"]
        yield f"{capital(models[name])}:"
        yield memory_table(result["rows"])
        yield stages_table(result["rows"])
        yield command_line(result)


def _cold_start(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-coldstart" in results]
    if found:
        yield "### Cold start"
        yield COLD_START.format(gallery=results[f"{found[0]}-coldstart"]["gallery"])
    for name in found:
        result = results[f"{name}-coldstart"]
        yield f"{capital(models[name])}:"
        yield coldstart_table(result["rows"])
        yield command_line(result)


def _end_to_end(results: Results, models: Mapping[str, str]) -> Iterator[str]:
    found = [name for name in models if f"{name}-endtoend" in results]
    if found:
        first = results[f"{found[0]}-endtoend"]
        yield "### End to end"
        yield END_TO_END.format(items=first["galleries"][0]["items"], picture=first["picture"])
    for name in found:
        result = results[f"{name}-endtoend"]
        samples = min(row["samples"] for row in result["rows"])
        yield f"{capital(models[name])}, {samples} samples:"
        yield endtoend_table(result["rows"])
        yield command_line(result)


def _gallery(results: Results) -> Iterator[str]:
    if "gallery" in results:
        result = results["gallery"]
        largest = result["sizes"][-1]
        yield "### Large galleries"
        yield GALLERY.format(queries=largest["queries"])
        yield search_table(result["sizes"])
        yield cost_table(result["sizes"])
        yield VECTORS.format(**largest)
        yield command_line(result, max(size["used_by_others_percent"] or 0 for size in result["sizes"]))


def command_line(result: Mapping[str, Any], others: float | None = None) -> str:
    """Name the command, and how busy the machine was otherwise where that was measured."""
    environment = result["environment"]
    others = environment.get("used_by_others_percent", others)
    said = "" if others is None else f"; other programs used {others:.0f} % of the CPUs meanwhile"
    return f"`{environment['command']}`, {environment['threads']} threads, {environment['date']}{said}."


def capital(title: str) -> str:
    """Write a title with a capital."""
    return title[0].upper() + title[1:]
