"""The command dra-export, also as ``python -m dra_export``."""

from dra_runtime.console import start


def main() -> None:
    """Run the command line, or say which extra it needs."""
    start("dra_export.cli", "export")


if __name__ == "__main__":
    main()
