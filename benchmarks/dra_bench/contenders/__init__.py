"""The contenders of the benchmarks: the same model, run in every way that a user might choose instead.

`contenders.backend` says what all of them do, `contenders.choose` makes those that are there; each of the other modules
is one way.
"""
