"""dra-export engine."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import click

from dra_export.engine.build import EngineOptions, build_engines
from dra_export.engine.tensorrt_api import load_library
from dra_runtime.bundle import Bundle
from dra_runtime.console import FOUND_WANTING, table
from dra_runtime.engine_file import EngineSidecar, runs_on, sidecar_to_dict
from dra_runtime.engine_host import LIBRARIES, this_host
from dra_runtime.errors import PrecisionError
from dra_runtime.manifest import OPTIONAL_GRAPHS, REQUIRED_GRAPHS


@click.command("engine", short_help="Build TensorRT engines from a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice(LIBRARIES),
    help="The library that builds and will run them; default: the one that is installed. tensorrt builds on the GPU at "
    "hand and for it; tensorrt-rtx needs none.",
)
@click.option("--min", "min_batch", type=int, default=1, show_default=True, help="Smallest batch.")
@click.option("--opt", "opt_batch", type=int, default=8, show_default=True, help="The batch to be fastest at.")
@click.option("--max", "max_batch", type=int, default=64, show_default=True, help="Largest batch.")
@click.option(
    "--target",
    "targets",
    metavar="SM,...",
    help="tensorrt-rtx: compute capabilities to build for, such as sm80,sm89; default: any from 8.0.",
)
@click.option("--workspace", type=click.IntRange(1), metavar="MIB", help="Most memory for a layer's scratch space.")
@click.option("--version-compatible", is_flag=True, help="tensorrt: the engines open in newer versions too.")
@click.option("--hardware-compatible", is_flag=True, help="tensorrt: they run on any GPU of capability 8.0 or newer.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    help="tensorrt: file that keeps its measurements; default: one for every version and GPU, in the user's cache.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice((*REQUIRED_GRAPHS, *OPTIONAL_GRAPHS)),
    help="Build this graph only; repeatable. Default: all of the bundle.",
)
@click.option("--overwrite", is_flag=True, help="Replace engines that are already there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: time, memory and the sidecars.")
def engine_command(
    bundle: Path,
    backend: str | None,
    min_batch: int,
    opt_batch: int,
    max_batch: int,
    targets: str | None,
    workspace: int | None,
    version_compatible: bool,
    hardware_compatible: bool,
    timing_cache: Path | None,
    graphs: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines from BUNDLE into its folder engines/: NAME.plan, with NAME.plan.json beside it.

    The engines compute in the bundle's precision: give an fp16 bundle for half. What they came out as is read back and
    written into the sidecar, with the library's version, the GPUs that they run on, and hashes. Exit code 1, and no
    engine, when an fp16 bundle comes out as float32.

    \b
      dra-export engine bundle-fp16/ --backend tensorrt-rtx --target sm89     for an RTX 40, built anywhere
      dra-export engine bundle-fp16/ --backend tensorrt --max 16              for the GPU of this machine
    """
    start = time.perf_counter()
    options = EngineOptions(
        min_batch,
        opt_batch,
        max_batch,
        tuple(dict.fromkeys(part.strip().lower() for part in targets.split(","))) if targets is not None else (),
        None if workspace is None else workspace * 2**20,
        version_compatible,
        hardware_compatible,
        timing_cache,
    )
    host = this_host()
    library = load_library(backend, host)
    opened = Bundle.open(bundle)
    try:
        built = build_engines(opened, library, host, options, graphs, overwrite)
    except PrecisionError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(FOUND_WANTING)
    if as_json:
        result = {
            "engines": f"{bundle.name}/{next(iter(built)).parent.relative_to(bundle).as_posix()}",
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "sidecars": {sidecar.graph: sidecar_to_dict(sidecar) for sidecar in built.values()},
        }
        click.echo(json.dumps(result, indent=2))
        return
    click.echo(engines_table(list(built.values())))
    folder, one = next(iter(built)).parent, next(iter(built.values()))
    click.echo(f"{folder} written in {time.perf_counter() - start:.0f} s, {one.library} {one.library_version}")
    click.echo(f"runs on {runs_on(one)}")


def engines_table(sidecars: list[EngineSidecar]) -> str:
    """Lay out what was built: sizes, batches, and what is half."""
    rows = []
    for sidecar in sidecars:
        proof, first = sidecar.proof, sidecar.inputs[0].name
        batches = ", ".join(f"{p[first][0][0]}-{p[first][2][0]}" for p in sidecar.profiles).replace("1-1,", "1,")
        islands = sum(len(island.layers) for island in proof.islands)
        half, islands_aside = proof.half_tensors, proof.half_tensors + proof.float_tensors - islands
        shares = [f"{proof.half_share:.0%}", f"{half / max(1, islands_aside):.0%}" if half else "-"]
        rows.append([sidecar.graph, f"{sidecar.plan_size / 1e6:.1f} MB", batches, *shares, islands or "-"])
    lines = [table(["graph", "size", "batches", "half", "islands aside", "float32 islands"], rows)]
    reasons: dict[str, int] = {}
    for island in (island for sidecar in sidecars for island in sidecar.proof.islands):
        reasons[island.reason] = reasons.get(island.reason, 0) + len(island.layers)
    if reasons:
        by_count = sorted(reasons.items(), key=lambda item: -item[1])
        lines.append("float32 islands: " + "; ".join(f"{reason} ({count} layers)" for reason, count in by_count))
    return "\n\n".join(lines) + "\n"
