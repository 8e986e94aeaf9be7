"""Measure latency and recall of PyTorch and of a bundle, side by side."""
