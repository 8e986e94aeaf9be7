"""dra-export triton."""

from __future__ import annotations

from pathlib import Path

import click

from dra_export.triton.repository import (
    BACKENDS,
    COMPOSED_QUERY,
    MAX_BATCH,
    PYTHON,
    RepositoryOptions,
    write_repository,
)
from dra_runtime.console import table


@click.command("triton", short_help="Make a model repository for Triton Inference Server.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The repository's folder.")
@click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default=PYTHON,
    show_default=True,
    help="What runs the graphs: python (dra_runtime on the CPU, everywhere), or a GPU backend of the server's.",
)
@click.option(
    "--instances",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Instances of every model, on each GPU.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 4096),
    help=f"Most requests that the server runs together; default: {MAX_BATCH}, or what the engines take.",
)
@click.option("--engines", help="With --backend tensorrt: the folder below BUNDLE/engines, where there are several.")
@click.option("--overwrite", is_flag=True, help="Replace a repository that is already there.")
def triton_command(
    bundle: Path,
    out: Path,
    backend: str,
    instances: int,
    max_batch: int | None,
    engines: str | None,
    overwrite: bool,
) -> None:
    """Make a model repository for NVIDIA's Triton Inference Server from BUNDLE.

    The model `composed_query` takes an image's bytes and a text and gives the query's embedding. Behind it, and open to
    requests as well, is one model a part: image_encoder, text_encoder, compositor and, where the bundle has one,
    reranker. The server puts requests together; the parts are warmed up when they are loaded.

    The server's Python needs dra-toolkit (with the extra `cpu` for --backend python), and no PyTorch. docs/triton.md
    says how to start a server and how to ask it.
    """
    options = RepositoryOptions(backend, instances, max_batch, engines)
    served = write_repository(bundle, out, options, overwrite)
    rows = [[model.name, model.backend, model.max_batch, f"{model.size / 1e6:.1f} MB"] for model in served]
    click.echo(table(["model", "backend", "max batch", "size"], rows))
    click.echo(f"{out} written; ask the model {COMPOSED_QUERY} of: tritonserver --model-repository {out.resolve()}")
