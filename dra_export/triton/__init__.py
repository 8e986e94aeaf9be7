"""A model repository for Triton Inference Server from a bundle."""
