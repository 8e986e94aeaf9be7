"""Write docs/results.md and the README's tables from the JSON files in benchmarks/results/MACHINE.

python scripts/render_results.py MACHINE            writes both
python scripts/render_results.py MACHINE --check    exits with 1 if a figure in them isn't the JSON's
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from dra_bench.contender_table import contender_table
from dra_bench.contenders.backend import PYTORCH
from dra_bench.cost_results import cost_sections
from dra_bench.figures import cosine, percent, times
from dra_bench.latency import ratios_table, rows_table
from dra_bench.runtime_results import runtime_sections
from dra_runtime.console import table
from dra_train.ablation_table import study_markdown

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results: made by scripts/render_results.py -->", "<!-- /results -->"
MODELS = {"demo": "the demo model", "RN50x4": "RN50x4, the paper's size", "ViT-B-32": "ViT-B-32"}
SHOWN = ("R@1", "R@5", "R@10", "Rsubset@1")

DEMO_RECALL = """\
The preset `demo` on `data/emoji_cir`, three seeds, mean ± standard deviation, in %. The gallery is the whole split,
the reference is left out of the answers, ties are broken by name. `val`: held-out pictures of known concepts.
`val_unseen`: concepts never seen in training, attribute edits only."""

WHAT_IT_SAYS = """\
What it says: the composed query finds what neither the picture nor the text finds alone. On `val` the text alone is
strong, because an edit such as "make her a pilot" names the target's concept and a concept has only a few pictures
there; on `val_unseen` no text does. What it can't say: how the method does on photographs, or against other methods.
The model is small, its text tower starts from nothing, and the pictures are emoji: these figures compare runs of this
toolkit with each other, and none of them is a recall of the paper. The settings were chosen by looking at these two
splits, so they flatter a little; the seeds' spread does not show that."""

FAITHFULNESS = """\
The bundle on disk in ONNX Runtime against PyTorch float32, with the texts of the reference padded to 77 tokens and
those of the bundle cut, at batch sizes 1 to 16. RN50x4 and ViT-B-32 have random weights: their cosines say that the
export is right, their recall would mean nothing."""

SHOWN_MU = (0.05, 0.1, 0.3)  #: of the curves, as evidence beside the chosen mu
RERANKING = """\
Each of the first {k} answers is a possible target, so TAC can say how its relation to the reference agrees with the
text: `q . t_j + mu * cos(F_c, F_v(r, t_j))`. mu was chosen by R@1 on {queries} training queries among all training
images, so that no validation answer decides it; of equals the smallest. "Stage 2's TAC" is the preset's, which has seen
true pairs alone; "stage 3's" was then shown the target beside near misses of the query itself. Three seeds, mean
± standard deviation. The columns at fixed mu are evidence: nothing was chosen by them."""

RERANKING_WHY = """\
What it can't say: why. TAC's tokens are those of the tower's last stage, while the query uses all stages, and it has
two layers without residuals; its attention is nearly even ([attention.md](attention.md)), which suggests that it
compares two means more than two pictures. No experiment here tells these causes apart. A larger tower with a trained
TAC, on photographs, may do otherwise: `dra-train evaluate ckpt.pt --rerank 20` measures it."""

LOWERED = ("demo", "RN50x4")  #: the models that are exported in all precisions
PRECISION = """\
Each bundle on disk against PyTorch float32: smallest cosine of image features, text features and whole queries; for the
demo model recall on the whole validation split, the worst and the best change of any recall in points, and how much of
the first ten answers is the same. One query is 0.06 points. `verify` judges losses, not gains
([verify.md](verify.md)): FP16's R@1 rose by two or three queries that were near ties. RN50x4 has random weights, so its
recall would mean nothing; its INT8 bundle was made with `--max-recall-loss 100`, and what its figures show is speed,
size and cosine."""

LATENCY = """\
All contenders that are there take turns in one run on the same threads; each call starts at preprocessed pixels or a
text and ends at a numpy vector ([benchmarks.md](benchmarks.md)). "by id" is a query whose reference is already in the
gallery: its image is not encoded. PyTorch pads texts to 77 tokens, as open_clip does; one row has them cut."""

SPEED = """\
**Speed**: everything a user might run instead, in turns in one run, batch 1, medians. The last two rows are this
toolkit's bundles; a query by id finds its reference in the gallery and encodes no image."""


