"""The command dra-bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from PIL import Image

from dra_bench.backends import bundle_encoders, pytorch_towers
from dra_bench.environment import BUSY, cpu_clock, environment, used_by_others
from dra_bench.latency import (
    AGREEMENT,
    INT8_AGREEMENT,
    TEXT,
    Workload,
    check_agreement,
    latency_cells,
    latency_ratios,
    latency_rows,
    ratios_table,
    raw_milliseconds,
    rows_table,
)
from dra_bench.recall import compare_split, recall_report
from dra_bench.timing import LEAST_SAMPLES, Cell, Timings, measure
from dra_runtime.console import FOUND_WANTING, command_group, progress
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output, write_json
from dra_runtime.sessions import checked_threads
from dra_train.checkpoint import Checkpoint, load_checkpoint
from dra_train.commands.dataset_options import DATASET_HELP
from dra_train.data import open_dataset, require_targets

main = command_group(
    "dra-bench",
    """Measure how fast and how faithful a bundle is, beside PyTorch with the same checkpoint.

    \b
    After a run (scripts/quickstart leaves one in runs/quickstart):
      dra-bench latency --bundle bundle/ --checkpoint ckpt.pt -o latency.json
      dra-bench latency --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt
      dra-bench recall  --bundle bundle/ --checkpoint ckpt.pt -o recall.json
      dra-bench report  runs/quickstart
    """,
)

_bundle = click.option(
    "--bundle", required=True, type=click.Path(path_type=Path), help="Bundle folder, from dra-export onnx."
)
_checkpoint = click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="The checkpoint that it was exported from."
)
_threads = click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads of each contender; default: all that are free."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
_output = click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file as well.")


@main.command("latency", short_help="Time every part of a query, PyTorch beside one bundle or several.")
@click.option(
    "--bundle",
    "bundles",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle folder, from dra-export onnx; repeatable.",
)
@_checkpoint
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    default=(1,),
    show_default=True,
    help="Images and texts a call; repeatable.",
)
@click.option("--text", default=TEXT, show_default=True, help="The text of every query.")
@click.option(
    "--samples",
    type=click.IntRange(LEAST_SAMPLES),
    help=f"Samples a row; default: as many as fit into --seconds, from {LEAST_SAMPLES} to 100.",
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="Time for the whole measurement."
)
@_threads
@_json
@_output
def latency_command(
    bundles: tuple[Path, ...],
    checkpoint: Path,
    batches: tuple[int, ...],
    text: str,
    samples: int | None,
    seconds: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Time every part of a query: PyTorch eager beside the bundles, on the CPU.

    All rows are measured in one run and take turns, after warming up, with the garbage collector off. Each starts at
    preprocessed pixels and a string and ends at a numpy vector. PyTorch runs the model as it is used today: float32,
    eager, every text padded to 77 tokens; one more row has its text cut to its length. `query` has a new reference
    image, `query by id` one whose features are known.

    Several bundles, such as one a precision, are compared with PyTorch and with the first float32 one among them.

    p99 of few samples is close to the slowest one: look at the number of samples.
    """
    check_output(output)
    source, encoders = _open_all(bundles, checkpoint, threads)
    pytorch, contenders = pytorch_towers(source.model), bundle_encoders(encoders)
    encoder = encoders[0]
    selftest = encoder.bundle.selftest()
    images = tuple(Image.fromarray(array) for array in selftest["images"])
    work = Workload(images, encoder.preprocess, text)
    surroundings = environment(encoder.threads, shown_command())
    precisions = [e.bundle.manifest.precision for e in encoders]
    agreements = [
        check_agreement(pytorch, contender, work, INT8_AGREEMENT if precision == "int8" else AGREEMENT)
        for contender, precision in zip(contenders, precisions, strict=True)
    ]
    float32 = contenders[precisions.index("fp32")].name if "fp32" in precisions else None
    cells = latency_cells(pytorch, pytorch_towers(source.model, cut=True), contenders, work, sorted(set(batches)))
    click.echo(f"timing {len(cells)} rows in turns on {surroundings['cpu']}, {encoder.threads} threads", err=True)
    before = cpu_clock()
    timings = _measure(cells, samples, seconds)
    others = used_by_others(before, cpu_clock())
    if others is not None and others > BUSY:
        click.echo(
            f"note: other programs used {others:.0f} % of the CPUs meanwhile; measure again without them", err=True
        )
    if not timings.steady:
        click.echo("note: not every row had settled after the warm-up; --seconds gives it more time", err=True)
    rows, ratios = latency_rows(timings), latency_ratios(timings, float32)
    result = {
        "rows": rows,
        "ratios": ratios,
        "environment": {**surroundings, "used_by_others_percent": others, **_identities(source, *encoders)},
        "bundles": [
            {
                "backend": contender.name,
                "bundle": path.resolve().name,
                "bundle_id": contender.encoder.bundle_id,
                "precision": precision,
                "agreement": agreement,
            }
            for contender, path, precision, agreement in zip(contenders, bundles, precisions, agreements, strict=True)
        ],
        "text": text,
        "agreement": {part: min(found[part] for found in agreements) for part in agreements[0]},
        "warmup": {"rounds": timings.warmup_rounds, "steady": timings.steady},
        "raw_ms": raw_milliseconds(timings),
    }
    _deliver(result, output, as_json, f"{rows_table(rows)}\n\n{ratios_table(ratios)}")


