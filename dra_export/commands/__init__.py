"""The commands of dra-export, one a file."""
