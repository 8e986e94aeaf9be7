"""Train DRA, stage by stage.

    dra-train fit --preset demo --out runs/demo
    dra-train fit --preset demo --dataset my-data --set stage2.epochs=10 --seed 1 --out runs/mine
    torchrun --nproc-per-node 4 -m dra_train fit --preset cirr --dataset cirr --out runs/cirr

Stage 1 warms up the text tower with the query image feature + text feature; stage 2 trains the compositors with the
explicit and the implicit loss (docs/method.md). The image tower's trunk is frozen throughout, so its outputs are
computed once (feature_cache.py). What a stage computes and minimises stands in stages.py, a single step in step.py;
this file is the run: epochs, log, validation, and the state from which a killed run goes on (docs/training.md).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from dra_runtime import __version__
from dra_runtime.console import progress
from dra_runtime.errors import ImageError, UsageError
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.data import Dataset, unreadable_error
from dra_train.diagnosis import diagnose
from dra_train.feature_cache import ImageOutputs, Request, cached_outputs, default_cache, live_outputs
from dra_train.model import DRA
from dra_train.run_log import Meter, RunLog, effective_ranks
from dra_train.settings import FitSettings
from dra_train.stages import RERANK_STAGE, Inputs, Stage, Temperatures, encode_texts, stages, trained_parameters
from dra_train.step import (
    Optimization,
    learning_rate,
    make_optimization,
    random_state,
    set_random_state,
    train_step,
)
from dra_train.train_state import TrainState, check_same_run, learnt_weights, load_state, save_state
from dra_train.triplets import Triplets, fingerprint, make_triplets
from dra_train.validation import Measured, check_metric, recalls, training_sample
from dra_train.workers import Workers, workers

CHECKPOINT, STATE = "ckpt.pt", "train_state.pt"
LOOK_EVERY = {"cpu": 1, "cuda": 20}  #: steps after which losses are read: a GPU waits while they are


@dataclass(frozen=True)
class Run:
    """What stays the same throughout a run."""

    settings: FitSettings
    out: Path
    seed: int
    team: Workers
    model: DRA
    data: Triplets
    temperatures: Temperatures
    state: TrainState  #: this one changes: it is where the run stands
    log: RunLog | None  #: of the first process
    validation: tuple[Measured, ...]
    sample: Measured | None  #: of the training data, measured beside the validation
    provenance: Mapping[str, Any]


def fit(
    settings: FitSettings,
    dataset: Dataset,
    out: Path,
    seed: int = 0,
    *,
    start: DRA | None = None,
    origin: str = "",
    validation: Sequence[Dataset] = (),
    cache: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    until: int | None = None,
) -> DRA:
    """Train a model on ``dataset`` and write ``out/ckpt.pt`` and ``out/log.jsonl``; returns the model of ckpt.pt.

    The same settings, seed, library versions, number of processes and of threads give the same weights.

    Parameters
    ----------
    settings, dataset, out, seed
        What is learnt from what; the folder is made.
    start, origin
        A model to start from in place of an untrained one, and a word on where it comes from (a hash, say).
    validation
        Data sets on which the best epoch is chosen, as ``settings.validation`` says.
    cache
        Folder of the image trunk's outputs; default: `default_cache`.
    resume
        Go on where a killed run in ``out`` stood; start where there is none.
    overwrite
        Replace an earlier run in ``out``.
    until
        Stop behind this stage, 1 or 2, and leave the state from which ``resume`` goes on.

    Raises
    ------
    UsageError
        ``out`` can't be used, or holds another run.
    TrainingError
        The loss isn't finite any more.
    """
    with workers(settings.run.device) as team:
        identity = run_identity(settings, dataset, seed, origin, team.count)
        state = claim(out, identity, team, resume, overwrite)
        if state.finished:
            return load_checkpoint(out / CHECKPOINT).model
        model = (start or untrained_model(model_config(**settings.model), seed)).to(team.device)

        def outputs(data: Dataset, label: str, maps: bool) -> ImageOutputs:
            request = Request(data.images, label, maps, quiet=not team.main)
            try:
                if not settings.run.cache:
                    return live_outputs(model, request)
                if team.local_rank:
                    team.wait()  # the first process of each machine computes what is missing
                found = cached_outputs(model, request, cache or default_cache())
            except ImageError as error:  # the first; tell about all of them at once
                raise unreadable_error(data) or error from error
            if not team.local_rank:
                team.wait()
            return found

        data = make_triplets(model, dataset, outputs(dataset, "training images", model.has_tac))
        model.standardize(data.images.pooled.to(team.device))
        measured = tuple(Measured(d, outputs(d, f"images of {d.split}", False).pooled) for d in validation)
        gallery = max((len(m.dataset.images) for m in measured), default=0)
        sample = training_sample(dataset, data.images.pooled, gallery) if measured else None
        torch.manual_seed(seed)
        temperatures = Temperatures(settings.loss.logit_scale).to(team.device)
        provenance = {
            "made_by": "dra-train fit",
            "dataset": dataset.name,
            "split": dataset.split,
            "settings": settings.to_dict(),
            "seed": seed,
            "processes": team.count,
            **({"start": origin} if origin else {}),
            **({"missing": list(dataset.missing)} if dataset.missing else {}),
            "versions": {"dra-toolkit": __version__, "torch": str(torch.__version__)},
        }
        if state.model:
            model.load_state_dict(state.model, strict=False)
            temperatures.load_state_dict(state.temperatures)
            set_random_state(state.random, team.device)
        log = RunLog(out, state.log_bytes, settings.run.tensorboard) if team.main else None
        run = Run(settings, out, seed, team, model, data, temperatures, state, log, measured, sample, provenance)
        if measured:
            check_metric(settings.validation.metric, recalls(model, measured[:1]))
        try:
            train(run, until)
        finally:
            if log:
                log.close()
        team.wait()
        return load_checkpoint(out / CHECKPOINT).model if state.best else model.cpu().eval()


def run_identity(
    settings: FitSettings, dataset: Dataset, seed: int, origin: str = "", processes: int = 1
) -> dict[str, Any]:
    """Return what a run is told apart by: it goes on only where all of it is the same."""
    return {
        "settings": settings.to_dict(),
        "seed": seed,
        "data": fingerprint(dataset),
        "start": origin,
        "processes": processes,
    }


def claim(out: Path, identity: Mapping[str, Any], team: Workers, resume: bool, overwrite: bool) -> TrainState:
    """Make the run's folder, before the minutes of work whose result goes there, and return where the run stands."""
    path = out / STATE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            if team.main:
                path.unlink(missing_ok=True)
                shutil.rmtree(out / "tensorboard", ignore_errors=True)
            team.wait()
            return TrainState(identity)
    except OSError as error:
        raise UsageError(f"{out} can't be the run's folder: {error}") from error
    if not path.exists():
        if not resume and (out / CHECKPOINT).exists():
            raise UsageError(f"{out} holds a {CHECKPOINT} already; name another --out, or replace it with --overwrite")
        return TrainState(identity)
    state = load_state(path)
    if not resume:
        where = (
            "a finished run"
            if state.finished
            else f"a run that stopped in stage {state.stage + 1}, epoch {state.epoch + 1}"
        )
        way = "" if state.finished else "go on with --resume, "
        raise UsageError(f"{out} holds {where}; {way}name another --out, or replace it with --overwrite")
    check_same_run(state, identity, path)
    return state


