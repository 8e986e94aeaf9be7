"""The command dra-bench. Each command's module is imported when it is used: most bring PyTorch, one matplotlib."""

from dra_runtime.console import Later, command_group

main = command_group(
    "dra-bench",
    """Measure how fast and how faithful a bundle is, beside PyTorch with the same checkpoint.

    \b
    After a run (scripts/quickstart leaves one in runs/quickstart):
      dra-bench latency   --bundle bundle/ --checkpoint ckpt.pt -o latency.json
      dra-bench latency   --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt
      dra-bench recall    --bundle bundle/ --bundle bundle-int8/ --checkpoint ckpt.pt -o recall.json
      dra-bench gallery   --bundle bundle/ --items 100000 --cache galleries/
      dra-bench compare   before.json now.json
      dra-bench report    runs/quickstart
    """,
)


def _later(name: str, short_help: str) -> Later:
    return Later(f"dra_bench.commands.{name}", f"{name}_command", short_help, "bench")


main.later = {
    "latency": _later("latency", "Time every part of a query, PyTorch beside one bundle or several."),
    "recall": _later("recall", "Compare the answers of PyTorch and of every artifact."),
    "memory": _later("memory", "Compare the memory of processes that answer queries."),
    "coldstart": _later("coldstart", "Time from starting Python to the first answer."),
    "endtoend": _later("endtoend", "Time a query from a JPEG file to ten answers, and each step of it."),
    "gallery": _later("gallery", "Time the search in large galleries, exact and with an index."),
    "load": _later("load", "Answer queries in a stream, in batches and as a server; by threads."),
    "growth": _later("growth", "Draw how cost grows: with batch, text length, gallery, threads."),
    "roofline": _later("roofline", "Compare every part with what this machine can do."),
    "compare": _later("compare", "Say what became slower or worse between two results."),
    "guard": _later("guard", "Warn when a short run's ratios fell below the committed ones."),
    "report": _later("report", "Write one page about a run."),
}
