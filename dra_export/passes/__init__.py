"""Exact simplifications, one a file: of the PyTorch module before it is traced, and of the ONNX graph afterwards."""
