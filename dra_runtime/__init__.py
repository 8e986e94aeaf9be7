"""Answer composed image queries from a bundle, without PyTorch."""

__version__ = "0.1.0"
