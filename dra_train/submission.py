"""The files that CIRR's and CIRCO's test servers take, checked before anything is written.

CIRR (https://cirr.cecs.anu.edu.au): two files, ``{"version": "rc2", "metric": "recall" | "recall_subset", "PAIRID":
[names, best first]}`` with 50 and 3 names a query, the reference left out. CIRCO (https://circo.micc.unifi.it): one
file, ``{"ID": [50 image ids, best first]}``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dra_runtime.errors import DatasetError, UsageError
from dra_train.data import Dataset, Query
from dra_train.evaluate import encode, score_blocks
from dra_train.metrics import Columns, drops_reference, ranked_names
from dra_train.model import DRA

ANSWERS, SUBSET_ANSWERS = 50, 3  #: names a query that the servers want
MAX_BYTES = 5_000_000  #: of CIRR's server
CIRR_VERSION = "rc2"
SERVERS = ("cirr", "circo")

Content = Mapping[str, Any]


def submission(model: DRA, dataset: Dataset) -> dict[str, Content]:
    """Answer every query of a test split: the content of each file of the submission, by its name, checked.

    DatasetError when the result isn't what the server takes; UsageError when the benchmark has no server.
    """
    if dataset.format not in SERVERS:
        raise UsageError(f"{dataset.title} is {dataset.format} data; test servers exist for {' and '.join(SERVERS)}")
    columns = Columns.of(list(dataset.images))
    encoded = encode(model, dataset)
    best: list[list[str]] = []
    members: list[list[str]] = []
    for block, scores in score_blocks(encoded.composed, encoded.gallery):
        queries = dataset.queries[block]
        best += ranked_names(scores, queries, columns, ANSWERS, drops_reference(dataset.format))
        members += [ranked_members(row, query, columns) for row, query in zip(scores, queries, strict=True)]
    ids = [str(query.id) for query in dataset.queries]
    stem = f"{dataset.format}_{dataset.split}"
    if dataset.format == "circo":
        files: dict[str, Content] = {
            f"{stem}.json": {id: [int(name) for name in names] for id, names in zip(ids, best, strict=True)}
        }
    else:
        answers = {"recall": best, "recall_subset": members}
        files = {
            f"{stem}_{metric}.json": {"version": CIRR_VERSION, "metric": metric, **dict(zip(ids, names, strict=True))}
            for metric, names in answers.items()
        }
    for name, content in files.items():
        check_submission(content, dataset, name)
    return files


def ranked_members(row: NDArray[np.float32], query: Query, columns: Columns) -> list[str]:
    """Rank the other members of a query's group by a row of scores, ties by name; the first three."""
    others = sorted(set(query.group) - {query.reference}, key=lambda name: (-float(row[columns.index[name]]), name))
    return others[:SUBSET_ANSWERS]


def check_submission(content: Content, dataset: Dataset, name: str) -> None:
    """Check a submission against the data set: all queries, counts, no name twice, all in the gallery, size.

    DatasetError says what the server would refuse.
    """
    content = dict(content)
    gallery: set[object]
    if dataset.format == "circo":
        metric, wanted, gallery = "", ANSWERS, {int(image) for image in dataset.images}
    else:
        version, metric = content.pop("version", None), content.pop("metric", None)
        if version != CIRR_VERSION or metric not in ("recall", "recall_subset"):
            raise DatasetError(f"{name}: version {version!r} and metric {metric!r} aren't what CIRR's server takes")
        wanted, gallery = (ANSWERS if metric == "recall" else SUBSET_ANSWERS), set(dataset.images)
    ids = {str(query.id) for query in dataset.queries}
    if len(ids) != len(dataset.queries):
        raise DatasetError(f"{name}: ids of {dataset.title} stand for several queries; dra-train check-data lists them")
    if ids != content.keys():
        answered, others = len(ids & content.keys()), len(content.keys() - ids)
        raise DatasetError(f"{name} answers {answered} of the {len(ids)} queries and {others} others")
    for query in dataset.queries:
        answers = content[str(query.id)]
        if len(answers) != wanted or len(set(answers)) != wanted:
            raise DatasetError(
                f"{name}: query {query.id} has {len(set(answers))} different answers, the server wants {wanted}; "
                f"the gallery has {len(dataset.images)} images"
            )
        allowed = set(query.group) if metric == "recall_subset" else gallery
        dropped = query.reference if drops_reference(dataset.format) else None
        if strangers := [answer for answer in answers if answer not in allowed or answer == dropped]:
            raise DatasetError(f"{name}: query {query.id} is answered with {strangers[0]!r}, which isn't a candidate")
    if (size := len(encode_json(content))) > MAX_BYTES:
        raise DatasetError(f"{name} has {size} bytes, the server takes {MAX_BYTES}")


def encode_json(content: Content) -> bytes:
    """Write JSON without spaces: every byte counts."""
    return json.dumps(content, separators=(",", ":")).encode()


def write_submission(files: Mapping[str, Content], folder: Path) -> list[Path]:
    """Write all files or none: into a folder beside the target that is renamed at the end; returns their paths.

    UsageError when the folder is in use or can't be written.
    """
    check_folder(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            for name, content in files.items():
                (temporary / name).write_bytes(encode_json(content))
            temporary.replace(folder)  # an empty folder in its place is replaced
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{folder} can't be written: {error.strerror or error}; pass another folder") from error
    return [folder / name for name in files]


def check_folder(folder: Path) -> None:
    """Refuse, before minutes of work, a folder that isn't empty or can't be one; raises UsageError."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is already there and isn't an empty folder; pass a new one")
    if not folder.resolve().parent.is_dir():
        raise UsageError(f"{folder} can't be made: its parent folder doesn't exist; make it first")
