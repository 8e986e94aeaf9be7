"""The command dra-train, also as ``python -m dra_train``."""

import os

from dra_runtime.console import start


def main() -> None:
    """Run the command line, or say which extra it needs."""
    # PyTorch's threads spin while they wait for one another. Where other programs share the cores (a container, a CI
    # machine) that made runs many times as slow. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    start("dra_train.cli", "train")


if __name__ == "__main__":
    main()
