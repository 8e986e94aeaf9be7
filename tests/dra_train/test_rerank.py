"""Re-ranking against one pair of images at a time, how mu is chosen, and the stage that trains TAC for it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from torch import Tensor

import dra_train.fit
from dra_runtime.errors import UsageError
from dra_train import rerank, stages
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint, save_checkpoint
from dra_train.cli import main
from dra_train.data import Dataset, load_cirr
from dra_train.evaluate import Encoded, evaluate
from dra_train.feature_cache import Request, live_outputs
from dra_train.features import text_features
from dra_train.fit import fit
from dra_train.model import DRA
from dra_train.rerank import choose_mu, measure_reranking, relate_first, rerank_result
from dra_train.settings import FitSettings, load_settings
from dra_train.stages import Inputs, Temperatures, near_miss_features, near_miss_losses
from dra_train.triplets import make_triplets

Folder = Any
Settings = Callable[..., FitSettings]
QUICK = ("stage1.epochs=1", "stage2.epochs=2", "stage3.epochs=1", "stage3.batch_size=8")


@pytest.fixture
def model(tiny_checkpoint: Path) -> DRA:
    return load_checkpoint(tiny_checkpoint).model


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *(str(a) for a in arguments)])


def made_up(model: DRA, data: Dataset, ties: bool) -> tuple[Encoded, Tensor]:
    """Return random features, or ones of which many tie, and random feature maps, of which two are equal."""
    generator = torch.Generator().manual_seed(5)
    gallery, composed = (torch.randn(n, 16, generator=generator) for n in (len(data.images), len(data.queries)))
    if ties:
        gallery, composed = (F.pad(v[:, :2].sign(), (0, 14)) for v in (gallery, composed))
    gallery, composed = F.normalize(gallery, dim=-1), F.normalize(composed, dim=-1)
    maps = torch.randn(len(data.images), 4, 256, generator=generator).half()
    maps[1] = maps[0]
    return Encoded(gallery, composed, composed, composed), maps


def by_score(names: list[str], scores: dict[str, float]) -> list[str]:
    return sorted(names, key=lambda name: (-scores[name], name))


@pytest.mark.parametrize("format", ["cirr", "fashioniq"])  # the reference is dropped, or is an answer as any other
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [2, 5, 50])
@torch.inference_mode()
def test_the_first_answers_stand_by_their_sums_and_all_others_as_before(
    cirr_folder: Callable[..., Folder], model: DRA, format: str, ties: bool, k: int
) -> None:
    data = replace(load_cirr(cirr_folder().root, "val"), format=format)
    encoded, maps = made_up(model, data, ties)
    found = relate_first(model, data, encoded, lambda rows: maps[rows], k)
    texts = text_features(model, [q.text for q in data.queries])
    names = list(data.images)
    scores = (encoded.composed @ encoded.gallery.T).numpy()
    moved = 0
    for mu in (0.0, 0.3, 40.0):
        halves = [found.rescore(mu)(scores[rows], rows) for rows in (slice(0, 9), slice(9, 24))]
        for query, text, before, after in zip(data.queries, texts, scores, np.concatenate(halves), strict=True):
            candidates = [n for n in names if format == "fashioniq" or n != query.reference]
            ranked = by_score(candidates, dict(zip(names, before.tolist(), strict=True)))
            sums = {}
            for name in ranked[:k]:
                pair = (model.project_tokens(maps[names.index(n)][None].float()) for n in (query.reference, name))
                cosine = F.cosine_similarity(model.relate(*pair)[0], text, dim=0).item()
                sums[name] = float(before[names.index(name)]) + mu * cosine
            result = by_score(candidates, dict(zip(names, after.tolist(), strict=True)))
            first = result[:k]
            assert set(first) == set(ranked[:k])
            assert result[k:] == ranked[k:]
            if mu == 0:
                assert result == ranked
            for better, worse in itertools.pairwise(first):
                assert sums[better] > sums[worse] - 1e-6 * (1 + mu)
            moved += first != ranked[:k]
    assert moved > 10
    assert found.first.shape == (24, min(k, len(candidates)))


def test_equal_images_stay_in_the_order_of_their_names() -> None:
    found = rerank.Agreements(np.array([[3, 1, 0]]), np.array([[0.1, 0.7, 0.7]], np.float32))
    rescored = found.rescore(0.5)(np.array([[0.5, 0.5, 0.4, 0.6]], np.float32), slice(0, 1))[0]
    assert rescored[0] == rescored[1] > rescored[3] > rescored[2]  # sums 0.85 0.85 0.65, and one that isn't looked at


def test_without_weight_it_measures_what_evaluation_does(
    cirr_folder: Callable[..., Folder], model: DRA, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "val")
    measured = measure_reranking(model, data, 5, (0.0, 2.0), tmp_path)
    assert measured[0.0] == evaluate(model, data)["metrics"]
    assert measured[2.0] != measured[0.0]
    assert measured[2.0]["R@5"] == measured[0.0]["R@5"]  # the first five are the same five
    result = rerank_result(model, data, 5, 2.0, tmp_path)
    assert (result["before"], result["after"]) == (measured[0.0], measured[2.0])
    assert result["change"]["R@1"] == pytest.approx(measured[2.0]["R@1"] - measured[0.0]["R@1"], abs=0.006)
    assert {"mu": 2.0, **measured[2.0]} in result["curve"]


def test_mu_is_the_smallest_of_the_best_by_the_first_metric(
    cirr_folder: Callable[..., Folder], model: DRA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    seen: list[Dataset] = []

    def measured(model: DRA, dataset: Dataset, k: int, mus: tuple[float, ...], cache: Path) -> Any:
        seen.append(dataset)
        return {mu: {"R@1": {0.1: 7.0, 0.3: 7.0}.get(mu, 6.0), "mean": 10 * mu} for mu in mus}

    monkeypatch.setattr(rerank, "measure_reranking", measured)
    chosen = choose_mu(model, data, 5, tmp_path, sample=8)
    assert (chosen["mu"], chosen["metric"], chosen["split"]) == (0.1, "R@1", "train")
    assert seen[0].queries == data.queries[::3]
    assert seen[0].images == data.images
    assert chosen["queries"] == 8


def test_mu_does_not_depend_on_what_is_measured(
    cirr_folder: Callable[..., Folder], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = cirr_folder()
    words = (tiny_checkpoint, "--dataset", folder.root, "--rerank", 4, "--cache", tmp_path / "cache")
    first = json.loads(run(*words, "--json").stdout)
    again = first["rerank"]
    assert again["chosen_on"]["split"] == "train"
    assert again["chosen_on"]["mu"] == again["mu"]
    assert again["before"] == first["metrics"]
    shown = run(*words).stdout
    assert f"first 4 re-ranked, mu {again['mu']:g}" in shown
    assert "mu was chosen on 24 queries of train" in shown

    entries = json.loads(folder.captions("val").read_text())
    targets = [entry["target_hard"] for entry in entries]
    for entry, target in zip(entries, [*targets[5:], *targets[:5]], strict=True):
        if entry["reference"] != target:
            entry["target_hard"] = target
    folder.captions("val").write_text(json.dumps(entries))
    second = json.loads(run(*words, "--json").stdout)
    assert second["metrics"] != first["metrics"]
    assert second["rerank"]["chosen_on"] == again["chosen_on"]

    folder.captions("train").unlink()  # a given mu needs no training split
    given = run(*words, "--mu", 0.25, "--json")
    assert given.exit_code == 0, given.stderr
    assert (json.loads(given.stdout)["rerank"]["mu"], json.loads(given.stdout)["rerank"]["chosen_on"]) == (0.25, None)


def test_what_cannot_be_reranked_is_one_line(
    cirr_folder: Callable[..., Folder], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    root = cirr_folder().root
    save_checkpoint(tmp_path / "plain.pt", untrained_model(model_config("tiny-resnet", tac_layers=0)), {})
    for words, message in (
        ((tmp_path / "plain.pt", "--rerank", 5), "has no vision compositor (tac_layers = 0), so it can't re-rank"),
        ((tiny_checkpoint, "--mu", 0.1), "--mu weighs what --rerank adds; give --rerank K as well"),
    ):
        result = run(*words, "--dataset", root)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
    assert run(tiny_checkpoint, "--dataset", root, "--rerank", 1).exit_code == 2


@pytest.mark.parametrize(
    "overrides",
    [("stage3.train=['tac', 'combiner']",), ("model.tac_layers=0",)],
)
def test_stage_3_of_anything_but_tac_is_refused(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="stage 3 trains the vision compositor alone"):
        load_settings("demo", ("stage3.epochs=1", *overrides))
    with pytest.raises(UsageError, match="near_misses 0 must be a whole number from 1"):
        load_settings("demo", ["loss.near_misses=0"])


@pytest.mark.parametrize(("count", "pool"), [(1, 8), (20, 10)])  # of 12 images, two of which are the query's own
def test_near_misses_are_among_the_first_wrong_answers(
    cirr_folder: Callable[..., Folder],
    tiny_settings: Settings,
    model: DRA,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    pool: int,
) -> None:
    data = load_cirr(cirr_folder().root, "train")
    settings = tiny_settings(f"loss.near_misses={count}", "loss.feature_noise=0").loss
    triplets = make_triplets(model, data, live_outputs(model, Request(data.images, "images")))
    batch = triplets.batch(torch.arange(24), triplets.texts[:, 0])
    agreement, seen = stages.agreement, []

    def watched(model: DRA, reference: Tensor, candidates: Tensor, *rest: Any) -> Tensor:
        seen.append(candidates)
        return agreement(model, reference, candidates, *rest)

    monkeypatch.setattr(stages, "agreement", watched)
    with torch.no_grad():
        texts = model.encode_text(triplets.tokens)[batch.text]
        raw = model.project_image(triplets.images.pooled)
        scores = F.normalize(model.compose(raw[batch.reference], texts), dim=-1) @ F.normalize(raw, dim=-1).T
        for _ in range(20):
            features = near_miss_features(Inputs(model, triplets, settings), batch)
    drawn = torch.stack(seen)  # (20, 24, 1 + near misses)
    assert drawn.shape[2] == 1 + min(count, pool)
    assert torch.equal(drawn[:, :, 0], batch.target.expand(20, -1))
    for row in range(24):
        wrong = [i for i in range(12) if i not in (batch.reference[row], batch.target[row])]
        first = sorted(wrong, key=lambda i, row=row: -scores[row, i].item())[:pool]
        last = scores[row, first[-1]] - 1e-6
        assert all(i in wrong and scores[row, i] >= last for i in drawn[:, row, 1:].flatten().tolist())
        assert len(set(drawn[:, row, 1:].flatten().tolist())) > 4
        assert all(len(set(once)) == len(once) for once in drawn[:, row].tolist())

    agreements, temperatures = features["agreement"].double(), Temperatures(20.0)
    logits = agreements * temperatures.implicit.item()
    expected = -(logits[:, 0] - logits.exp().sum(dim=1).log()).mean()
    losses = near_miss_losses(features, batch, None, settings, temperatures)
    assert losses.parts["near misses"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses.chance["near misses"] == pytest.approx(np.log(1 + min(count, pool)))


def differing(a: Path, b: Path) -> set[str]:
    first, second = (load_checkpoint(folder / "ckpt.pt").model.state_dict() for folder in (a, b))
    return {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])}


def test_stage_3_leaves_the_chosen_epochs_queries_as_they_are(
    cirr_folder: Callable[..., Folder], tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = cirr_folder().root
    data, val = load_cirr(root, "train"), load_cirr(root, "val")
    fit(tiny_settings(*QUICK, "stage3.epochs=0"), data, tmp_path / "two")
    fit(tiny_settings(*QUICK), data, tmp_path / "three")
    assert differing(tmp_path / "two", tmp_path / "three") == {"tac", "token_projection"}
    queries = [evaluate(load_checkpoint(tmp_path / n / "ckpt.pt").model, val)["metrics"] for n in ("two", "three")]
    assert queries[0] == queries[1]

    values = iter(range(100, 0, -1))  # validation falls, so the first epoch of stage 2 is the best
    monkeypatch.setattr(dra_train.fit, "recalls", lambda *_: {"R@1": float(next(values))})
    chosen = ("validation.split=val", "validation.metric=R@1")
    fit(tiny_settings(*QUICK, *chosen, "stage3.epochs=0"), data, tmp_path / "best", validation=[val])
    fit(tiny_settings(*QUICK, *chosen), data, tmp_path / "best and on", validation=[val])
    assert differing(tmp_path / "best", tmp_path / "best and on") == {"tac", "token_projection"}
    assert "combiner" in differing(tmp_path / "best", tmp_path / "two")  # the last epoch's are others
    said = load_checkpoint(tmp_path / "best and on" / "ckpt.pt").provenance["chosen"]
    assert (said["stage"], said["epoch"], said["by"]) == ("stage 2", 1, "val R@1")
    last = json.loads((tmp_path / "best and on" / "log.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], set(last["losses"]), last["val"]) == ("stage 3", {"near misses"}, None)
