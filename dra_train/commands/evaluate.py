"""dra-train evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from dra_runtime.console import table
from dra_runtime.errors import UsageError
from dra_runtime.files import check_output, write_json
from dra_train.checkpoint import load_checkpoint
from dra_train.commands.dataset_options import DATASET_HELP, reading_options
from dra_train.data import BUILTIN, Dataset, join, open_dataset, require_targets
from dra_train.evaluate import evaluate_all
from dra_train.feature_cache import default_cache
from dra_train.rerank import check_reranks, choose_mu, rerank_result


@click.command("evaluate", short_help="Measure what a checkpoint finds on a data set.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dataset", default="builtin", help=DATASET_HELP)
@click.option("--split", "splits", multiple=True, default=("val",), show_default=True, help="Repeatable.")
@reading_options
@click.option("--rerank", type=click.IntRange(2), metavar="K", help="Also re-rank the first K answers with TAC.")
@click.option("--mu", type=float, help="Weight of re-ranking; default: the best on the training split.")
@click.option("--train-split", default="train", show_default=True, help="Where mu is chosen.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of cached image features, for --rerank.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; a list when there are several results.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON to this file as well.")
def evaluate_command(
    checkpoint: Path,
    dataset: str,
    splits: tuple[str, ...],
    format: str,
    gallery: str,
    image_root: Path | None,
    allow_missing: bool,
    rerank: int | None,
    mu: float | None,
    train_split: str,
    cache: Path | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure the recall of CHECKPOINT, beside what the image alone and the text alone reach.

    Every data set is scored by its own benchmark's protocol: CIRR's R@K and Rsubset@K, FashionIQ's R@10 and R@50 for
    each category and their mean, CIRCO's mAP@K. Your own data is scored as CIRR is.

    \b
      dra-train evaluate runs/demo/ckpt.pt --split val --split val_unseen
      dra-train evaluate ckpt.pt --dataset fashioniq/ --gallery val_union
      dra-train evaluate runs/demo/ckpt.pt --rerank 20
    """
    check_output(output)
    if rerank is None and mu is not None:
        raise UsageError("--mu weighs what --rerank adds; give --rerank K as well, such as --rerank 20")
    source = load_checkpoint(checkpoint)
    if rerank:
        check_reranks(source.model, rerank)

    def opened_split(split: str) -> tuple[Dataset, ...]:
        return open_dataset(
            dataset, split, format=format, gallery=gallery, image_root=image_root, allow_missing=allow_missing
        )

    opened = [opened_split(split) for split in splits]
    for part in (part for parts in opened for part in parts):
        require_targets(part, "evaluation")  # of all splits, before hours are spent on the first
    results = [
        result | {"trained_on": trained_on(source.provenance, result)}
        for parts in opened
        for result in evaluate_all(source.model, parts)
    ]
    if rerank:
        folder = cache or default_cache()
        chosen = None
        if mu is None:
            chosen = choose_mu(source.model, join(opened_split(train_split)), rerank, folder)
            mu = float(chosen["mu"])
        measured = [result for result in results if result.get("category") != "mean"]
        for result, part in zip(measured, (part for parts in opened for part in parts), strict=True):
            result["rerank"] = {**rerank_result(source.model, part, rerank, mu, folder), "chosen_on": chosen}
    content = results[0] if len(results) == 1 else results
    if output:
        write_json(output, content)
    if as_json:
        click.echo(json.dumps(content, indent=2))
        return
    for result in results:
        click.echo(recall_table(result))
    if len(results) > 1:
        click.echo(comparison_table(results))


def trained_on(provenance: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Say which data a checkpoint has learned from, and whether this result is on other data; None if unknown."""
    name = provenance.get("dataset")
    if not isinstance(name, str):
        return None
    return {"dataset": name, "split": provenance.get("split"), "other_dataset": name != result["dataset"]}


def recall_table(result: Mapping[str, Any]) -> str:
    """Lay out one evaluation as a table, baselines and kinds of edit below the composed query."""
    columns = list(result["metrics"])
    rows = [["composed query", result["queries"], *_figures(result["metrics"], columns)]]
    if again := result.get("rerank"):
        label = f"  first {again['k']} re-ranked, mu {again['mu']:g}"
        rows.append([label, result["queries"], *_figures(again["after"], columns)])
    rows += [
        [name.replace("_", " "), result["queries"], *_figures(metrics, columns)]
        for name, metrics in result["baselines"].items()
    ]
    for label, key in (("edits of", "by_attributes"), ("edit:", "by_edit")):
        rows += [[f"  {label} {e}", m["queries"], *_figures(m, columns)] for e, m in result.get(key, {}).items()]
    return "\n".join([_title(result), table(["", "queries", *columns], rows), *_notes(result)]) + "\n"


def comparison_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the composed queries of several evaluations, one below the other."""
    columns = list(results[0]["metrics"])
    rows = [[_name(r), r["queries"], r["gallery"], *_figures(r["metrics"], columns)] for r in results]
    return "compared:\n" + table(["composed queries", "number", "gallery", *columns], rows)


def _name(result: Mapping[str, Any]) -> str:
    return " / ".join(part for part in (result["dataset"], result.get("category"), result["split"]) if part)


def _title(result: Mapping[str, Any]) -> str:
    measures = "mAP and recall" if result.get("format") == "circo" else "recall"
    gallery = f"{result['gallery_name']} gallery" if result.get("gallery_name") else "gallery"
    over = (
        "mean of the categories" if result.get("category") == "mean" else f"a {gallery} of {result['gallery']} images"
    )
    title = f"{_name(result)}: {measures} in % over {over}"
    if result["dataset"] == BUILTIN:
        title += " (demo recalls: they compare runs of this toolkit, not with published figures)"
    return title


def _notes(result: Mapping[str, Any]) -> list[str]:
    notes = []
    if again := result.get("rerank"):
        source = again["chosen_on"]
        notes.append(f"mu was chosen on {source['queries']} queries of {source['split']}" if source else "mu was given")
    source = result.get("trained_on")
    if source and source["other_dataset"]:
        notes.append(f"trained on another data set: {source['dataset']} / {source['split']}")
    missing = result.get("missing", {"count": 0})
    if missing["count"]:
        names = ", ".join(missing["first"]) + ("…" if missing["count"] > len(missing["first"]) else "")
        notes.append(
            f"left out: {missing['count']} missing or unreadable images ({names}) and {missing['dropped_queries']} "
            "queries that need them; not comparable with scores on the whole data set"
        )
    return notes


def _figures(metrics: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    return [f"{metrics[c]:.1f}" if c in metrics else "" for c in columns]
