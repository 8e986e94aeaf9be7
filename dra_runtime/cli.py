"""The command dra-search. Each command's module is imported when it is used, so that help and errors come at once."""

from dra_runtime.console import Later, command_group

main = command_group(
    "dra-search",
    """Search images by a reference image and a text that says what should be different.

    Index a folder of images once with a bundle (made by dra-export onnx), then query the gallery.

    \b
      dra-search index bundle/ images/ -o shop.gallery
      dra-search query shop.gallery --image a.jpg --text "in red"
    """,
)


def _later(name: str, short_help: str) -> Later:
    return Later(f"dra_runtime.commands.{name}", f"{name}_command", short_help, "cpu")


main.later = {
    "index": _later("index", "Encode all images of a folder into a gallery."),
    "query": _later("query", "Answer a query: a reference image, and what should differ."),
    "info": _later("info", "Say what a gallery holds."),
    "selfcheck": _later("selfcheck", "Check that a bundle gives the exporter's vectors here."),
    "drift": _later("drift", "Say whether a gallery's vectors still do with another bundle."),
}
