"""Index large galleries with faiss, as a generator of candidate rows.

Build one with `build_index`, keep `AnnIndex.arrays` beside the vectors, and open those with `index_from_arrays`.
docs/index.md says which kind is for what.
"""

from dra_runtime.ann.index import INDEX_KINDS, AnnIndex, IndexKind, build_index, index_from_arrays
from dra_runtime.ann.recall import recall_against_exact

__all__ = ["INDEX_KINDS", "AnnIndex", "IndexKind", "build_index", "index_from_arrays", "recall_against_exact"]
