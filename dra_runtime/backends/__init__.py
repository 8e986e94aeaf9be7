"""What runs a bundle's graphs; `dra_runtime.sessions` chooses among them, docs/backends.md describes them.

Nothing here is imported before it is used: none of the libraries is light.
"""
