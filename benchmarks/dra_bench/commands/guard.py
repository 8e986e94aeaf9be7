"""dra-bench guard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import click

from dra_bench.comparable import environment_of
from dra_bench.environment import BUSY
from dra_bench.guard import FALL, Guarded, guard
from dra_bench.run_figures import read_result
from dra_runtime.errors import UsageError


@click.command("guard", short_help="Warn when a short run's ratios fell below the committed ones.")
@click.argument("committed", type=click.Path(path_type=Path))
@click.argument("measured", type=click.Path(path_type=Path))
def guard_command(committed: Path, measured: Path) -> int:
    """Compare the ratios of a short run, MEASURED, with the COMMITTED ones: both files of dra-bench latency.

    \b
      dra-bench latency --bundle bundle/ --checkpoint ckpt.pt --seconds 10 -o now.json
      dra-bench guard benchmarks/results/2-core-amd-epyc/demo-latency.json now.json

    A warning names the contender and the part whose speed against PyTorch eager in the same run fell by more than a
    third, beyond noise. It is a warning and no failure: the exit code is 0. In GitHub's actions it is an annotation.
    The weights may differ, the architecture may not: speed doesn't depend on weights.
    """
    (kind, first), (other, second) = read_result(committed), read_result(measured)
    if {kind, other} != {"latency"}:
        raise UsageError(f"{committed.name} is of dra-bench {kind}, {measured.name} of {other}; give two of latency")
    backbones = [environment_of(result).get("backbone") for result in (first, second)]
    if backbones[0] != backbones[1]:
        raise UsageError(f"the results are about different models ({backbones[0]} and {backbones[1]}); give one's")
    found = guard(first, second)
    for line in guard_lines(found, environment_of(second).get("used_by_others_percent") or 0.0):
        click.echo(line)
    if os.environ.get("GITHUB_ACTIONS"):
        for line in found.warnings:
            click.echo(f"::warning title=slower than the committed results::{escaped(line)}")
    return 0


def guard_lines(found: Guarded, others: float) -> Iterator[str]:
    """Yield the guard's result for people: a line a warning, or one that says there is none; then the notes."""
    yield from (f"WARNING: {line}" for line in found.warnings)
    if not found.compared:
        yield "guard: nothing was compared: the two results have no ratio in common"
    elif not found.warnings:
        yield f"guard: none of {found.compared} ratios fell by more than {100 * FALL:.0f} % and beyond noise"
    if others > BUSY:
        yield f"note: other programs used {others:.0f} % of the CPUs during the run, which moves ratios as well"
    yield from (f"note: {line}" for line in found.notes)


def escaped(line: str) -> str:
    """Write a line as the message of a GitHub workflow command: percent signs and line ends have a meaning there."""
    return line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
