"""Read what a run left in its folder: recalls, parity, latencies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dra_runtime.errors import UsageError

# File, the keys that the report reads, and the command that writes it.
EVALUATION = ("eval.json", ("dataset", "split", "queries", "gallery", "metrics", "baselines"), "dra-train evaluate")
VERIFY = ("verify.json", ("passed", "graphs"), "dra-export verify")
LATENCY = ("latency.json", ("rows", "ratios", "environment"), "dra-bench latency")
RECALL = ("recall.json", ("passed", "splits"), "dra-bench recall")


@dataclass(frozen=True)
class Run:
    """The measurements of one run, as their commands printed them."""

    name: str
    evaluations: tuple[dict[str, Any], ...]  #: one a split
    verify: dict[str, Any]
    latency: dict[str, Any]
    recall: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Read the four JSON files of a run folder.

    UsageError names the file that is missing or malformed, and the command that writes it.
    """
    if not folder.is_dir():
        names = ", ".join(f[0] for f in (EVALUATION, VERIFY, LATENCY, RECALL))
        raise UsageError(f"{folder} is no folder; expected a run that holds {names}")
    evaluations = _read(folder, *EVALUATION)
    verify, latency, recall = (_read(folder, *f)[0] for f in (VERIFY, LATENCY, RECALL))
    return Run(folder.resolve().name, tuple(evaluations), verify, latency, recall)


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
