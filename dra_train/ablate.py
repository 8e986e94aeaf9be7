"""Which part of the method does what: train variants over seeds, and measure all of them alike.

A study is a list of variants, each a preset with a few settings changed, and a list of seeds. Every finished
(variant, seed) is kept in the study's folder, so a killed study goes on. Work that variants share is done once: the
frozen trunk's outputs come from the cache, and stage 1 is trained once for all variants in which it is the same.

When is stage 1 the same? It reads the towers' initial weights, the loss settings that concern it, its own settings,
the data and the seed; the random numbers that it consumes depend on nothing else, because training seeds PyTorch
before stage 1, after the model was built. `stage1_key` hashes all of that, so variants with the same key have the same
weights, temperatures and random state at the end of stage 1, bit for bit, and each may go on from one state. A test
compares such a variant with a run of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dra_runtime.files import write_json
from dra_train.backbones import model_config, untrained_model
from dra_train.data import Dataset
from dra_train.evaluate import describe, encode, rank_all
from dra_train.feature_cache import ImageOutputs, Request, cached_outputs, default_cache
from dra_train.features import text_features, tokenize
from dra_train.fit import CHECKPOINT, STATE, fit, run_identity
from dra_train.metrics import Columns, measure, measure_by_attributes
from dra_train.model import DRA
from dra_train.settings import FitSettings, load_settings
from dra_train.train_state import load_state, save_state
from dra_train.triplets import fingerprint

RESULT, LOG = "result.json", "log.jsonl"
#: Settings that stage 1 doesn't read. Any other counts as read, new ones too: sharing too little is only slower.
LOSS_OF_STAGE_2 = ("views", "implicit_weight")
MODEL_OF_STAGE_2 = (
    *("tac_layers", "tac_heads", "share_layers", "share_streams", "augmentation"),
    *("compositor", "combiner_projection", "combiner_hidden", "dropout"),
)
PARTS_OF_STAGE_2 = {"combiner": ("combiner.",), "tac": ("tac.", "token_projection.")}  #: prefixes of their weights
PAIRS = 256  #: related at once
HITS = {"cirr": 1, "jsonl": 1, "fashioniq": 10, "circo": 5}  #: K of the recall whose hits are compared query by query


@dataclass(frozen=True)
class Variant:
    """A preset with a few settings changed."""

    name: str
    what: str  #: for people: what is different
    overrides: tuple[str, ...] = ()


BASE = "both relations"
VARIANTS = (
    Variant(BASE, "the preset as it is"),
    Variant("explicit only", "no TAC, no implicit loss: a Combiner over stage 1's features", ("model.tac_layers=0",)),
    Variant("explicit, with F_v", "TAC learns from the compensated view alone", ("loss.implicit_weight=0",)),
    Variant(
        "implicit only",
        "no Combiner: TAC learns from the implicit loss alone, and the query is the sum of image and text feature",
        ("model.compositor=sum", "loss.views=plain", 'stage2.train=["tac"]'),
    ),
    Variant("no shared layers", "each TAC layer has weights of its own", ("model.share_layers=false",)),
    *(Variant(f"TAC depth {n}", f"tac_layers = {n}", (f"model.tac_layers={n}",)) for n in (1, 2, 4, 6)),
    Variant("compensated view", "the literal reading: only q(f_r, F_c + F_v) is trained", ("loss.views=compensated",)),
    Variant("plain view", "only q(f_r, F_c) is trained: F_v meets the implicit loss alone", ("loss.views=plain",)),
    Variant("augmentation sum", "F_c + F_v as it is", ("model.augmentation=sum",)),
    Variant("augmentation scaled", "F_v brought to F_c's length before it is added", ("model.augmentation=scaled",)),
)


@dataclass(frozen=True)
class Task:
    """One variant with one seed: all that it takes to run it, in this process or another."""

    variant: Variant
    settings: FitSettings
    seed: int
    folder: Path  #: of the run
    stage1: Path  #: folder of the stage 1 that it starts from
    dataset: Dataset
    validation: tuple[Dataset, ...]
    splits: Mapping[str, tuple[Dataset, ...]]
    cache: Path | None
    keep: bool  #: its checkpoint


def resolve(preset: str, overrides: Sequence[str], only: Sequence[str] = ()) -> list[tuple[Variant, FitSettings]]:
    """Return the variants with their settings, the base first; what equals an earlier one is left out."""
    found: list[tuple[Variant, FitSettings]] = []
    for variant in VARIANTS:
        settings = load_settings(preset, (*overrides, *variant.overrides))
        if variant.name != BASE and only and variant.name not in only:
            continue
        if all(settings.to_dict() != other.to_dict() for _, other in found):
            found.append((variant, settings))
    return found


def stage1_key(settings: FitSettings, dataset: Dataset, validation: Sequence[Dataset], seed: int) -> str:
    """Hash everything that stage 1 depends on."""
    model = untrained_model(model_config(**settings.model), seed)
    early = bool(PARTS_OF_STAGE_2.keys() & set(settings.stage1.train))
    unread = _of_stage_2(settings) if not validation else ()
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not name.startswith(unread):
            digest.update(name.encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    loss = {name: value for name, value in asdict(settings.loss).items() if name not in LOSS_OF_STAGE_2}
    facts = {
        "stage1": asdict(settings.stage1),
        "model": {name: value for name, value in settings.model.items() if early or name not in MODEL_OF_STAGE_2},
        "loss": loss,
        "run": {"precision": settings.run.precision, "device": settings.run.device},
        "preprocess": model.config.preprocess.to_dict(),
        "validation": [asdict(settings.validation), *map(fingerprint, validation)],
        "compositor": settings.model.get("compositor", "combiner") if validation else "",  # a sum is validated at once
        "data": fingerprint(dataset),
        "seed": seed,
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _of_stage_2(settings: FitSettings) -> tuple[str, ...]:
    """Return the prefixes of the weights that stage 1 neither reads nor changes."""
    parts = {part: names for part, names in PARTS_OF_STAGE_2.items() if part not in settings.stage1.train}
    return tuple(name for names in parts.values() for name in names)


def make_task(
    variant: Variant,
    settings: FitSettings,
    seed: int,
    folder: Path,
    dataset: Dataset,
    validation: Sequence[Dataset],
    splits: Mapping[str, tuple[Dataset, ...]],
    cache: Path | None,
    keep: bool,
) -> Task:
    """Say where a variant's run and its stage 1 lie in the study's ``folder``."""
    of_seed = folder / f"seed{seed}"
    name = "".join(letter if letter.isalnum() else "-" for letter in variant.name)
    stage1 = of_seed / f"stage1-{stage1_key(settings, dataset, validation, seed)}"
    return Task(variant, settings, seed, of_seed / name, stage1, dataset, tuple(validation), splits, cache, keep)


def train_stage1(task: Task) -> None:
    """Train the stage 1 that ``task`` starts from; where it was killed, it goes on."""
    fit(
        task.settings,
        task.dataset,
        task.stage1,
        task.seed,
        validation=task.validation,
        cache=task.cache,
        resume=same_run(task, task.stage1),
        overwrite=not same_run(task, task.stage1),
        until=1,
    )


def stage1_done(task: Task) -> bool:
    """Tell whether the stage 1 that ``task`` starts from is complete; its folder's name is its key."""
    path = task.stage1 / STATE
    return path.is_file() and load_state(path).stage >= 1


