"""dra-train ablate."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import click
import torch

from dra_runtime import __version__
from dra_runtime.console import progress
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output, write_json
from dra_runtime.threads import available_threads
from dra_train.ablate import (
    BASE,
    VARIANTS,
    Task,
    finished,
    log_seconds,
    make_task,
    resolve,
    run_task,
    split_outputs,
    stage1_done,
    train_stage1,
)
from dra_train.ablation_table import compare, study_markdown
from dra_train.backbones import model_config, untrained_model
from dra_train.commands.dataset_options import DATASET_HELP, reading_options
from dra_train.data import Dataset, join, open_dataset, require_targets
from dra_train.fit import STATE
from dra_train.settings import preset_names

NAMES = [variant.name for variant in VARIANTS]


@click.command("ablate")
@click.option("--preset", required=True, help=f"The base: {', '.join(preset_names())}, or a TOML file of your own.")
@click.option("--dataset", help=f"{DATASET_HELP} Default: the preset's.")
@reading_options
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated; two or more give a spread.")
@click.option("--splits", default="val", show_default=True, help="Comma-separated: what is measured.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="Run this variant beside the base (see --list); repeatable."
)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change the base; repeatable.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time, one thread each.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of cached image features.")
@click.option("--keep", is_flag=True, help="Keep every run's checkpoint; they fill the disk.")
@click.option("--list", "list_only", is_flag=True, help="Only say what would be run.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default="ablation.json", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the JSON instead of the table.")
def ablate_command(
    preset: str,
    dataset: str | None,
    format: str,
    gallery: str,
    image_root: Path | None,
    allow_missing: bool,
    seeds: str,
    splits: str,
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    jobs: int,
    cache: Path | None,
    keep: bool,
    list_only: bool,
    output: Path,
    as_json: bool,
) -> None:
    """Train variants of a preset over several seeds, and show what each part of the method does.

    \b
      dra-train ablate --preset demo --seeds 0,1,2 --splits val,val_unseen -o ablation.json
      dra-train ablate --preset demo --only "explicit only" --only "implicit only"

    Every finished run is kept beside OUTPUT, so the same command goes on with a study that was killed.
    """
    check_output(output)
    if unknown := [name for name in only if name not in NAMES]:
        raise UsageError(f"--only {unknown[0]!r} is no variant; there are {', '.join(NAMES)}")
    numbers = _seeds(seeds)
    resolved = resolve(preset, overrides, only)
    if list_only:
        for variant, _ in resolved:
            click.echo(f"{variant.name}: {variant.what}")
        return
    base = resolved[0][1]
    source = dataset or base.dataset
    if not source:
        raise UsageError(f"preset {preset} brings no data; name them with --dataset DIR")

    def read(split: str) -> tuple[Dataset, ...]:
        return open_dataset(
            source, split, format=format, gallery=gallery, image_root=image_root, allow_missing=allow_missing
        )

    data = join(read(base.train_split))
    require_targets(data, "training")
    validation = read(base.validation.split) if base.validation.split else ()
    measured = {name: read(name) for name in dict.fromkeys(splits.split(","))}
    for part in (part for parts in (validation, *measured.values()) for part in parts):
        require_targets(part, "measuring")
    folder = output.with_suffix(".runs")
    tasks = [
        make_task(variant, settings, seed, folder, data, validation, measured, cache, keep)
        for seed in numbers
        for variant, settings in resolved
    ]
    todo = [task for task in tasks if finished(task) is None]
    click.echo(f"{len(tasks)} runs, {len(tasks) - len(todo)} of them finished earlier; kept in {folder}", err=True)
    if jobs > 1:
        torch.set_num_threads(1)
    _encode_once(todo)
    first: dict[Path, Task] = {}
    for task in todo:
        if not stage1_done(task):
            first.setdefault(task.stage1, task)
    _run_all(train_stage1, list(first.values()), jobs, "stage 1")
    _run_all(run_task, todo, jobs, "variants")
    stage1_folders = dict.fromkeys(task.stage1 for task in tasks)
    if not keep:
        for path in stage1_folders:
            (path / STATE).unlink(missing_ok=True)
    study = {
        "format": "dra-ablation",
        "version": 1,
        "preset": preset,
        "dataset": data.name,
        "base": BASE,
        "seeds": numbers,
        "splits": list(measured),
        "settings": base.to_dict(),
        "command": _command(preset, dataset, seeds, splits, only, overrides, jobs),
        "environment": {
            "cores": available_threads(),
            "jobs": jobs,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": sys.version.split()[0],
            "dra-toolkit": __version__,
        },
        **_collected(tasks, resolved, list(measured)),
    }
    study["seconds"] += round(sum(log_seconds(path) for path in stage1_folders))
    write_json(output, study)
    click.echo(json.dumps(study, indent=2) if as_json else study_markdown(study))


def _collected(tasks: Sequence[Task], resolved: Sequence[Any], splits: Sequence[str]) -> dict[str, Any]:
    """Gather every variant's results and its differences to the base; ranks stay in the runs' own files."""
    results: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        result = finished(task)
        assert result is not None, "every run is finished by now"
        results.setdefault(task.variant.name, []).append(result)
    variants = []
    for variant, settings in resolved:
        runs = results[variant.name]
        pairs = {split: compare(runs, results[BASE], split) for split in splits} if variant.name != BASE else {}
        variants.append(
            {
                "name": variant.name,
                "what": variant.what,
                "overrides": list(variant.overrides),
                "settings": settings.to_dict(),
                "differences": {split: pair for split, pair in pairs.items() if pair},
                "runs": [_without_ranks(run) for run in runs],
            }
        )
    seconds = sum(sum(run["seconds"].values()) for runs in results.values() for run in runs)
    return {"variants": variants, "seconds": round(seconds)}


def _without_ranks(run: dict[str, Any]) -> dict[str, Any]:
    splits = {name: {k: v for k, v in s.items() if k != "ranks"} for name, s in run["splits"].items()}
    return {**{k: v for k, v in run.items() if k != "key"}, "splits": splits}


def _encode_once(tasks: Sequence[Task]) -> None:
    """Fill the cache before several processes would each do so."""
    seen = set()
    for task in tasks:
        kind = json.dumps([task.settings.model, task.seed if task.settings.model["backbone"] != "demo" else 0])
        if kind not in seen and task.settings.run.cache:
            seen.add(kind)
            model = untrained_model(model_config(**task.settings.model), task.seed)
            for part in (task.dataset, *(part for parts in task.splits.values() for part in parts)):
                split_outputs(model, part, task.cache)


def _run_all(work: Callable[[Task], Any], tasks: Sequence[Task], jobs: int, label: str) -> None:
    """Do all tasks, ``jobs`` at a time."""
    if jobs == 1 or len(tasks) < 2:
        for i, task in enumerate(tasks):
            name = task.variant.name if work is run_task else "stage 1"
            click.echo(f"[{i + 1}/{len(tasks)}] seed {task.seed}, {name}", err=True)
            work(task)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in whatever state they are
    with ProcessPoolExecutor(jobs, mp_context=fresh, initializer=_quiet_process) as pool:
        waiting = [pool.submit(work, task) for task in tasks]
        try:
            with progress(len(tasks), label) as advance:
                for done in as_completed(waiting):
                    done.result()
                    advance(1)
        except BaseException:  # an error or Ctrl-C: what hasn't begun shall not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _quiet_process() -> None:
    """Prepare a process of its own: one thread, and silence, for several would speak at once."""
    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lives


def _seeds(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--seeds {text!r} must be whole numbers, such as 0,1,2") from error
    if len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise UsageError(f"--seeds {text!r} must be different numbers from 0")
    return numbers


def _command(
    preset: str,
    dataset: str | None,
    seeds: str,
    splits: str,
    only: Sequence[str],
    overrides: Sequence[str],
    jobs: int,
) -> str:
    """Return the command that repeats the study."""
    parts = [f"dra-train ablate --preset {preset}", f"--dataset {dataset}" if dataset else ""]
    parts += [f"--seeds {seeds} --splits {splits}", *(f'--only "{name}"' for name in only)]
    parts += [*(f"--set {override}" for override in overrides), f"--jobs {jobs}" if jobs > 1 else ""]
    return " ".join(part for part in parts if part)