def main(arguments: list[str]) -> int:
    """Write both documents, or compare them."""
    machine = next(a for a in arguments if not a.startswith("-"))
    folder = ROOT / "benchmarks" / "results" / machine
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = readme.split(START)
    _, after = rest.split(END)
    pages = {
        ROOT / "docs" / "results.md": results_page(results, machine),
        ROOT / "README.md": f"{before}{START}\n{readme_tables(results, machine)}\n{END}{after}",
    }
    if "--check" in arguments:
        return int(any(path.read_text(encoding="utf-8") != text for path, text in pages.items()))
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return 0


def readme_tables(results: dict[str, Any], machine: str) -> str:
    """Return what the README shows: demo recalls, parity, and how many times as fast the bundle is."""
    return "\n\n".join(
        [
            f"Measured on {where(results)}. The JSON is in `benchmarks/results/{machine}/`; "
            "[docs/results.md](docs/results.md) has more.",
            "**Demo recall** in %, mean ± standard deviation over three seeds, of a model trained for minutes on emoji "
            "(these are no recalls of the paper):",
            recall_table(results),
            "**Faithfulness**: the bundle on disk against PyTorch float32, on real image-text pairs:",
            parity_table(results),
            SPEED,
            *(
                f"{MODELS[name]}:\n\n{contender_table(results[f'{name}-latency'])}\n\n{by_id(results, name)}"
                for name in ("RN50x4", "demo")
            ),
        ]
    )


def results_page(results: dict[str, Any], machine: str) -> str:
    """Return docs/results.md."""
    parts = [
        "# Results",
        "Every figure on this page comes from `benchmarks/results/` by `scripts/render_results.py`, and those files "
        f"by the commands in `scripts/make_results {machine}`. Machine: {where(results)}. No GPU was used.",
        "## Demo recall",
        DEMO_RECALL,
        recall_table(results),
        WHAT_IT_SAYS,
        "By kind of edit, R@1, mean over the seeds:",
        edits_table(results),
        "## Faithfulness",
        FAITHFULNESS,
        parity_table(results),
        recall_parity(results),
        *precisions(results),
        "## Latency",
        LATENCY,
    ]
    for name, title in MODELS.items():
        result = results[f"{name}-latency"]
        others = result["environment"]["used_by_others_percent"]
        parts += [
            f"### {title[0].upper() + title[1:]}",
            rows_table(result["rows"]),
            "How many times as fast, with the 95 % interval of the ratio of medians:",
            ratios_table(result["ratios"]),
            "Against the fastest contender that isn't a bundle:",
            ratios_table(result["fastest_baselines"]),
            f"`{result['environment']['command']}`; other programs used {others:.0f} % of the CPUs meanwhile.",
        ]
    parts += [
        *runtime_sections(results, MODELS),
        *cost_sections(results, MODELS),
        *ablations(results),
        *reranking(results),
    ]
    return "\n\n".join(parts) + "\n"


def ablations(results: dict[str, Any]) -> list[str]:
    """Return the section on variants of the method, where `dra-train ablate` has written ablation.json."""
    return ["## Ablations", study_markdown(results["ablation"])] if "ablation" in results else []


def reranking(results: dict[str, Any]) -> list[str]:
    """Return the section on re-ranking the first answers with TAC, where it was measured."""
    if "rerank" not in results["demo-recall-seed-0"][0]:
        return []
    rows, said = [], []
    for kind, title in (("recall", "stage 2's TAC"), ("rerank", "stage 3's TAC")):
        for index, split in enumerate(("val", "val_unseen")):
            runs = [results[f"demo-{kind}-seed-{seed}"][index]["rerank"] for seed in (0, 1, 2)]
            changes = [run["change"]["R@1"] for run in runs]
            rows.append(
                [
                    f"{title}, {split}",
                    ", ".join(f"{run['mu']:g}" for run in runs),
                    *(deviation([run[when]["R@1"] for run in runs]) for when in ("before", "after")),
                    signed(changes),
                    signed([run["change"]["Rsubset@1"] for run in runs]),
                    *(signed([at(run["curve"], mu) - run["before"]["R@1"] for run in runs]) for mu in SHOWN_MU),
                ]
            )
            said.append(f"{title} on {split}: {in_words(changes)}")
    chosen = results["demo-recall-seed-0"][0]["rerank"]["chosen_on"]
    header = ["TAC, split", "mu by seed", "R@1 before", "after", "change", "Rsubset@1 change"]
    return [
        "## Re-ranking",
        RERANKING.format(k=results["demo-recall-seed-0"][0]["rerank"]["k"], queries=chosen["queries"]),
        table([*header, *(f"R@1 change at mu {mu:g}" for mu in SHOWN_MU)], rows),
        f"What it says: {'; '.join(said)}.",
        RERANKING_WHY,
    ]


def at(curve: list[dict[str, float]], mu: float) -> float:
    """Return the R@1 that a curve has at ``mu``."""
    return next(point["R@1"] for point in curve if point["mu"] == mu)