def train(run: Run, until: int | None = None) -> None:
    """Go through the stages that are left, and write the checkpoint; stop early behind stage ``until``."""
    state = run.state
    todo = stages(run.settings)
    steps = [stage.settings.epochs * math.ceil(len(run.data) / stage.settings.batch_size) for stage in todo]
    with progress(sum(steps), "training", hidden=not run.team.main) as advance:
        for number in range(state.stage, len(todo)):
            advance(sum(steps[:number]) if number == state.stage else 0)
            if todo[number].name == RERANK_STAGE and not (state.epoch or state.step):
                take_chosen_epoch(run)
            run_stage(run, todo[number], steps[number], advance)
            state.stage, state.epoch, state.optimizer, state.scaler = number + 1, 0, {}, {}
            save(run, None)
            if number + 1 == until:
                return
    if not run.team.main:
        return
    if not state.best or todo[-1].name == RERANK_STAGE:  # which leaves the chosen epoch's queries as they are
        ends = todo[-1]
        chosen = state.best or {"by": "last epoch", "stage": ends.name, "epoch": ends.settings.epochs}
        save_checkpoint(run.out / CHECKPOINT, run.model, {**run.provenance, "chosen": chosen})
    save_state(run.out / STATE, TrainState(state.identity, stage=state.stage, best=state.best, finished=True))


def take_chosen_epoch(run: Run) -> None:
    """Give every process the weights of the epoch that validation chose, if it did: the first alone knows."""
    known = torch.tensor([bool(run.state.best)], dtype=torch.int64, device=run.team.device)
    if run.team.gather(known, run.team.count)[0]:  # which also waits for the first one to have written them
        run.model.load_state_dict(load_checkpoint(run.out / CHECKPOINT).model.state_dict())


