"""Answer queries from a bundle: python -m dra_bench.probes.bundle BUNDLE PICTURE TEXT MORE THREADS INTEGRITY [GALLERY].

Without a gallery an answer is the query's vector, with one the ten nearest images.
"""

from dra_bench.probes.marks import mark, report


def main(
    bundle: str, picture: str, text: str, more: str, threads: str, integrity: str, gallery: str | None = None
) -> None:
    """Open everything, answer one query and then more of them, a picture and a text each."""
    mark("interpreter")
    import dra_runtime

    mark("import dra_runtime")
    checked: dra_runtime.bundle.Integrity = "size" if integrity == "size" else "hash"
    encoder = dra_runtime.Encoder.open(bundle, threads=int(threads), integrity=checked)
    mark("open the bundle")
    opened = None if gallery is None else dra_runtime.Gallery.open(gallery, encoder, checked)
    if opened is not None:
        mark("open the gallery")
    import onnxruntime  # noqa: F401 - the sessions below need it: its share is shown apart

    mark("import onnxruntime")
    # in the order in which a query needs them
    for graph in ("image_encoder", "text_encoder", "compositor"):
        encoder.session(graph)
        mark(f"load the {graph.replace('_', ' ')}")

    def answer() -> None:
        if opened is None:
            encoder.encode_queries(picture, [text])
        else:
            opened.search(text=text, image=picture)

    answer()
    mark("first answer")
    if int(more):
        for _ in range(int(more)):
            answer()
        mark("more answers")
    report()


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
