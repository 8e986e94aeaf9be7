"""Reading a file takes the memory of its content, and one that changes meanwhile is noticed."""

import tracemalloc

import pytest

from dra_runtime import regular_file
from dra_runtime.regular_file import read_regular


def test_memory_goes_by_the_file_and_not_by_the_limit(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    tracemalloc.start()
    try:
        assert read_regular(path, 2**28) == b"x" * 10_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_limits_and_a_file_that_grows(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than the 4 allowed"):
        read_regular(path, 4)
    monkeypatch.setattr(regular_file, "size_of", lambda _: 3)
    with pytest.raises(ValueError, match="grew"):
        read_regular(path, 5)
