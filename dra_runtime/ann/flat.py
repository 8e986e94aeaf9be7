"""The flat index: every row is compared, in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dra_runtime.ann.library import Rows, Unit, flat_index, half_codes, load_faiss


@dataclass(frozen=True)
class FlatSearcher:
    """An opened flat index, and the codes that faiss reads."""

    index: Any
    codes: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, unit: Unit) -> FlatSearcher:
        """Open rows (N, D)."""
        codes = half_codes(unit)
        return cls(flat_index(codes, unit.shape[1]), codes)

    def search(self, queries: npt.NDArray[np.float32], count: int, selector: Any, share: float) -> Rows:
        """Find the nearest rows exactly, as half precision sees them."""
        parameters = load_faiss().SearchParameters(sel=selector) if selector is not None else None
        rows: Rows = self.index.search(queries, count, params=parameters)[1]
        return rows
