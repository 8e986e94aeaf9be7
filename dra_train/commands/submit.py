"""dra-train submit."""

from __future__ import annotations

from pathlib import Path

import click

from dra_runtime.errors import UsageError
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.dataset_options import format_option, image_root_option
from dra_train.data import open_dataset
from dra_train.data.open import find_dataset
from dra_train.submission import SERVERS, check_folder, submission, write_submission

TEST_SPLITS = {"cirr": "test1", "circo": "test"}


@click.command("submit", short_help="Write the files for CIRR's and CIRCO's test servers.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dataset", required=True, help="Folder of CIRR or CIRCO (docs/data.md).")
@click.option("--split", help="Default: test1 for CIRR, test for CIRCO.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="New folder for the files.")
@format_option
@image_root_option
def submit_command(
    checkpoint: Path, dataset: str, split: str | None, output: Path, format: str, image_root: Path | None
) -> None:
    """Answer a test split with CHECKPOINT and write the files that the benchmark's server takes.

    CIRR: two files, 50 names a query over the whole split and 3 of the query's group, the reference left out. CIRCO:
    one file, 50 image ids a query. Counts, names and size are checked first; nothing is written if the server would
    refuse it.
    """
    check_folder(output)
    _, found = find_dataset(dataset, format)
    if found not in SERVERS:
        raise UsageError(f"{dataset} is {found} data; test servers exist for {' and '.join(SERVERS)}")
    model = load_checkpoint(checkpoint).model
    (part,) = open_dataset(dataset, split or TEST_SPLITS[found], format=found, image_root=image_root)
    for path in write_submission(submission(model, part), output):
        click.echo(f"{path} written: {len(part.queries)} queries, {path.stat().st_size / 1e6:.2f} MB")
