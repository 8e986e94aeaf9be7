"""A run with made-up figures, as the commands write them, and a small data set of coloured squares."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image


def _load(name):
    # pytest's importlib mode puts no test folder on the path, so a helper is loaded by its place
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load("simulated_load")
_load("compare_runs")
_load("report_runs")

COLOURS = ["red", "green", "blue", "gold", "black", "white", "purple", "orange", "gray", "brown", "pink", "cyan"]


def evaluation(split, r1):
    metrics = {"R@1": r1, "R@5": 74.13, "R@10": 83.24, "R@50": 97.75, "Rsubset@1": 66.61}
    return {
        "dataset": "squares",
        "split": split,
        "protocol": "cirr: whole split as gallery",
        "queries": 33,
        "gallery": 12,
        "metrics": metrics,
        "baselines": {
            "image_only": dict.fromkeys(metrics, 4.57),
            "text_only": dict.fromkeys(metrics, 2.49),
        },
        "by_edit": {"tone": {"queries": 20, **metrics}, "hair <b>": {"queries": 13, **metrics}},
    }


def latency():
    rows, p50 = [], {}
    for backend, tokens, scale in (("pytorch-eager", 77, 2.0), ("onnxruntime-cpu", 12, 1.0)):
        for part, ms in (
            ("image", 120.5),
            ("text", 13.25),
            ("compose", 8.125),
            ("query", 142.0),
            ("query_by_id", 21.5),
        ):
            p50[backend, part] = ms * scale
            rows.append(
                {
                    "backend": backend,
                    "part": part,
                    "batch": 1,
                    "text_tokens": tokens if part in ("text", "query", "query_by_id") else None,
                    "p50_ms": ms * scale,
                    "p90_ms": ms * scale * 1.1,
                    "p99_ms": ms * scale * 1.3,
                    "samples": 37,
                }
            )
    ratios = []
    for row in rows[5:]:
        for part in {row["part"]: 0, **({"query": 0} if row["part"] == "query_by_id" else {})}:
            value = round(p50["pytorch-eager", part] / row["p50_ms"], 3)
            keys = ("backend", "part", "batch", "text_tokens")
            ratios.append(
                {
                    "reference": {**{k: row[k] for k in keys}, "backend": "pytorch-eager", "part": part},
                    "candidate": {k: row[k] for k in keys},
                    "times_as_fast": value,
                    "interval": [value - 0.1, value + 0.1],
                }
            )
    environment = {"cpu": "Test CPU", "threads": 2, "memory_gib": None, "command": "dra-bench latency"}
    return {"rows": rows, "ratios": ratios, "environment": environment}


def recall():
    metrics = evaluation("val", 45.45)["metrics"]
    changed = {"id": 7, "text": "a | <script>alert(1)</script>", "reference": "red", "target": "blue"}
    split = {
        "dataset": "squares",
        "split": "val",
        "queries": 33,
        "gallery": 12,
        "reference": metrics,
        "candidate": metrics,
        "passed": True,
        "top10_overlap": 99.9,
        "changed_queries": 1,
        "changed": [{**changed, "was": "gold", "is": "black"}],
    }
    return {"passed": True, "tolerance": 0.0, "splits": [split]}


@pytest.fixture
def run_folder(tmp_path):
    """A run folder that a test may damage."""
    return write_run(tmp_path / "test-run")


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory):
    """A run folder that stays as it is."""
    return write_run(tmp_path_factory.mktemp("runs") / "test-run")


def write_run(folder):
    folder.mkdir()
    verify = {
        "passed": True,
        "graphs": {
            "image_encoder": {"min_cosine": 0.99999987, "max_abs": 2.5e-6, "pairs": 33},
            "query": {"min_cosine": 0.99999912, "max_abs": 1.25e-5, "pairs": 66},
        },
    }
    contents = {
        "eval.json": [evaluation("val", 45.45), evaluation("val_unseen", 41.75)],
        "verify.json": verify,
        "latency.json": latency(),
        "recall.json": recall(),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def full_run(tmp_path_factory):
    """A run folder with every file that the report knows; it stays as it is."""
    return sys.modules["report_runs"].add_all(write_run(tmp_path_factory.mktemp("runs") / "full-run"))


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A CIRR-format data set of twelve coloured squares and 33 queries with hostile texts."""
    root = tmp_path_factory.mktemp("data") / "squares"
    for folder in ("cirr/captions", "cirr/image_splits", "img_raw/val"):
        (root / folder).mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (40 + i, 50), colour).save(root / f"img_raw/val/{colour}.png")
    queries = [
        {
            "pairid": i,
            "reference": COLOURS[i % 12],
            "target_hard": COLOURS[(i + 1 + i // 12) % 12],
            "caption": ["in a brighter colour", "<img src=x onerror=alert(1)> & {{ 7*7 }}", "une couleur “été” 你好"][
                i % 3
            ],
            "edit": ["tone", "tone", "hair"][i % 3],
            "img_set": {"id": i, "members": COLOURS[:6]},
        }
        for i in range(33)
    ]
    (root / "cirr/captions/cap.rc2.val.json").write_text(json.dumps(queries))
    splits = {colour: f"./val/{colour}.png" for colour in COLOURS}
    (root / "cirr/image_splits/split.rc2.val.json").write_text(json.dumps(splits))
    return root
