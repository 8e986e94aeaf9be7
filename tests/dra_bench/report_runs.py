"""What a run may have beside the four files that every run has: made-up figures, shaped as the commands write them."""

import json

ENVIRONMENT = {"cpu": "Test CPU", "threads": 2, "used_by_others_percent": 0.5}
FP32, INT8, PYTORCH = "onnxruntime-cpu", "onnxruntime-cpu int8", "pytorch-eager"


def add_all(folder):
    """Add every optional file to a run folder, and put two artifacts into its recall.json."""
    (folder / "recall.json").write_text(json.dumps(recall()))
    makers = (load, growth, roofline, endtoend, memory, coldstart, gallery)
    for make in makers:
        (folder / f"{make.__name__}.json").write_text(json.dumps(make()))
    latency = json.loads((folder / "latency.json").read_text())
    (folder / "latency.json").write_text(json.dumps({**latency, **more_latency(latency)}))
    return folder


def more_latency(latency):
    rows = []
    for row in latency["rows"]:
        rows.append({**row, "p95_ms": row["p50_ms"] * 1.17, "iqr_ms": row["p50_ms"] * 0.043})
        if row["backend"] == FP32:
            quick = {k: row[k] * 0.37 for k in ("p50_ms", "p90_ms", "p99_ms")}
            tail = {"p95_ms": row["p50_ms"] * 0.47, "iqr_ms": row["p50_ms"] * 0.019}
            rows.append({**row, "backend": INT8, **quick, **tail})
    return {
        "rows": rows,
        "bundles": [{"backend": FP32, "bundle": "fp32"}, {"backend": INT8, "bundle": "int8"}],
        "contenders": [
            {"backend": name, "about": f"about {name}", "precision": "fp32", "threads": 2} for name in (FP32, PYTORCH)
        ],
        "unavailable": [{"backend": "tensorrt", "reason": "no GPU here"}],
    }


def recall():
    def split(artifact, bundle, candidate, changed):
        return {
            "dataset": "squares",
            "split": "val",
            "source": "squares",
            "queries": 33,
            "gallery": 12,
            "artifact": artifact,
            "bundle": bundle,
            "reference": {"R@1": 45.45, "R@5": 74.13},
            "candidate": candidate,
            "passed": True,
            "missed": [],
            "top10_overlap": 98.765,
            "changed_queries": len(changed),
            "changed": changed,
        }

    changed = [
        {
            "id": 7,
            "text": "a | <script>alert(1)</script>",
            "reference": "red",
            "target": "gold",
            "was": "gold",
            "is": "black",
        },
        {"id": 8, "text": "brighter", "reference": "red", "target": "blue", "was": "gold", "is": "blue"},
    ]
    splits = [
        split(FP32, "fp32", {"R@1": 45.45, "R@5": 74.13}, []),
        split(INT8, "int8", {"R@1": 44.94, "R@5": 74.24}, changed),
    ]
    artifacts = [
        {"artifact": s["artifact"], "bundle": s["bundle"], "precision": "fp32", "passed": True, "missed": []}
        for s in splits
    ]
    return {"passed": True, "tolerance": None, "artifacts": artifacts, "unavailable": [], "splits": splits}


def load():
    server, single, offline, threads = [], [], [], []
    for i, backend in enumerate((FP32, f"{INT8}, batcher", PYTORCH)):
        attempts = [
            {"queries_per_second": r, "p50_ms": 9.125 + r, "p99_ms": 17.5 * (i + 1) + r, "queries": 321, "held": r < 30}
            for r in (11.0, 22.5, 44.25)
        ]
        who = {"backend": backend, "reference": "id"}
        held = {"queries_per_second": 22.5, "p99_ms": 40.0, "samples": 321, "failed_at": 44.25, "limit_ms": 55.5}
        server.append({**who, **held, "attempts": attempts})
        single.append(
            {**who, "p50_ms": 8.0625, "p90_ms": 9.25, "p95_ms": 9.5, "p99_ms": 12.75, "iqr_ms": 0.25, "samples": 77}
        )
        spread = {"low": 18.25, "high": 24.75, "samples": 19}
        offline += [{**who, "batch": b, "queries_per_second": 20.0 + b, **spread} for b in (1, 4)]
        threads += [{**who, "threads": t, "queries_per_second": 21.0 + t, **spread} for t in (1, 2)]
    shapes = {"single_stream": single, "offline": offline, "server": server, "threads": threads}
    return {"limit_ms": 55.5, "limits_ms": {"id": 55.5}, **shapes, "environment": ENVIRONMENT, "raw": {}}


