"""Open a gallery and search in it: python -m dra_bench.probes.gallery BUNDLE GALLERY QUERIES.npy THREADS."""

import sys

from dra_bench.probes.marks import mark, report


def main(bundle: str, path: str, queries_file: str, threads: str) -> None:
    """Open the gallery twice, quickly and thoroughly, then answer all queries one by one."""
    import numpy as np

    from dra_runtime import Encoder, Gallery

    queries = np.load(queries_file, allow_pickle=False)
    encoder = Encoder.open(bundle, threads=int(threads), integrity="size")
    mark("bundle open")
    gallery = Gallery.open(path, encoder, "size")
    mark("gallery open, sizes checked")
    gallery.search_vectors(queries[:1], 10)
    mark("first answer")
    for query in queries[1:]:
        gallery.search_vectors(query[None], 10)
    mark("more answers")
    Gallery.open(path, encoder, "hash")
    mark("gallery open, hash checked")
    report()


if __name__ == "__main__":
    main(*sys.argv[1:])
