"""dra-bench memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from dra_bench.commands.common import (
    bundles_option,
    checkpoint_option,
    deliver,
    identities,
    json_option,
    output_option,
    require_made_from,
    run_in_turns,
    shown_command,
    threads_option,
)
from dra_bench.contenders.backend import PYTORCH
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.environment import environment
from dra_bench.fresh import Probe
from dra_bench.latency import TEXT
from dra_bench.memory import MORE, memory_rows, memory_table, raw_runs, stages_table
from dra_bench.photograph import ABOUT, photograph
from dra_runtime.encoder import Encoder
from dra_runtime.files import check_output
from dra_runtime.sessions import checked_threads
from dra_train.checkpoint import load_checkpoint


@click.command("memory", short_help="Compare the memory of processes that answer queries.")
@bundles_option
@checkpoint_option
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Fresh processes a contender.")
@threads_option
@json_option
@output_option
def memory_command(
    bundles: tuple[Path, ...],
    checkpoint: Path,
    runs: int,
    threads: int | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure the memory of a fresh process that opens a bundle and answers queries, and of one with PyTorch.

    \b
      dra-bench memory --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt

    Each answers one query, a picture and a text, and twenty more. PyTorch holds the checkpoint's weights once, mapped
    from its file; without that its peak is higher. "resident" counts mapped files too, "anonymous" doesn't; the peak is
    the most that was ever resident.
    """
    check_output(output)
    threads = checked_threads(threads)
    encoders = [Encoder.open(bundle, threads=threads) for bundle in bundles]
    sha256 = load_checkpoint(checkpoint).sha256
    for bundle, encoder in zip(bundles, encoders, strict=True):
        require_made_from(encoder, bundle, sha256, checkpoint)
    surroundings = environment(threads, shown_command())
    names = [contender.name for contender in bundle_encoders(encoders)]
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(photograph())
        probes = [
            Probe(PYTORCH, "pytorch", (checkpoint.resolve(), picture, TEXT, MORE, threads)),
            *(
                Probe(name, "bundle", (bundle.resolve(), picture, TEXT, MORE, threads, "hash"))
                for name, bundle in zip(names, bundles, strict=True)
            ),
        ]
        found, others = run_in_turns(probes, runs, "memory")
    rows = memory_rows(found)
    result = {
        "rows": rows,
        "queries": 1 + MORE,
        "picture": ABOUT,
        "text": TEXT,
        "bundles": dict(zip(names, [bundle.resolve().name for bundle in bundles], strict=True)),
        "environment": {
            **surroundings,
            "used_by_others_percent": others,
            **identities(*encoders),
            "checkpoint_sha256": sha256,
        },
        "raw": raw_runs(found),
    }
    deliver(result, output, as_json, f"{memory_table(rows)}\n\n{stages_table(rows)}")
