"""TensorRT and TensorRT-RTX engines from a bundle, and the proof of their precision."""
