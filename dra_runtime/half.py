"""Products with half-precision rows, several times as fast as by numpy's own conversion of half to float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROWS = 128  # rows widened at once: they stay in the processor's cache
_SHIFT = 13  # float32 has 13 more bits of mantissa
_KEPT = np.int32(-0x7000_0001)  # all bits but the three between the sign and the half's exponent
_SCALE = np.float32(2.0**112)  # float32's exponent counts from -127, half's from -15


def half_products(queries: npt.NDArray[np.float32], rows: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return ``queries @ rows.T`` in float32, for queries (Q, D) of unit length and finite rows (n, D).

    A half's bits, moved to their places in a float32, are its value times 2**-112: exactly, for zeros and the smallest
    values too. The queries are scaled by 2**112 in return, which is exact as well. So no row is ever converted.
    """
    scaled = queries * _SCALE
    bits = np.ascontiguousarray(rows).view(np.int16)
    widened = np.empty((min(_ROWS, len(rows)), rows.shape[1]), np.int32)
    products = np.empty((len(queries), len(rows)), np.float32)
    for start in range(0, len(rows), _ROWS):
        part = bits[start : start + _ROWS]
        wide = widened[: len(part)]
        np.left_shift(part, _SHIFT, out=wide, dtype=np.int32)
        np.bitwise_and(wide, _KEPT, out=wide)
        products[:, start : start + len(part)] = scaled @ wide.view(np.float32).T
    return products