def same_run(task: Task, folder: Path) -> bool:
    """Tell whether a folder holds a run with exactly this task's settings, seed and data."""
    path = folder / STATE
    return path.is_file() and _plain(load_state(path).identity) == _plain(task_identity(task))


def task_identity(task: Task) -> dict[str, Any]:
    """Return what the task's run is told apart by."""
    return run_identity(task.settings, task.dataset, task.seed)


def branch(task: Task) -> None:
    """Put the end of stage 1 into the task's own folder, as if its run had just come there.

    Combiner and TAC stay the variant's own initial ones, which stage 1 doesn't change unless it trains them.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    for name in (LOG, CHECKPOINT):
        (task.folder / name).unlink(missing_ok=True)
        if (task.stage1 / name).exists():
            shutil.copyfile(task.stage1 / name, task.folder / name)
    state = load_state(task.stage1 / STATE)
    untouched = _of_stage_2(task.settings)
    weights = {name: tensor for name, tensor in state.model.items() if not name.startswith(untouched)}
    save_state(task.folder / STATE, replace(state, identity=task_identity(task), model=weights))


def run_task(task: Task) -> dict[str, Any]:
    """Train and measure one variant with one seed, or return what an earlier study found; kept as result.json."""
    if (done := finished(task)) is not None:
        return done
    start = time.perf_counter()
    shared = stage1_done(task)
    if not same_run(task, task.folder) and shared:
        branch(task)
    resume = same_run(task, task.folder)
    model = fit(
        task.settings,
        task.dataset,
        task.folder,
        task.seed,
        validation=task.validation,
        cache=task.cache,
        resume=resume,
        overwrite=not resume,
    )
    trained = time.perf_counter() - start
    splits = {name: measure_split(model, parts, task.cache) for name, parts in task.splits.items()}
    measuring = time.perf_counter() - start - trained
    result = {
        "key": task_key(task),
        "seed": task.seed,
        "stage1_shared": shared,
        "seconds": {"stage 2" if shared else "training": round(trained, 1), "measuring": round(measuring, 1)},
        "findings": _last_findings(task.folder / LOG),
        "splits": splits,
    }
    write_json(task.folder / RESULT, result)
    if not task.keep:
        for name in (CHECKPOINT, STATE):
            (task.folder / name).unlink(missing_ok=True)
    return result


def finished(task: Task) -> dict[str, Any] | None:
    """Return the task's result where there is one of the same settings, seed and data."""
    try:
        result: dict[str, Any] = json.loads((task.folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("key") == task_key(task) else None


def task_key(task: Task) -> str:
    """Hash what a result depends on: the run, and what it is measured on."""
    splits = {name: [fingerprint(part) for part in parts] for name, parts in task.splits.items()}
    facts = {"run": task_identity(task), "splits": splits, "validation": [fingerprint(v) for v in task.validation]}
    return hashlib.sha256(json.dumps(_plain(facts), sort_keys=True).encode()).hexdigest()[:32]


def measure_split(model: DRA, parts: Sequence[Dataset], cache: Path | None) -> dict[str, Any]:
    """Measure a split: recalls by its protocol, every query's rank, and how well the implicit relation is learnt."""
    results = []
    for part in parts:
        outputs = split_outputs(model, part, cache)
        results.append(_measure_part(model, part, outputs))
    first = results[0]
    return {
        "about": describe(parts[0]) | {"queries": sum(len(part.queries) for part in parts)},
        "metrics": _mean([r["metrics"] for r in results]),
        "by_attributes": first["by_attributes"] if len(parts) == 1 else {},
        "implicit": _mean([r["implicit"] for r in results]) if model.has_tac else None,
        "hit_at": HITS[parts[0].format],
        "ranks": [rank for r in results for rank in r["ranks"]],
    }


def split_outputs(model: DRA, dataset: Dataset, cache: Path | None) -> ImageOutputs:
    """Return the trunk's outputs for a data set's images, from the cache."""
    request = Request(dataset.images, f"images of {dataset.split}", maps=model.has_tac)
    return cached_outputs(model, request, cache or default_cache())


@torch.inference_mode()
def _measure_part(model: DRA, dataset: Dataset, outputs: ImageOutputs) -> dict[str, Any]:
    names = list(dataset.images)
    row = {name: i for i, name in enumerate(names)}
    reference = torch.tensor([row[q.reference] for q in dataset.queries])
    target = torch.tensor([row[q.target] for q in dataset.queries])
    distinct, text_id = distinct_texts(model, [q.text for q in dataset.queries])
    encoded = encode(model, dataset, outputs.pooled)
    ranks = rank_all(encoded.composed, encoded.gallery, dataset, Columns.of(names))
    texts = text_features(model, distinct)
    implicit = {}
    if outputs.maps is not None and model.has_tac:
        relations = []
        for rows in torch.arange(len(reference)).split(PAIRS):
            pair = (model.project_tokens(outputs.maps(i[rows]).float()) for i in (reference, target))
            relations.append(model.relate(*pair))
        implicit = implicit_recall(torch.cat(relations), texts, text_id)
    return {
        "metrics": measure(ranks, dataset.format),
        "by_attributes": measure_by_attributes(ranks, dataset.queries, dataset.format),
        "implicit": implicit,
        "ranks": ranks.target.tolist(),
    }


def distinct_texts(model: DRA, texts: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the texts that differ for the model (U), which knows no capitals, and each one's place in them (N,)."""
    rows = [tuple(row) for row in tokenize(model, texts).tolist()]
    place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    first = dict(zip(reversed(rows), reversed(texts), strict=True))
    return [first[row] for row in place], torch.tensor([place[row] for row in rows])


def implicit_recall(relations: Tensor, texts: Tensor, text_id: Tensor) -> dict[str, float]:
    """Measure in percent how well F_v tells what was said.

    ``relations`` (Q, D) of all pairs, ``texts`` (U, D) the distinct texts' features, ``text_id`` (Q,) each pair's. A
    pair's text among all U, and a text's pair among all Q, where every pair with that text is right. Texts that say
    the same in other words count as different: these figures are lower bounds.
    """
    cosines = F.normalize(relations, dim=-1) @ F.normalize(texts, dim=-1).T  # (Q, U)
    own = cosines.gather(1, text_id[:, None])
    ranks = (cosines >= own).sum(dim=1) - 1  # a tie counts as wrong: features that have collapsed find nothing
    is_own = text_id[:, None] == torch.arange(len(texts))  # (Q, U)
    best_own = cosines.masked_fill(~is_own, -torch.inf).amax(dim=0)  # (U,)
    right = best_own > cosines.masked_fill(is_own, -torch.inf).amax(dim=0)
    return {
        "texts": float(len(texts)),
        "pair to text R@1": 100 * (ranks < 1).float().mean().item(),
        "pair to text R@10": 100 * (ranks < 10).float().mean().item(),
        "text to pair R@1": 100 * right.float().mean().item(),
        "cos(F_v, F_c)": own.mean().item(),
    }


def _mean(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(sum(m[name] for m in metrics) / len(metrics), 4) for name in metrics[0]}


def log_seconds(folder: Path) -> float:
    """Return how long a run's epochs took, by its log."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return sum(float(json.loads(line).get("seconds", 0)) for line in lines)


def _last_findings(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return list(json.loads(lines[-1]).get("findings", [])) if lines else []


def _plain(values: Mapping[str, Any]) -> Any:
    """Return what a JSON file would give back: tuples and lists are the same."""
    return json.loads(json.dumps(values))
