"""The report's plots: a file each, as matplotlib figures in a light and a dark palette."""