@main.command("recall", short_help="Compare the answers of both.")
@_bundle
@_checkpoint
@click.option("--dataset", default="builtin", help=DATASET_HELP)
@click.option(
    "--split", "splits", multiple=True, default=("val",), show_default=True, help="Queries to answer; repeatable."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=0.0,
    show_default=True,
    help="Percentage points that a recall may differ by; 0: equal to the last query.",
)
@_threads
@_json
@_output
def recall_command(
    bundle: Path,
    checkpoint: Path,
    dataset: str,
    splits: tuple[str, ...],
    tolerance: float,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> int:
    """Answer the same queries with PyTorch and with the bundle, and compare.

    Prints both recalls, how many of the ten best answers are the same, and every query whose first answer changed.
    Exit code 1 when a recall differs by more than the tolerance.
    """
    check_output(output)
    source, (encoder,) = _open_all((bundle,), checkpoint, threads)
    parts = [part for split in splits for part in open_dataset(dataset, split)]
    for part in parts:
        require_targets(part, "the comparison")
    results = [compare_split(source.model, encoder, part, tolerance) for part in parts]
    result = {
        "passed": all(split["passed"] for split in results),
        "tolerance": tolerance,
        "splits": results,
        **_identities(source, encoder),
    }
    verdict = "passed" if result["passed"] else "FAILED: a recall differs by more than the tolerance"
    _deliver(result, output, as_json, f"{recall_report(results)}\n{verdict}")
    return 0 if result["passed"] else FOUND_WANTING


@main.command("report", short_help="Write one page about a run.")
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
    from dra_bench.write_report import write_report  # matplotlib and jinja2 load for this command only

    written = write_report(run, output or run / "report.html", dataset, count, seed)
    for path in written:
        click.echo(f"{path} written")


def _open_all(bundles: Sequence[Path], checkpoint: Path, threads: int | None) -> tuple[Checkpoint, tuple[Encoder, ...]]:
    """Open all contenders with the same number of threads.

    UsageError when a bundle came from another checkpoint.
    """
    threads = checked_threads(threads)
    torch.set_num_threads(threads)
    encoders = tuple(Encoder.open(bundle, threads=threads) for bundle in bundles)
    source = load_checkpoint(checkpoint)
    for bundle, encoder in zip(bundles, encoders, strict=True):
        made_from = encoder.bundle.manifest.provenance.get("checkpoint", {}).get("sha256")
        if made_from != source.sha256:
            raise UsageError(
                f"{bundle} was made from another checkpoint than {checkpoint}; give the one it was made from"
            )
    return source, encoders


def _measure(cells: list[Cell], samples: int | None, seconds: float) -> Timings:
    done = 0
    with progress(1000, "latency") as bar:

        def advance(rounds: int, planned: int) -> None:
            nonlocal done
            bar(1000 * rounds // planned - done)
            done = 1000 * rounds // planned

        return measure(cells, samples, seconds, advance=advance)


def _identities(source: Checkpoint, *encoders: Encoder) -> dict[str, Any]:
    return {
        "backbone": source.config.backbone,
        "bundle_id": ", ".join(encoder.bundle_id for encoder in encoders),
        "precision": ", ".join(encoder.bundle.manifest.precision for encoder in encoders),
        "checkpoint_sha256": source.sha256,
    }


def _deliver(result: dict[str, Any], output: Path | None, as_json: bool, text: str) -> None:
    if output:
        write_json(output, result)
        click.echo(f"{output} written", err=True)
    click.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)


def shown_command() -> str:
    """Return the command line as given, with file names in place of paths."""
    context = click.get_current_context()
    words = [context.command_path]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        flag = parameter.opts[-1] if isinstance(parameter, click.Option) else None
        for item in value if isinstance(value, tuple) else (value,):
            shown = item.name if isinstance(item, Path) else f"{item:g}" if isinstance(item, float) else str(item)
            words += [w for w in (flag, None if item is True else f'"{shown}"' if " " in shown else shown) if w]
    return " ".join(words)
