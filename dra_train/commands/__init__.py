"""The commands of dra-train, one file each."""
