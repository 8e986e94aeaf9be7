"""Small programs that are measured from their start: each runs in a fresh process and marks its stages."""
