"""The processes of one run, as torchrun or accelerate starts them, and the few words they exchange.

All of them hold the same model and know the same batch; each computes its share of the rows. What they exchange are
features and gradients, never pictures.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dra_runtime.errors import UsageError


@dataclass(frozen=True)
class Workers:
    """This process's place among all."""

    device: torch.device
    rank: int = 0
    count: int = 1
    local_rank: int = 0  #: on this machine

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def share(self, rows: int) -> tuple[int, int]:
        """Return where this process's share of a batch begins, and the length that all shares have.

        The last shares may reach over the end of the batch.
        """
        length = math.ceil(rows / self.count)
        return self.rank * length, length

    def gather(self, share: Tensor, rows: int) -> Tensor:
        """Return all processes' shares (length, …) as the whole batch (rows, …), without a gradient."""
        if self.count == 1:
            return share
        shares = [torch.empty_like(share) for _ in range(self.count)]
        dist.all_gather(shares, share.contiguous())
        return torch.cat(shares)[:rows]

    def average(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message, not hundreds
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def workers(device: str) -> Iterator[Workers]:
    """Join the other processes that torchrun or accelerate has started, if any, and leave them at the end.

    ``device`` is "auto", "cpu", "cuda" or another of PyTorch's names. UsageError when it isn't there.
    """
    rank, count, local_rank = (
        int(os.environ.get(n, d)) for n, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    chosen = _device(device, local_rank)
    if count == 1:
        yield Workers(chosen)
        return
    # The first process alone computes the feature cache while the others wait, hence the long patience.
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=12))
    try:
        yield Workers(chosen, rank, count, local_rank)
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"run.device {name!r} can't be used here ({reason}); use auto or cpu") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
