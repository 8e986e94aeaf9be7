"""Made-up results of dra-bench, and the command on them: what the tests of compare and guard share."""

import json

import numpy as np
import pytest

from dra_bench.cli import main

PARTS = {"image": 10.0, "text": 2.0, "compose": 1.0, "query": 13.0, "query_by_id": 3.0}
CONTENDERS = {"pytorch-eager": 1.0, "onnxruntime-cpu": 0.5, "onnxruntime-cpu int8": 0.25}
ENVIRONMENT = {"cpu": "One", "threads": 2, "torch": "2", "backbone": "demo", "checkpoint_sha256": "c", "bundle_id": "i"}


def latency_result(slow=(), machine=1.0, spread=0.0, seed=0, samples=40, environment=(), leave_out=()):
    """A result of dra-bench latency: ``slow`` maps (contender, part) to a factor, ``machine`` slows everything."""
    random, slow = np.random.default_rng(seed), dict(slow)
    raw = []
    for part, ms in PARTS.items():
        for contender, share in CONTENDERS.items():
            if contender in leave_out:
                continue
            tokens = None if part in ("image", "compose") else 77 if contender == "pytorch-eager" else 12
            level = ms * share * machine * slow.get((contender, part), 1.0)
            values = level * np.exp(spread * random.standard_normal(samples))
            raw.append({"backend": contender, "part": part, "batch": 1, "text_tokens": tokens, "ms": values.tolist()})
    preprocess = {"backend": "dra-runtime", "part": "preprocess", "batch": 1, "text_tokens": None}
    raw.append({**preprocess, "ms": (machine * np.ones(samples)).tolist()})
    bundles = [{"backend": name, "bundle_id": name} for name in CONTENDERS if name != "pytorch-eager"]
    environment = {**ENVIRONMENT, **dict(environment)}
    return {"rows": [], "ratios": [], "raw_ms": raw, "text": "in red", "bundles": bundles, "environment": environment}


def run_on(command, folder, capsys, *results, words=()):
    """Write results and give them to a command of dra-bench; returns its exit code, stdout and stderr."""
    paths = [folder / f"{name}.json" for name in "ab"]
    for path, result in zip(paths, results, strict=True):
        path.write_text(json.dumps(result))
    with pytest.raises(SystemExit) as exit_info:
        main([command, *map(str, paths), *words])
    return (exit_info.value.code, *capsys.readouterr())
