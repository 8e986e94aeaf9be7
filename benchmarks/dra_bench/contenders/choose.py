"""Choose who takes part: every contender that is there, and for each other one the reason why it isn't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch

from dra_bench.contenders.backend import PYTORCH, Backend, LineUp, Unavailable
from dra_bench.contenders.bundles import open_bundles
from dra_bench.contenders.clip4cir_demo import DEMO, clip4cir_demo
from dra_bench.contenders.openvino_cpu import OPENVINO, openvino_graphs
from dra_bench.contenders.plain_onnx import DEFAULTS, PLAIN, default_graphs, plain_graphs, plain_onnx
from dra_bench.contenders.pytorch import COMPILED, HALF, compiled_towers, half_towers, pytorch_towers
from dra_runtime.backends.onnxruntime_common import line
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError
from dra_train.checkpoint import Checkpoint

BUNDLES = ("onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")  #: dra_runtime's backends
NAMES = (PYTORCH, HALF, COMPILED, DEMO, PLAIN, DEFAULTS, OPENVINO, *BUNDLES)  #: in the order of the table


def line_up(
    source: Checkpoint,
    encoders: Sequence[Encoder],
    threads: int,
    names: Sequence[str] | None,
    work: Path,
    step: Callable[[str], None] = lambda name: None,
) -> LineUp:
    """Make the contenders. For a model of RN50x4's size that takes a minute or two: one compiles, another exports.

    Parameters
    ----------
    source
        The checkpoint that the bundles were made from.
    encoders
        The bundles, opened in any backend; each takes part in every backend that can run it here.
    threads
        CPU threads of each contender. PyTorch's number is the process's, and is set.
    names
        Those of `NAMES` that are wanted; None: all that are there. PyTorch eager always is, as all others are compared
        with it.
    work
        A folder for exported graphs, no longer read when this returns.
    step
        Called with the name of the contender that is made next.

    Raises
    ------
    BackendError
        A name is none of `NAMES`, or one that was asked for can't be used here; the line says why.
    """
    if unknown := [name for name in names or () if name not in NAMES]:
        raise BackendError(f"{unknown[0]!r} is no contender; give one or more of {', '.join(NAMES)}")
    torch.set_num_threads(threads)
    model = source.model
    exported = cache(lambda: plain_onnx(model, work))  # two contenders run the same files
    makers: dict[str, Callable[[], Backend]] = {
        HALF: lambda: half_towers(model),
        COMPILED: lambda: compiled_towers(model),
        DEMO: lambda: clip4cir_demo(model),
        PLAIN: lambda: plain_graphs(model, exported(), threads),
        DEFAULTS: lambda: default_graphs(model, exported()),
        OPENVINO: lambda: openvino_graphs(_float32(encoders), threads),
    }
    contenders: list[Backend] = [pytorch_towers(model)]
    unavailable: list[Unavailable] = []
    for name in NAMES[1:] if names is None else [name for name in NAMES[1:] if name in names]:
        step(name)
        found, missing = open_bundles(encoders, name, threads) if name in BUNDLES else _made(name, makers[name])
        if names is not None and not found:
            raise BackendError(f"{name} can't be used here: {missing[0].reason}")
        contenders += found
        unavailable += missing
    return LineUp(tuple(contenders), tuple(unavailable))


def _made(name: str, make: Callable[[], Backend]) -> tuple[tuple[Backend, ...], tuple[Unavailable, ...]]:
    try:
        return (make(),), ()
    except BackendError as error:
        return (), (Unavailable(name, str(error)),)
    # Exporters and compilers raise whatever they like; none of it may take the other contenders along
    except Exception as error:  # noqa: BLE001
        return (), (Unavailable(name, f"{type(error).__name__}: {line(error)}"),)


def _float32(encoders: Sequence[Encoder]) -> Encoder:
    for encoder in encoders:
        if encoder.bundle.manifest.precision == "fp32":
            return encoder
    raise BackendError("it runs a float32 bundle's graphs, and none was given; add one with --bundle")
