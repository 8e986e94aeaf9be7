"""The command dra-export, also as ``python -m dra_export``."""

import os

from dra_runtime.console import start


def main() -> None:
    """Run the command line, or say which extra it needs."""
    # PyTorch's threads spin while they wait for one another. Where other programs share the cores (a container, a CI
    # machine) that made runs many times as slow. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start("dra_export.cli", "export")


if __name__ == "__main__":
    main()
