"""The command dra-bench, also as ``python -m dra_bench``."""

from dra_runtime.console import start


def main() -> None:
    """Run the command line, or say which extra it needs."""
    start("dra_bench.cli", "bench")


if __name__ == "__main__":
    main()
