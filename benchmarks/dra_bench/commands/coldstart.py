"""dra-bench coldstart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from dra_bench.coldstart import coldstart_rows, coldstart_table
from dra_bench.commands.common import (
    bundles_option,
    deliver,
    identities,
    json_option,
    output_option,
    progress_of,
    run_in_turns,
    shown_command,
    threads_option,
)
from dra_bench.contenders.bundles import bundle_encoders
from dra_bench.environment import environment
from dra_bench.fresh import Probe, raw
from dra_bench.latency import TEXT
from dra_bench.photograph import ABOUT, photograph
from dra_runtime.encoder import Encoder
from dra_runtime.files import check_output
from dra_runtime.gallery import Gallery
from dra_runtime.sessions import checked_threads
from dra_train.data import open_dataset

INTEGRITIES = ("hash", "size")


@click.command("coldstart", short_help="Time from starting Python to the first answer.")
@bundles_option
@click.option("--runs", type=click.IntRange(1), default=11, show_default=True, help="Fresh processes of each kind.")
@threads_option
@json_option
@output_option
def coldstart_command(
    bundles: tuple[Path, ...], runs: int, threads: int | None, as_json: bool, output: Path | None
) -> None:
    """Time a fresh Python process from its start to its first ten answers, stage by stage.

    \b
      dra-bench coldstart --bundle bundle/

    It imports dra_runtime, opens the bundle and a gallery of the built-in validation pictures, and answers a query of a
    picture and a text. Files are in the system's cache already: a disk's own speed is left out. Each bundle is opened
    with all hashes compared and with sizes compared only.
    """
    check_output(output)
    threads = checked_threads(threads)
    encoders = [Encoder.open(bundle, threads=threads) for bundle in bundles]
    (dataset,) = open_dataset("builtin", "val")
    surroundings = environment(threads, shown_command())
    probes = []
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        picture.write_bytes(photograph())
        contenders = bundle_encoders(encoders)
        for number, (contender, bundle) in enumerate(zip(contenders, bundles, strict=True)):
            saved = Path(folder) / f"{number}.gallery"
            with progress_of(f"gallery, {contender.name}") as advance:
                Gallery.build(contender.encoder, dict(dataset.images), advance).save(saved)
            for integrity in INTEGRITIES:
                words = (bundle.resolve(), picture, TEXT, 0, threads, integrity, saved)
                probes.append(Probe(f"{contender.name}, {integrity} checked", "bundle", words))
        found, others = run_in_turns(probes, runs, "cold start")
    rows = coldstart_rows(found)
    result = {
        "rows": rows,
        "gallery": len(dataset.images),
        "picture": ABOUT,
        "text": TEXT,
        "file_cache": "warm",
        "bundles": [bundle.resolve().name for bundle in bundles],
        "environment": {**surroundings, "used_by_others_percent": others, **identities(*encoders)},
        "raw": {name: raw(stages) for name, stages in found.items()},
    }
    deliver(result, output, as_json, coldstart_table(rows))
