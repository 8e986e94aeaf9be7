"""Shapes of an engine: which optimization profile runs a batch, how large batches are cut, how much memory they take.

Nothing here touches a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dra_runtime.engine_sidecar import Profile
from dra_runtime.errors import BackendError
from dra_runtime.manifest import TensorSpec

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Symbols = Mapping[str, int]  #: what the free dimensions are, such as {"batch": 3, "length": 12}


def symbols_of(tensors: Sequence[TensorSpec], shapes: Shapes) -> dict[str, int]:
    """Return what the tensors' free dimensions are in these shapes.

    Raises
    ------
    BackendError
        A shape doesn't fit its tensor, or one symbol would be two numbers.
    """
    symbols: dict[str, int] = {}
    for tensor in tensors:
        shape = shapes[tensor.name]
        fits = len(shape) == len(tensor.shape) and all(
            size == (symbols.setdefault(stated, size) if isinstance(stated, str) else stated)
            for size, stated in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise BackendError(f"{tensor.name} has the shape {shape}; expected {tensor.shape} with {symbols}")
    return symbols


def shape_of(tensor: TensorSpec, symbols: Symbols) -> Shape:
    """Return a tensor's shape with numbers for its symbols."""
    return tuple(symbols[size] if isinstance(size, str) else size for size in tensor.shape)


def profile_for(profiles: Sequence[Profile], shapes: Shapes) -> int | None:
    """Return the narrowest optimization profile that covers these shapes, None where none does.

    The narrowest is the one whose largest shapes hold the fewest numbers: a wide profile is slow at its ends. Of equal
    ones the first.
    """
    covering = [i for i, profile in enumerate(profiles) if covers(profile, shapes)]
    return min(covering, key=lambda i: sum(math.prod(most) for _, _, most in profiles[i].values()), default=None)


def covers(profile: Profile, shapes: Shapes) -> bool:
    """Tell whether each of these shapes lies in a profile's range."""
    for name, shape in shapes.items():
        least, _, most = profile[name]
        if len(least) != len(shape) or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
    return True


def batch_ranges(profiles: Sequence[Profile], shapes: Shapes) -> list[tuple[int, int]]:
    """Return the batch sizes, from least to most, of the profiles that cover all other dimensions of these shapes."""
    ranges = []
    for profile in profiles:
        least = max(profile[name][0][0] for name in shapes)
        most = min(profile[name][2][0] for name in shapes)
        rest = {name: (least, *shape[1:]) for name, shape in shapes.items()}
        if least <= most and covers(profile, rest):
            ranges.append((least, most))
    return ranges


def pieces_of(count: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut ``count`` rows into pieces that the ranges take.

    Returns
    -------
    list of (rows, batch)
        How many rows a piece has, and with how many it runs: more where no range takes so few, filled up then. As few
        pieces as can be, and all but the last full.
    """
    most = max(most for _, most in ranges)
    pieces = [(most, most)] * (count // most)
    if rest := count % most:
        pieces.append((rest, min(max(rest, least) for least, largest in ranges if largest >= rest)))
    return pieces


def buffer_sizes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], profile: Profile) -> dict[str, int]:
    """Return how many bytes each tensor takes at most in a profile."""
    symbols = symbols_of(inputs, {tensor.name: profile[tensor.name][2] for tensor in inputs})
    return {
        tensor.name: math.prod(shape_of(tensor, symbols)) * np.dtype(tensor.dtype).itemsize
        for tensor in (*inputs, *outputs)
    }