def in_words(changes: list[float]) -> str:
    """Say what the seeds' changes agree on."""
    mean = f"{statistics.mean(changes):+.1f} points of R@1"
    if all(change == 0 for change in changes):
        return "no change"
    if all(change > 0 for change in changes):
        return f"it helps in every seed ({mean})"
    if all(change < 0 for change in changes):
        return f"it hurts in every seed ({mean})"
    return f"the seeds don't agree on a change ({mean})"


def deviation(values: list[float]) -> str:
    """Return mean ± standard deviation in percent."""
    return f"{percent(statistics.mean(values))} ± {percent(statistics.stdev(values))}"


def signed(values: list[float]) -> str:
    """Return mean ± standard deviation of changes, in points."""
    return f"{statistics.mean(values):+.1f} ± {statistics.stdev(values):.1f}"


def where(results: dict[str, Any]) -> str:
    """Describe the machine and the versions."""
    e = results["demo-latency"]["environment"]
    return (
        f"{e['usable_cores']} cores of an {e['cpu']} ({e['cpu_capability']}), {e['os']}, Python {e['python']}, "
        f"PyTorch {e['torch']}, ONNX Runtime {e['onnxruntime']}, {e['date']}"
    )


def recall_table(results: dict[str, Any]) -> str:
    """Return composed query, image alone and text alone on both splits."""
    rows = []
    for index, split in enumerate(("val", "val_unseen")):
        runs = seeds(results, index)
        size = f"{runs[0]['queries']} queries, {runs[0]['gallery']} images"
        rows.append([f"{split} ({size}): image + text", *spread([run["metrics"] for run in runs])])
        for name, title in (("image_only", "image alone"), ("text_only", "text alone")):
            rows.append([f"{split}: {title}", *spread([run["baselines"][name] for run in runs])])
    return table(["split: query", *SHOWN], rows)


def edits_table(results: dict[str, Any]) -> str:
    """Return the R@1 of every kind of edit on both splits."""
    columns: list[dict[str, tuple[int, float]]] = []
    for index in (0, 1):
        runs = [run["by_edit"] for run in seeds(results, index)]
        columns.append({e: (runs[0][e]["queries"], statistics.mean(run[e]["R@1"] for run in runs)) for e in runs[0]})
    rows = [
        [edit, *(v for c in columns for v in ((c[edit][0], percent(c[edit][1])) if edit in c else ("", "")))]
        for edit in sorted({e for c in columns for e in c})
    ]
    return table(["edit", "val queries", "val R@1", "val_unseen queries", "val_unseen R@1"], rows)


def parity_table(results: dict[str, Any]) -> str:
    """Return each graph's smallest cosine and number of pairs, for every model."""
    names = list(verified(results, "demo")["graphs"])
    rows = []
    for model, title in MODELS.items():
        result = verified(results, model)
        cosines = [cosine(result["graphs"][n]["min_cosine"]) for n in names]
        rows.append([f"{title}, {result['queries']} queries", *cosines])
    return table(["smallest cosine", *names], rows)


def verified(results: dict[str, Any], model: str, precision: str = "fp32") -> dict[str, Any]:
    """Return what verify found for a model's bundle of one precision."""
    found = results[f"{model}-verify"]
    return next(r for r in (found if isinstance(found, list) else [found]) if r["precision"] == precision)


def precisions(results: dict[str, Any]) -> list[str]:
    """Return the section on FP16, INT8 and engines."""
    engines = results["RN50x4-engines"]["sidecars"]["query"]
    return [
        "## Precision",
        PRECISION,
        precision_table(results),
        "`half emulated` is the FP16 bundle with every half value rounded, which a CPU doesn't do by itself. What "
        "became INT8, and what stayed float32:",
        table(["INT8", "part", "", "limit on recall, points", "times as fast as float32"], int8_rows(results)),
        "Exports, on the same two cores:",
        table(["export", "files", "seconds", "memory at the peak"], export_rows(results)),
        f"FP16 engines, built without a GPU by {engines['library']} {engines['library_version']} for compute "
        f"capability {', '.join(engines['target']['compute_capabilities'])} and run on none: the share of half among "
        "the network's floating-point tensors, and with the declared float32 islands set aside.",
        table(["engine", "plan", "half", "islands aside", "float32 islands"], engine_rows(results)),
        ". ".join(
            f"All engines of {MODELS[model]}: {results[f'{model}-engines']['seconds']:.0f} s, "
            f"{results[f'{model}-engines']['peak_memory_mb'] / 1024:.1f} GB of memory at the peak"
            for model in LOWERED
        )
        + ".",
    ]


