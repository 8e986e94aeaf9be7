"""An index over a gallery's first rows: it proposes candidates, which are scored as in exact search."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dra_runtime.search import Ranked, top_k


class GalleryIndex:
    """Candidates for the rows that stood in the gallery when the index was built."""

    def search(
        self,
        unit: npt.NDArray[np.float32 | np.float16],
        queries: npt.NDArray[np.float32],
        k: int,
        excluded: npt.NDArray[np.int64],
        allowed: npt.NDArray[np.bool_] | None,
    ) -> list[Ranked]:
        """Find the k nearest rows, as `dra_runtime.search.top_k` does but perhaps not all of them."""
        return top_k(unit, queries, k, excluded, allowed)
