"""The options that say how a data set lies on the disk, shared by the commands that read one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dra_train.data import FORMATS, GALLERIES

DATASET_HELP = "Data set's folder, or a .jsonl file; default: the one in the repository (docs/data.md)."

format_option = click.option(
    "--format",
    type=click.Choice(("auto", *FORMATS)),
    default="auto",
    show_default=True,
    help="Format of the data set; auto: what its files look like.",
)
gallery_option = click.option(
    "--gallery",
    type=click.Choice(GALLERIES),
    default="original",
    show_default=True,
    help="FashionIQ's: all images of the split, or the queries' references and targets only.",
)
image_root_option = click.option(
    "--image-root", type=click.Path(path_type=Path), help="Where the images lie, if not where the format expects them."
)
allow_missing_option = click.option(
    "--allow-missing",
    is_flag=True,
    help="Leave out missing or unreadable images and the queries that need them; results say so.",
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--format``, ``--gallery``, ``--image-root`` and ``--allow-missing`` to a command."""
    for option in (allow_missing_option, image_root_option, gallery_option, format_option):
        command = option(command)
    return command
