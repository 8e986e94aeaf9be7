"""Read what a run left in its folder: recalls, parity, latencies, and whatever else was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dra_runtime.errors import UsageError

# File, the keys that the report reads, and the command that writes it.
EVALUATION = ("eval.json", ("dataset", "split", "queries", "gallery", "metrics", "baselines"), "dra-train evaluate")
VERIFY = ("verify.json", ("passed", "graphs"), "dra-export verify")
LATENCY = ("latency.json", ("rows", "ratios", "environment"), "dra-bench latency")
RECALL = ("recall.json", ("passed", "splits"), "dra-bench recall")
# These are shown where they are there.
MORE = (
    ("load.json", ("limit_ms", "single_stream", "offline", "server", "threads", "environment"), "dra-bench load"),
    ("growth.json", ("curves", "environment"), "dra-bench growth"),
    ("roofline.json", ("machine", "parts", "environment"), "dra-bench roofline"),
    ("endtoend.json", ("rows", "environment"), "dra-bench endtoend"),
    ("memory.json", ("rows", "queries", "environment"), "dra-bench memory"),
    ("coldstart.json", ("rows", "gallery", "environment"), "dra-bench coldstart"),
    ("gallery.json", ("sizes", "environment"), "dra-bench gallery"),
)


@dataclass(frozen=True)
class Run:
    """The measurements of one run, as their commands printed them."""

    name: str
    evaluations: tuple[dict[str, Any], ...]  #: one a split
    verified: tuple[dict[str, Any], ...]  #: one an artifact
    latency: dict[str, Any]
    recall: dict[str, Any]
    more: dict[str, dict[str, Any]] = field(default_factory=dict)  #: by file name, those that are there


def read_run(folder: Path) -> Run:
    """Read the JSON files of a run folder; only eval, verify, latency and recall must be there.

    UsageError names the file that is missing or malformed, and the command that writes it.
    """
    if not folder.is_dir():
        names = ", ".join(f[0] for f in (EVALUATION, VERIFY, LATENCY, RECALL))
        raise UsageError(f"{folder} is no folder; expected a run that holds {names}")
    evaluations, verified = _read(folder, *EVALUATION), _read(folder, *VERIFY)
    latency, recall = (_read(folder, *f)[0] for f in (LATENCY, RECALL))
    more = {f[0]: _read(folder, *f)[0] for f in MORE if (folder / f[0]).exists()}
    return Run(folder.resolve().name, tuple(evaluations), tuple(verified), latency, recall, more)


def _read(folder: Path, name: str, keys: tuple[str, ...], command: str) -> list[dict[str, Any]]:
    """Read one file as a list of objects that all have ``keys``; a single object counts as a list of one."""
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} doesn't exist; write it with `{command} … -o {name}`") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read as JSON ({error}); write it anew with {command}") from error
    objects = content if isinstance(content, list) and content else [content]
    for item in objects:
        missing = [k for k in keys if not isinstance(item, dict) or k not in item]
        if missing:
            raise UsageError(f"{path} lacks {', '.join(missing)}; write it anew with {command}")
    return objects
