"""The commands of dra-search, one a file."""
