"""A study of variants: sharing stage 1 changes nothing, a killed study goes on, and the measures are their formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import dra_train.ablate as ablate
from dra_train.ablate import VARIANTS, Task, make_task, resolve, run_task, stage1_done, stage1_key, train_stage1
from dra_train.backbones import model_config, untrained_model
from dra_train.checkpoint import load_checkpoint
from dra_train.cli import main
from dra_train.data import load_cirr
from dra_train.evaluate import evaluate
from dra_train.fit import fit
from dra_train.settings import load_settings
from dra_train.stages import trained_parameters

SMALL = (
    "model.backbone=tiny-vit",
    "model.image_stages=last",
    "stage1.epochs=2",
    "stage2.epochs=2",
    "stage1.batch_size=8",
    "stage2.batch_size=8",
)
Folder = Any


@pytest.fixture
def study(cirr_folder: Callable[..., Folder], tmp_path: Path) -> Callable[..., Task]:
    """Make the task of a variant, by its name, in a study of the small preset."""
    root = cirr_folder().root
    train, val = (load_cirr(root, split) for split in ("train", "val"))
    by_name = {variant.name: variant for variant in VARIANTS}

    def make(name: str = ablate.BASE, *overrides: str, seed: int = 3) -> Task:
        variant = by_name[name]
        settings = load_settings("demo", (*SMALL, *overrides, *variant.overrides))
        cache = tmp_path / "cache"
        return make_task(variant, settings, seed, tmp_path / "runs", train, (), {"val": (val,)}, cache, keep=True)

    return make


def log_of(folder: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]


@pytest.mark.parametrize("name", ["both relations", "explicit only", "implicit only", "no shared layers"])
def test_variant_that_shares_stage_1_equals_a_run_of_its_own(
    study: Callable[..., Task], tmp_path: Path, name: str
) -> None:
    task = study(name)
    first = study("TAC depth 6")  # stage 1 is trained with another variant's settings
    assert first.stage1 == task.stage1
    train_stage1(first)
    torch.rand(7)  # what ran in between must not matter
    result = run_task(task)
    assert result["stage1_shared"] is True
    alone = fit(task.settings, task.dataset, tmp_path / "alone", task.seed, cache=task.cache)
    shared = load_checkpoint(task.folder / "ckpt.pt").model.state_dict()
    assert shared.keys() == alone.state_dict().keys()
    different = [n for n, tensor in alone.state_dict().items() if not torch.equal(tensor, shared[n])]
    assert different == []
    assert log_of(task.folder) == log_of(tmp_path / "alone")
    assert len(log_of(task.folder)) == 4
    measured = result["splits"]["val"]
    assert measured["metrics"] == pytest.approx(evaluate(alone, task.splits["val"][0])["metrics"])
    assert (measured["implicit"] is None) == (name == "explicit only")


@pytest.mark.parametrize("backbone", ["tiny-vit", "tiny-resnet"])
def test_stage_1_is_shared_where_it_is_the_same_and_nowhere_else(study: Callable[..., Task], backbone: str) -> None:
    def key(name: str = ablate.BASE, *overrides: str, seed: int = 3) -> str:
        task = study(name, f"model.backbone={backbone}", *overrides, seed=seed)
        return stage1_key(task.settings, task.dataset, task.validation, seed)

    base = key()
    assert {key(variant.name) for variant in VARIANTS} == {base}
    others = (
        "stage1.epochs=1",
        "stage1.learning_rate=2e-3",
        "loss.logit_scale=10",
        "loss.feature_noise=0.1",
        "loss.negatives=batch",
        "run.precision=bf16",
        'stage1.train=["text", "combiner"]',
    )
    changed = [key(ablate.BASE, override) for override in others]
    assert len({base, key(seed=4), *changed}) == 2 + len(others)
    assert key(ablate.BASE, "stage2.epochs=9") == base
    # A stage 1 that trains the Combiner is another one for a model without it.
    assert key("implicit only", 'stage1.train=["text", "combiner"]') != changed[-1]


def test_stage_1_depends_on_the_data(study: Callable[..., Task]) -> None:
    task = study()
    fewer = replace(task.dataset, queries=task.dataset.queries[1:])
    assert stage1_key(task.settings, fewer, (), 3) != stage1_key(task.settings, task.dataset, (), 3)


def test_implicit_only_changes_no_weight_by_the_explicit_loss(study: Callable[..., Task], tmp_path: Path) -> None:
    """Its explicit loss is of the plain sum, which no weight enters that stage 2 trains."""
    task = study("implicit only")
    model = run_task(task) and load_checkpoint(task.folder / "ckpt.pt").model
    start = untrained_model(model_config(**task.settings.model), task.seed)
    changed = {
        name.split(".")[0]
        for name, tensor in start.state_dict().items()
        if not torch.equal(tensor, model.state_dict()[name])
    }
    assert changed == {"text", "tac", "token_projection"}
    assert model.config.compositor == "sum"
    trained_parameters(model, task.settings.stage2.train)
    query = model.compose(torch.randn(3, 32), model.encode_text(torch.tensor([[49406, 1078, 49407]] * 3)))
    assert not query.requires_grad


def test_killed_study_goes_on_and_finished_runs_are_kept(
    study: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    task = study()
    train_stage1(task)
    assert stage1_done(task)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ablate, "measure_split", killed)
        with pytest.raises(KeyboardInterrupt):
            run_task(task)
    assert not (task.folder / "result.json").exists()
    trained = (task.folder / "ckpt.pt").read_bytes()
    result = run_task(task)  # goes on behind the training
    assert (task.folder / "ckpt.pt").read_bytes() == trained
    with monkeypatch.context() as patch:
        patch.setattr(ablate, "fit", killed)
        assert run_task(task) == result  # nothing is done again


def test_result_of_other_settings_is_never_reused(study: Callable[..., Task]) -> None:
    first = run_task(study())
    for other in (study(ablate.BASE, "stage2.epochs=1"), study(ablate.BASE, "loss.implicit_weight=0.1")):
        assert ablate.finished(other) is None
        assert run_task(other)["key"] != first["key"]
    damaged = study().folder / "result.json"
    damaged.write_text("{")
    assert ablate.finished(study()) is None


def test_checkpoints_are_removed_unless_kept(study: Callable[..., Task]) -> None:
    task = replace(study(ablate.BASE, "stage1.epochs=0", "stage2.epochs=0"), keep=False)
    run_task(task)
    assert sorted(path.name for path in task.folder.iterdir()) == ["log.jsonl", "result.json"]


def test_variants_that_equal_the_base_are_left_out() -> None:
    names = [variant.name for variant, _ in resolve("demo", ("model.tac_layers=4",))]
    assert names[0] == "both relations"
    assert "TAC depth 4" not in names
    assert {"TAC depth 1", "TAC depth 2", "TAC depth 6"} <= set(names)
    assert [v.name for v, _ in resolve("demo", (), ["plain view"])] == ["both relations", "plain view"]
    sums = [variant.name for variant, _ in resolve("demo", ("model.augmentation=sum",))]
    assert "augmentation scaled" in sums
    assert "augmentation sum" not in sums


def test_implicit_recall_is_its_definition() -> None:
    """By plain loops, with texts that several pairs carry, and a tie."""
    torch.manual_seed(0)
    texts = torch.randn(5, 8)
    text_id = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 2, 0])
    relations = texts[text_id] + 1.5 * torch.randn(10, 8)
    texts[4] = texts[3]  # a tie: neither is found
    cosine = [[float(F.cosine_similarity(r, t, dim=0)) for t in texts] for r in relations]
    pair_hits = sum(
        all(row[own] > value + 1e-6 for j, value in enumerate(row) if j != own)
        for row, own in zip(cosine, text_id.tolist(), strict=True)
    )
    text_hits = 0
    for text in range(5):
        column = [cosine[pair][text] for pair in range(10)]
        text_hits += text_id[max(range(10), key=lambda pair: column[pair])].item() == text
    found = ablate.implicit_recall(relations, texts, text_id)
    assert found["pair to text R@1"] == pytest.approx(10 * pair_hits)
    assert found["text to pair R@1"] == pytest.approx(20 * text_hits)
    assert found["pair to text R@10"] == pytest.approx(100)
    assert found["cos(F_v, F_c)"] == pytest.approx(
        sum(row[own] for row, own in zip(cosine, text_id.tolist(), strict=True)) / 10, abs=1e-6
    )
    assert 0 < pair_hits < 8
    collapsed = ablate.implicit_recall(torch.ones(10, 8), torch.ones(5, 8), text_id)
    assert (collapsed["pair to text R@1"], collapsed["text to pair R@1"]) == (0, 0)


def test_texts_that_the_model_cannot_tell_apart_are_one() -> None:
    model = untrained_model(model_config("tiny-vit"))
    distinct, place = ablate.distinct_texts(model, ["As a man", "in red", "as a man", "  as a  MAN", "in red!"])
    assert distinct == ["As a man", "in red", "in red!"]
    assert place.tolist() == [0, 1, 0, 0, 2]


def test_command_makes_a_table_and_goes_on(
    cirr_folder: Callable[..., Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRA_CACHE", str(tmp_path / "cache"))
    root = cirr_folder().root
    arguments = ["ablate", "--preset", "demo", "--dataset", str(root), "--seeds", "0,1", "--only", "explicit only"]
    arguments += [word for override in (*SMALL, "stage1.epochs=1") for word in ("--set", override)]
    output = tmp_path / "ablation.json"
    result = CliRunner().invoke(main, [*arguments, "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert "4 runs, 0 of them finished earlier" in result.stderr
    assert "[2/2] seed 1, stage 1" in result.stderr  # one a seed, not one a run
    study = json.loads(output.read_text())
    assert [(v["name"], len(v["runs"])) for v in study["variants"]] == [("both relations", 2), ("explicit only", 2)]
    assert study["variants"][1]["differences"]["val"]["seeds"] == [0, 1]
    assert "ranks" not in json.dumps(study)
    assert "| explicit only " in result.stdout
    again = CliRunner().invoke(main, [*arguments, "-o", str(output)])
    assert "4 of them finished earlier" in again.stderr
    assert again.stdout == result.stdout
    assert not list(tmp_path.rglob("runs/**/*.pt"))


@pytest.mark.slow
def test_several_processes_find_what_one_finds(cirr_folder: Callable[..., Folder], tmp_path: Path) -> None:
    root = cirr_folder().root
    tables = []
    for jobs in ("1", "2"):
        arguments = ["ablate", "--preset", "demo", "--dataset", str(root), "--seeds", "0", "--only", "plain view"]
        arguments += [word for override in SMALL for word in ("--set", override)]
        arguments += ["--jobs", jobs, "--cache", str(tmp_path / jobs), "-o", str(tmp_path / f"{jobs}.json")]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        tables.append(result.stdout.rpartition("`dra-train ablate")[0])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "must be whole numbers"),
        (["--seeds", "1,1"], "must be different numbers"),
        (["--only", "nonsense"], "is no variant; there are both relations"),
        (["--splits", "nowhere"], "has no split 'nowhere'"),
        (["-o", "no/such/place.json"], "folder of that file doesn't exist"),
        (["--set", "loss.views=sideways"], "loss.views is one of"),
    ],
)
def test_command_refuses_in_one_line(
    cirr_folder: Callable[..., Folder], tmp_path: Path, arguments: list[str], message: str
) -> None:
    common = ["ablate", "--preset", "demo", "--dataset", str(cirr_folder().root), "-o", str(tmp_path / "a.json")]
    result = CliRunner().invoke(main, [*common, *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


def test_list_says_what_would_be_run() -> None:
    result = CliRunner().invoke(main, ["ablate", "--preset", "demo", "--list"])
    assert result.exit_code == 0
    assert result.stdout.startswith("both relations: the preset as it is\n")
    assert len(result.stdout.splitlines()) == len(resolve("demo", ()))
