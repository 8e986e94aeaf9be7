"""Bundles and engines on disk compared with PyTorch float32."""
