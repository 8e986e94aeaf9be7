"""FP16: graphs that compute in half precision, and the proof that they may."""
