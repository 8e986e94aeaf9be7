"""What the commands of dra-bench share: their options, how they time, and how they deliver what they found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from dra_bench.environment import BUSY, cpu_clock, used_by_others
from dra_bench.fresh import Probe, Stage, run_probes
from dra_bench.timing import LEAST_SAMPLES, Cell, Timings, measure
from dra_runtime.console import progress
from dra_runtime.encoder import Encoder
from dra_runtime.errors import UsageError
from dra_runtime.files import write_json
from dra_runtime.sessions import checked_threads
from dra_train.checkpoint import Checkpoint, load_checkpoint

bundle_option = click.option(
    "--bundle", required=True, type=click.Path(path_type=Path), help="Bundle folder, from dra-export onnx."
)
bundles_option = click.option(
    "--bundle",
    "bundles",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="Bundle folder, from dra-export onnx; repeatable.",
)
checkpoint_option = click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="The checkpoint that it was exported from."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads of each contender; default: all that are free."
)
samples_option = click.option(
    "--samples",
    type=click.IntRange(LEAST_SAMPLES),
    help=f"Samples a row; default: as many as fit into --seconds, from {LEAST_SAMPLES} to 100.",
)
seconds_option = click.option(
    "--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="Time for the whole measurement."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file as well."
)


def open_all(bundles: Sequence[Path], checkpoint: Path, threads: int | None) -> tuple[Checkpoint, tuple[Encoder, ...]]:
    """Open all contenders with the same number of threads.

    UsageError when a bundle came from another checkpoint.
    """
    threads = checked_threads(threads)
    torch.set_num_threads(threads)
    encoders = tuple(Encoder.open(bundle, threads=threads) for bundle in bundles)
    source = load_checkpoint(checkpoint)
    for bundle, encoder in zip(bundles, encoders, strict=True):
        require_made_from(encoder, bundle, source.sha256, checkpoint)
    return source, encoders


def require_made_from(encoder: Encoder, bundle: Path, sha256: str, checkpoint: Path) -> None:
    """Require that a bundle was made from the checkpoint whose SHA-256 is given, or raise UsageError."""
    if encoder.bundle.manifest.provenance.get("checkpoint", {}).get("sha256") != sha256:
        raise UsageError(f"{bundle} was made from another checkpoint than {checkpoint}; give the one it was made from")


def timed_in_turns(
    cells: Sequence[Cell], samples: int | None, seconds: float, label: str, least_samples: int = LEAST_SAMPLES
) -> tuple[Timings, float | None]:
    """Time all cells under a progress bar; returns also which share of the CPUs other programs used, in percent.

    Notes on stderr say when a measurement is not to be quoted.
    """
    before = cpu_clock()
    with progress_of(label) as advance:
        timings = measure(cells, samples, seconds, least_samples=least_samples, primed=True, advance=advance)
    others = used_by_others(before, cpu_clock())
    note_others(others)
    if not timings.steady:
        click.echo("note: not every row had settled after the warm-up; --seconds gives it more time", err=True)
    if timings.restless:
        calls = timings.samples_ns.size
        click.echo(f"note: other threads of this process computed during {timings.restless} of {calls} calls", err=True)
    return timings, others


def run_in_turns(
    probes: Sequence[Probe], runs: int, label: str
) -> tuple[dict[str, list[Sequence[Stage]]], float | None]:
    """Run each probe in fresh processes under a progress bar.

    Returns the stages of all runs by the probe's name, and which share of the CPUs other programs used.
    """
    found: dict[str, list[Sequence[Stage]]] = {probe.name: [] for probe in probes}
    before = cpu_clock()
    with progress(runs * len(probes), label) as bar:
        for name, stages in run_probes(probes, runs):
            found[name].append(stages)
            bar(1)
    others = used_by_others(before, cpu_clock())
    note_others(others)
    return found, others


@contextmanager
def progress_of(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; yields a function that takes how much is done, and of how much."""
    shown = 0
    with progress(1000, label) as bar:

        def advance(done: int, planned: int) -> None:
            nonlocal shown
            now = 1000 * done // max(planned, 1)
            bar(max(now - shown, 0))
            shown = now

        yield advance


def note_others(others: float | None) -> None:
    """Say on stderr when other programs were busy."""
    if others is not None and others > BUSY:
        click.echo(
            f"note: other programs used {others:.0f} % of the CPUs meanwhile; measure again without them", err=True
        )


def identities(*encoders: Encoder) -> dict[str, Any]:
    """Say which bundles were measured."""
    manifests = [encoder.bundle.manifest for encoder in encoders]
    return {
        "bundle_id": ", ".join(manifest.bundle_id for manifest in manifests),
        "precision": ", ".join(manifest.precision for manifest in manifests),
    }


def model_identities(source: Checkpoint, *encoders: Encoder) -> dict[str, Any]:
    """Say which checkpoint and bundles were measured."""
    return {
        "backbone": source.config.backbone,
        **identities(*encoders),
        "checkpoint_sha256": source.sha256,
    }


def deliver(result: dict[str, Any], output: Path | None, as_json: bool, text: str) -> None:
    """Print a result, and write it to ``output`` where that is asked for."""
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
            if name in ("dataset", "datasets"):  # a folder, or one with its splits, as a text
                shown = shown.rstrip("/").rpartition("/")[2]
            words += [w for w in (flag, None if item is True else f'"{shown}"' if " " in shown else shown) if w]
    return " ".join(words)
