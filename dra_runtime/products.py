"""Dot products of queries with the rows of a gallery, in float32 and in half precision."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from dra_runtime.threads import run_together

Floats = npt.NDArray[np.float32]
Unit = npt.NDArray[np.float32] | npt.NDArray[np.float16]

FEW = 8  # queries up to which BLAS has little advantage: reading the rows takes longer than multiplying them
SHARE = 16_384  # rows that are worth the start of a thread
_ROWS = 2_048  # rows multiplied by one query after the other; with fewer, threads wait for the interpreter
_SHIFT = 13  # float32 has 13 more bits of mantissa
_KEPT = np.int32(-0x7000_0001)  # all bits but the three between the sign and the half's exponent
_SCALE = np.float32(2.0**112)  # float32's exponent counts from -127, half's from -15


def products(queries: Floats, rows: Unit, threads: int = 1) -> Floats:
    """Return ``queries @ rows.T`` in float32: (Q, n) for queries (Q, D) of unit length and finite rows (n, D).

    Few queries are multiplied row by row, in up to ``threads`` threads that end with the call. BLAS's own threads would
    be little faster there and go on spinning for a while: the next query's encoders would share the CPUs with them.
    """
    found = np.empty((len(queries), len(rows)), np.float32)
    workers = max(1, min(threads, len(rows) // SHARE)) if len(queries) <= FEW else 1

    def multiply_some(worker: int) -> None:
        part = slice(len(rows) * worker // workers, len(rows) * (worker + 1) // workers)
        some = rows[part]
        if _is_half(some):
            _multiply_half(queries, some, found[:, part])
        else:
            _multiply(queries, np.asarray(some, np.float32), found[:, part])

    run_together(multiply_some, workers)
    return found


def _multiply(queries: Floats, rows: Floats, out: Floats) -> None:
    if len(queries) > FEW:
        np.matmul(queries, rows.T, out=out)
    else:
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            for query, scores in zip(queries, out, strict=True):
                _dot(rows[part], query, scores[part])


def _multiply_half(queries: Floats, rows: npt.NDArray[np.float16], out: Floats) -> None:
    """Multiply half-precision rows, several times as fast as by numpy's own conversion to float32.

    A half's bits, moved to their places in a float32, are its value times 2**-112: exactly, for zeros and the smallest
    values too. The queries are scaled by 2**112 in return, which is exact as well. So no row is ever converted.
    """
    scaled = queries * _SCALE
    bits = np.ascontiguousarray(rows).view(np.int16)
    widened = np.empty((min(_ROWS, len(rows)), rows.shape[1]), np.int32)
    for start in range(0, len(rows), _ROWS):
        part = bits[start : start + _ROWS]
        wide = widened[: len(part)]
        np.left_shift(part, _SHIFT, out=wide, dtype=np.int32)
        np.bitwise_and(wide, _KEPT, out=wide)
        _multiply(scaled, wide.view(np.float32), out[:, start : start + len(part)])


def _dot(rows: Floats, query: Floats, out: Floats) -> None:
    if hasattr(np, "vecdot"):
        np.vecdot(rows, query, out=out)
    else:  # numpy 1
        np.einsum("nd,d->n", rows, query, out=out)


def _is_half(rows: Unit) -> TypeGuard[npt.NDArray[np.float16]]:
    return rows.dtype == np.float16