def precision_table(results: dict[str, Any]) -> str:
    """Return cosines, recall and overlap of every artifact of the models that exist in all precisions."""
    rows = []
    for model in LOWERED:
        for precision in ("fp32", "fp16", "int8"):
            result = verified(results, model, precision)
            for name, found in ((precision, result), *((f"fp16, {v['name']}", v) for v in result["variants"])):
                graphs, recall = found["graphs"], found["recall"]
                shown = ["", "", "", ""]
                if recall:
                    changes = [recall["candidate"][k] - recall["reference"][k] for k in recall["reference"]]
                    shown = [
                        f"{recall['candidate']['R@1']:.2f}",
                        f"{min(changes):+.2f}",
                        f"{max(changes):+.2f}",
                        f"{recall['top10_overlap']:.2f}",
                    ]
                parts = [f"{graphs[n]['min_cosine']:.5f}" for n in ("image_encoder", "text_encoder", "encode_queries")]
                judged = "passed" if found["passed"] else "missed"
                if precision == "int8" and not recall:
                    judged = "not judged"
                rows.append([f"{MODELS[model]}: {name}", *parts, *shown, judged])
    return table(
        ["bundle", "image", "text", "query", "R@1", "worst change", "best change", "first ten in common %", "verify"],
        rows,
    )


def int8_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return each part of the INT8 bundles: what became of it and how fast it is."""
    rows = []
    for model in LOWERED:
        measured = results[f"{model}-export-int8"]["measured"]
        for part, why in measured["parts"].items():
            speed = measured["host"]["speed"].get(part)
            limit = f"{measured['max_recall_loss']:g}"
            rows.append([MODELS[model], part, why, limit, f"{speed['speedup']:.2f}×" if speed else ""])
    return rows


def export_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return size, time and memory of every export."""
    return [
        [
            f"{MODELS[model]}, {precision}",
            f"{sum(export['graph_bytes'].values()) / 1e6:.0f} MB",
            f"{export['seconds']:.0f}",
            f"{export['peak_memory_mb'] / 1024:.1f} GB",
        ]
        for model in LOWERED
        for precision in ("fp32", "fp16", "int8")
        for export in [results[f"{model}-export-{precision}"]]
    ]


def engine_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return size and share of half of every engine."""
    rows = []
    for model in LOWERED:
        for graph, sidecar in results[f"{model}-engines"]["sidecars"].items():
            proof = sidecar["proof"]
            half, single = proof["half_tensors"], proof["float_tensors"]
            islands = sum(len(island["layers"]) for island in proof["islands"])
            rows.append(
                [
                    f"{MODELS[model]}, {graph}",
                    f"{sidecar['plan']['size'] / 1e6:.0f} MB",
                    f"{half / (half + single):.0%}",
                    f"{half / (half + single - islands):.0%}",
                    str(islands),
                ]
            )
    return rows


def recall_parity(results: dict[str, Any]) -> str:
    """Say how the demo bundle's answers differ from PyTorch's."""
    recall = verified(results, "demo")["recall"]
    equal = "equal" if recall["reference"] == recall["candidate"] else "NOT equal"
    return (
        f"Recall of the demo bundle and of PyTorch on the whole validation split: {equal} at every K "
        f"(R@1 {recall['candidate']['R@1']} and {recall['reference']['R@1']} %); first answers changed: "
        f"{recall['changed_queries']} of {recall['queries']}; first ten in common: {recall['top10_overlap']} %."
    )


def by_id(results: dict[str, Any], model: str) -> str:
    """Say how many times as fast a query by id is as PyTorch's whole query, bundle by bundle."""
    said = [
        f"{times(r['times_as_fast'])} as fast with {r['candidate']['backend']} ({times(r['interval'][0])} to "
        f"{times(r['interval'][1])})"
        for r in results[f"{model}-latency"]["ratios"]
        if (r["candidate"]["part"], r["reference"]["part"]) == ("query_by_id", "query")
        and (r["reference"]["backend"], r["reference"]["text_tokens"]) == (PYTORCH, 77)
    ]
    return f"A query by id against PyTorch eager's whole query: {' and '.join(said)}."


def seeds(results: dict[str, Any], split: int) -> list[dict[str, Any]]:
    """Return one split's evaluations, a seed each."""
    return [results[f"demo-recall-seed-{seed}"][split] for seed in (0, 1, 2)]


def spread(runs: list[dict[str, float]]) -> list[str]:
    """Return mean ± standard deviation over the seeds of what is shown."""
    return [deviation([run[k] for run in runs]) for k in SHOWN]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
