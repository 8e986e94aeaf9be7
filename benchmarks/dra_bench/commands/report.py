"""dra-bench report."""

from __future__ import annotations

from pathlib import Path

import click

from dra_bench.report.write import write_report
from dra_train.commands.dataset_options import DATASET_HELP


@click.command("report", short_help="Write one page about a run.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The page; default: RUN/report.html. Others go beside it."
)
@click.option("--dataset", default="builtin", help=DATASET_HELP)
@click.option("--queries", "count", type=click.IntRange(1, 50), default=8, show_default=True, help="Queries to show.")
@click.option("--seed", default=0, show_default=True, help="Draws the queries to show, before they are answered.")
def report_command(run: Path, output: Path | None, dataset: str, count: int, seed: int) -> None:
    """Write one page about the folder RUN: pictures of answers, recalls, latencies, parity.

    RUN holds bundle/, val.gallery, eval.json (dra-train evaluate), verify.json (dra-export verify), latency.json and
    recall.json (dra-bench). The page needs no network and no other file; picture.png and report.md go beside it.
    """
    written = write_report(run, output or run / "report.html", dataset, count, seed)
    for path in written:
        click.echo(f"{path} written")
