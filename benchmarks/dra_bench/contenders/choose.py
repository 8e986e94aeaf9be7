"""Choose who takes part: every contender that is there, and for each other one the reason why it isn't."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dra_bench.contenders.backend import PYTORCH, Backend, LineUp, Unavailable
from dra_bench.contenders.bundles import open_bundles
from dra_bench.contenders.pytorch import pytorch_towers
from dra_runtime.encoder import Encoder
from dra_runtime.errors import BackendError
from dra_runtime.sessions import BACKENDS, ONNXRUNTIME_CPU
from dra_train.checkpoint import Checkpoint

BUNDLES = (ONNXRUNTIME_CPU, *(name for name in BACKENDS if name != ONNXRUNTIME_CPU))
NAMES = (PYTORCH, *BUNDLES)  #: in the order of the table


def line_up(
    source: Checkpoint, encoders: Sequence[Encoder], threads: int, names: Sequence[str] | None, work: Path
) -> LineUp:
    """Make the contenders.

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

    Raises
    ------
    BackendError
        A name is none of `NAMES`, or one that was asked for can't be used here; the line says why.
    """
    for name in names or ():
        if name not in NAMES:
            raise BackendError(f"{name!r} is no contender; give one or more of {', '.join(NAMES)}")
    torch.set_num_threads(threads)
    contenders: list[Backend] = [pytorch_towers(source.model)]
    unavailable: list[Unavailable] = []
    for name in NAMES[1:]:
        if names is not None and name not in names:
            continue
        found, missing = open_bundles(encoders, name, threads)
        if names is not None and not found:
            raise BackendError(f"{name}: {missing[0].reason}")
        contenders += found
        unavailable += missing
    return LineUp(tuple(contenders), tuple(unavailable))
