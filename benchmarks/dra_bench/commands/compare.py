"""dra-bench compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dra_bench.commands.common import deliver, json_option, output_option
from dra_bench.comparable import warnings
from dra_bench.compare import compare_figures, comparison_table, comparison_to_dict
from dra_bench.compare_recalls import compare_recalls, recall_changes_table, recall_changes_to_dict
from dra_bench.run_figures import read_result, run_figures
from dra_runtime.console import FOUND_WANTING
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output


@click.command("compare", short_help="Say what became slower or worse between two results.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--limit",
    type=click.FloatRange(0, 1000),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="A ratio that changed by more, and beyond noise, counts.",
)
@json_option
@output_option
def compare_command(a: Path, b: Path, limit: float, as_json: bool, output: Path | None) -> int:
    """Compare two results of one command, A before and B now.

    \b
      dra-bench latency --bundle bundle/ --checkpoint ckpt.pt -o before.json
      dra-bench latency --bundle bundle/ --checkpoint ckpt.pt -o now.json
      dra-bench compare before.json now.json

    Of latency, load and growth, the ratios to PyTorch eager inside each run are judged: a machine that is slower today
    is so for all contenders. Times stand beside them, and don't count. Each change has a 95 % interval, from resamples
    of both runs; where that holds 1, the change is noise. Of recall, every recall is judged by the limits of
    dra-export verify.

    The verdict stands first. Exit code 1 when something is slower, or finds less, beyond limit and noise. What makes
    the runs doubtful to compare, such as another CPU or other versions, is named; different models are an error.
    """
    check_output(output)
    (kind, first), (other, second) = read_result(a), read_result(b)
    if kind != other:
        raise UsageError(f"{a.name} is a result of dra-bench {kind}, {b.name} one of {other}; give two of one command")
    doubts = warnings(kind, first, second)
    if kind == "recall":
        changes, only_a, only_b = compare_recalls(first, second)
        result: dict[str, Any] = recall_changes_to_dict(changes, only_a, only_b)
        tables = recall_changes_table(changes)
    else:
        found = compare_figures(run_figures(kind, first, seed=0), run_figures(kind, second, seed=1), limit)
        result = comparison_to_dict(found)
        mood = f"a: {a.name}, b: {b.name}; the machine was {found.mood:.2f} times as fast in b (median of all rows)"
        tables = f"{mood}\n\n{comparison_table(found)}"
    result = {"kind": kind, "a": a.name, "b": b.name, "warnings": doubts, **result}
    lines = [*result["verdict"], *(f"warning: {line}" for line in doubts), "", tables]
    for name, keys in ((a, result["only_in_a"]), (b, result["only_in_b"])):
        lines += [f"only in {name.name}: {', '.join(filter(None, key))}" for key in keys]
    deliver(result, output, as_json, "\n".join(lines))
    return 0 if result["passed"] else FOUND_WANTING