def growth():
    def curve(name, part, backend, x, y, slope, beyond=()):
        def point(at, extrapolated):
            value = round(3.0 + slope * at, 4)
            samples = 0 if extrapolated else 23
            return {
                "x": at,
                "y": value,
                "low": value * 0.9,
                "high": value * 1.15,
                "samples": samples,
                "extrapolated": extrapolated,
            }

        law = {"kind": "linear", "formula": "y = a + b x", "fitted_over": [1, 64], "largest_residual_percent": 4.5}
        return {
            "curve": name,
            "title": f"Cost by {name}",
            "part": part,
            "x": x,
            "y": y,
            "backend": backend,
            "points": [*(point(at, False) for at in (1, 8, 64)), *(point(at, True) for at in beyond)],
            "law": law if beyond else None,
        }

    curves = [
        curve("batch", part, backend, "images a call", "milliseconds", slope)
        for part in ("image", "text")
        for backend, slope in ((FP32, 2.5), (PYTORCH, 6.25))
    ]
    curves += [curve("search", "search", "exact, float32", "items", "milliseconds", 0.125, (512,))]
    return {"curves": curves, "environment": ENVIRONMENT, "raw": {}}


def roofline():
    parts = [
        {
            "backend": backend,
            "part": part,
            "batch": 1,
            "text_tokens": None,
            "gflop": gflop,
            "int8_gop": 0.0,
            "mbytes": mbytes,
            "p50_ms": p50 * slower,
            "limit_ms": p50 * 0.625,
            "bound": "compute",
            "share_of_limit": 0.625,
            "interval": [0.61, 0.64],
            "samples": 29,
        }
        for backend, slower in ((FP32, 1.0), (PYTORCH, 2.5))
        for part, gflop, mbytes, p50 in (
            ("image", 3.25, 31.5, 14.125),
            ("text", 0.275, 19.75, 2.25),
            ("compose", 0.0115, 11.25, 0.75),
        )
    ]
    rate = {"rate": 311.0, "low": 305.5, "high": 314.25, "samples": 29}
    measured = [{"what": "a matrix product", "kind": "float32", "unit": "GFLOP/s", "counts": True, **rate}]
    machine = {"gflops": 311.0, "int8_gops": None, "gbytes_per_second": 23.25, "samples": 29, "measured_by": measured}
    return {"machine": machine, "parts": parts, "environment": ENVIRONMENT, "raw": {}}


def endtoend():
    steps = (
        "read and decode",
        "resize and normalise",
        "tokenize",
        "image encoder",
        "text encoder",
        "compose",
        "search",
    )
    percentiles = {"p50_ms": 7.375, "p90_ms": 8.5, "p99_ms": 9.75}
    row = {"backend": FP32, **percentiles, "samples": 27, "preprocessing_share": 0.2125}
    row["steps"] = [{"step": s, **percentiles, "share": 0.1425} for s in steps]
    return {"rows": [row], "galleries": [{"backend": FP32, "items": 4321}], "environment": ENVIRONMENT, "raw_ms": {}}


def _stage(name):
    def of(value):
        return {"median": value, "least": value - 1, "most": value + 2}

    sizes = {"peak_mb": of(512.0), "resident_mb": of(444.0), "anonymous_mb": of(222.0)}
    return {"stage": name, "ms": of(305.5), "own_ms": of(33.25), **sizes, "runs": 13}


def memory():
    rows = [{"backend": name, "stages": [_stage("imports"), _stage("21 queries")]} for name in (PYTORCH, FP32)]
    rows[1]["share_of_pytorch"] = {"peak_mb": 0.64, "resident_mb": 0.7, "anonymous_mb": 0.5}
    return {"rows": rows, "queries": 21, "environment": ENVIRONMENT, "raw": {}}


def coldstart():
    rows = [{"start": f"{FP32}, hash checked", "stages": [_stage("imports"), _stage("first answer")]}]
    return {"rows": rows, "gallery": 372, "file_cache": "warm", "environment": ENVIRONMENT, "raw": {}}


def gallery():
    def of(value):
        return {"median": value, "least": value, "most": value}

    rows = [
        {
            "search": name,
            "p50_ms": p50,
            "p90_ms": p50 * 1.25,
            "samples": 31,
            "times_as_fast": 8.0 / p50,
            "interval": [7.5 / p50, 8.25 / p50],
            "recall_at_10": 0.9915,
            "file_mb": 256.0,
            "open_ms": of(1.5),
            "open_hash_ms": of(66.5),
            "first_answer_ms": of(9.5),
            "resident_mb": 333.0,
            "anonymous_mb": 88.0,
            "runs": 3,
            "built": None,
        }
        for name, p50 in (("float32", 8.0), ("float16", 5.0))
    ]
    return {"sizes": [{"items": 100000, "queries": 500, "rows": rows, "raw_ms": {}}], "environment": ENVIRONMENT}
