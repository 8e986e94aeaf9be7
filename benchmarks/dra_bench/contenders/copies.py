"""What a query copies to a GPU and back, to be timed apart; the calls of the contenders contain it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dra_runtime.encoder import Pixels


def gpu_copies(pixels: Pixels, text_tokens: int, dim: int) -> Callable[[], object] | None:
    """Return what copies a query's pixels and tokens to the GPU and its vectors (N, D) back; None without a GPU.

    The plain copies of pageable memory that PyTorch does in each call, and waits for.
    """
    if not torch.cuda.is_available():
        return None
    image, vectors = torch.from_numpy(pixels), torch.zeros(len(pixels), dim, device="cuda")
    tokens = torch.zeros(len(pixels), text_tokens, dtype=torch.int64)

    def copy() -> None:
        image.to("cuda"), tokens.to("cuda"), vectors.cpu()
        torch.cuda.synchronize()

    return copy
