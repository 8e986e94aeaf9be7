"""The commands of dra-bench, one a module, imported when used."""
