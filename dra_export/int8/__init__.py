"""INT8 for CPUs: the fastest set of parts that keeps the recall."""
