"""dra-search selfcheck."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import click

from dra_runtime.commands.options import PATH, backend_option, json_option, threads_option
from dra_runtime.console import FOUND_WANTING, table
from dra_runtime.encoder import Encoder
from dra_runtime.selfcheck import SelfCheckReport, selfcheck


@click.command("selfcheck")
@click.argument("bundle", type=PATH)
@backend_option
@threads_option
@json_option
def selfcheck_command(bundle: Path, backend: str, threads: int | None, as_json: bool) -> None:
    """Check that BUNDLE is whole and gives the exporter's vectors on this host.

    Exit code 0: it does. 1: it doesn't. 2: the bundle can't be used.
    """
    started = time.perf_counter()
    report = selfcheck(Encoder.open(bundle, backend, threads))
    seconds = time.perf_counter() - started
    if as_json:
        click.echo(json.dumps(_values(report, seconds), indent=2))
    else:
        rows = [(name, f"{p.min_cosine:.7f}", f"{p.max_abs:.2e}", p.pairs) for name, p in report.parts.items()]
        click.echo(table(("part", "min cosine", "max abs", "pairs"), rows))
        click.echo(f"tokens {'equal' if report.tokens_equal else 'DIFFER'}, backend {report.backend}, {seconds:.2f} s")
        click.echo(
            "passed" if report.passed else f"FAILED: every cosine must reach {report.least_cosine}, and tokens be equal"
        )
    if not report.passed:
        raise click.exceptions.Exit(FOUND_WANTING)


def _values(report: SelfCheckReport, seconds: float) -> dict[str, object]:
    return {
        "passed": report.passed,
        "backend": report.backend,
        "tokens_equal": report.tokens_equal,
        "parts": {name: dataclasses.asdict(part) for name, part in report.parts.items()},
        "seconds": round(seconds, 3),
    }
