"""The command dra-train, also as ``python -m dra_train``."""

from dra_runtime.console import start


def main() -> None:
    """Run the command line, or say which extra it needs."""
    start("dra_train.cli", "train")


if __name__ == "__main__":
    main()