def run_stage(run: Run, stage: Stage, steps: int, advance: Callable[..., None]) -> None:
    """Train the stage's parts of the model in place, epoch by epoch, from where the run's state says."""
    settings, state, model, device = run.settings, run.state, run.model, run.team.device
    parameters = trained_parameters(model, stage.settings.train)
    precision = settings.run.precision
    optimization = make_optimization(stage, parameters, run.temperatures, device, precision)
    if state.optimizer:
        optimization.optimizer.load_state_dict(state.optimizer)
        optimization.scaler.load_state_dict(state.scaler)
    model.train()
    model.visual.eval()  # frozen: its batch norms keep their statistics, its outputs were computed once
    learns_text = "text" in stage.settings.train
    model.text.set_grad_checkpointing(settings.run.checkpoint_activations and learns_text)
    frozen_text = None if learns_text else all_texts(model, run.data)
    inputs = Inputs(model, run.data, settings.loss, frozen_text)
    saved = time.monotonic()
    per_epoch = math.ceil(len(run.data) / stage.settings.batch_size)
    advance(state.epoch * per_epoch + state.step)

    while state.epoch < stage.settings.epochs:
        began = time.monotonic() - state.seconds
        if state.order is None or state.texts is None:
            state.order, state.texts = run.data.draw()
        meter = Meter(state.sums, f"{stage.name}, epoch {state.epoch + 1}", stage.name.replace(" ", ""))
        batches = state.order.split(stage.settings.batch_size)
        for rows in batches[state.step :]:
            done = state.epoch * per_epoch + state.step
            batch = run.data.batch(rows, state.texts)
            rate = learning_rate(stage, done, steps)
            with own_random_numbers(run.team, run.seed, state.stage, done):
                losses, features, norm = train_step(stage, inputs, batch, optimization, run.team, precision, rate)
            meter.add(losses, norm, len(batch) / len(run.data))
            state.step += 1
            if state.step % LOOK_EVERY[device.type] == 0 or state.step == per_epoch:
                meter.read()
            advance(1, f"{stage.name}, epoch {state.epoch + 1} of {stage.settings.epochs}, loss {meter.last:.3f}")
            if time.monotonic() - saved >= 60 * settings.run.save_minutes and state.step < per_epoch:
                meter.read()
                state.seconds = time.monotonic() - began
                save(run, optimization)
                saved = time.monotonic()
        entry = {
            "stage": stage.name,
            "epoch": state.epoch + 1,
            "epochs": stage.settings.epochs,
            "step": done + 1,
            **meter.summary(),
            "learning_rate": rate,
            "logit_scale": run.temperatures.explicit.item(),
            "implicit_logit_scale": run.temperatures.implicit.item(),
            "effective_rank": effective_ranks(features, run.data.images.pooled),
            "seconds": round(time.monotonic() - began, 2),
        }
        state.epoch += 1
        state.step, state.order, state.texts, state.sums, state.seconds = 0, None, None, {}, 0.0
        finish_epoch(run, stage, entry)
        if time.monotonic() - saved >= 60 * settings.run.save_minutes:
            save(run, optimization)
            saved = time.monotonic()
    model.eval()


def finish_epoch(run: Run, stage: Stage, entry: dict[str, Any]) -> None:
    """Validate, keep the best checkpoint, and write the log's entry; the first process does it for all."""
    if run.log is None:
        return
    state, validation = run.state, run.settings.validation
    composes = "combiner" in stage.settings.train or run.model.config.compositor == "sum"
    due = state.epoch % validation.every == 0 or state.epoch == stage.settings.epochs
    entry |= {"train": None, "val": None}
    if run.sample and composes and due:
        entry |= {"train": recalls(run.model, [run.sample]), "val": recalls(run.model, run.validation)}
        value = entry["val"][validation.metric]
        if value > state.best.get("value", -math.inf):
            chosen = {"by": f"{validation.split} {validation.metric}", "value": value}
            state.best = {**chosen, "stage": stage.name, "epoch": state.epoch}
            save_checkpoint(run.out / CHECKPOINT, run.model, {**run.provenance, "chosen": state.best})
    entry["findings"] = diagnose([*run.log.entries, entry])
    for finding in entry["findings"]:
        click.echo(f"note: {finding}", err=True)
    run.log.append(entry)


def save(run: Run, optimization: Optimization | None) -> None:
    """Write the state from which the run can go on."""
    if run.log is None:
        return
    state = run.state
    state.random = random_state(run.team.device)
    state.model, state.temperatures = learnt_weights(run.model), run.temperatures.state_dict()
    if optimization:
        state.optimizer, state.scaler = optimization.optimizer.state_dict(), optimization.scaler.state_dict()
    state.log_bytes = run.log.length
    save_state(run.out / STATE, state)


@torch.no_grad()
def all_texts(model: DRA, data: Triplets) -> Tensor:
    """Encode every distinct text (U, D) once, onto the CPU: for a stage in which the text tower doesn't learn."""
    rows = torch.arange(len(data.tokens)).split(256)
    return torch.cat([encode_texts(model, data, batch).cpu() for batch in rows])


@contextmanager
def own_random_numbers(team: Workers, *step: int) -> Iterator[None]:
    """Give each of several processes random numbers of its own for a step, the same whenever the step is done.

    Afterwards all are again where they were, so that they draw the same epochs.
    """
    if team.count == 1:
        yield
        return
    common = random_state(team.device)
    torch.manual_seed(_mix(*step, team.rank))
    yield
    set_random_state(common, team.device)


def _mix(*numbers: int) -> int:
    """Return one seed from several numbers."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return seed
