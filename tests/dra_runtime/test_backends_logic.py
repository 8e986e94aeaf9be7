"""What backends on the GPU decide without one: profiles, pieces of a batch, buffers, CUDA graphs, the pool."""

import itertools
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dra_runtime.backends.captures import Captures
from dra_runtime.backends.pool import Pool
from dra_runtime.backends.profiles import batch_ranges, buffer_sizes, pieces_of, profile_for, shape_of, symbols_of
from dra_runtime.errors import BackendError, UsageError
from dra_runtime.manifest import TensorSpec
from dra_runtime.sessions import GpuOptions

TOKENS = TensorSpec("tokens", "int32", ("batch", "length"))
IMAGE = TensorSpec("image", "float32", ("batch", 3, 8, 8))
RANGES = st.tuples(st.integers(1, 12), st.integers(0, 12)).map(lambda ends: (ends[0], ends[0] + ends[1]))


def tokens(batch, length=(2, 77)):
    return {"tokens": ((batch[0], length[0]), (batch[0], length[0]), (batch[1], length[1]))}


@given(st.lists(st.tuples(RANGES, RANGES), min_size=1, max_size=5), st.integers(0, 26), st.integers(0, 26))
def test_the_narrowest_profile_that_covers_a_shape_is_chosen(profiles, batch, length):
    found = profile_for([tokens(*ends) for ends in profiles], {"tokens": (batch, length)})
    covering = [
        (ends[0][1] * ends[1][1], i)
        for i, ends in enumerate(profiles)
        if batch in range(ends[0][0], ends[0][1] + 1) and length in range(ends[1][0], ends[1][1] + 1)
    ]
    assert found == (min(covering)[1] if covering else None)


@pytest.mark.parametrize(("batch", "profile"), [(1, 0), (2, 1), (8, 1), (9, 2), (64, 2), (65, None)])
def test_the_profiles_that_are_built_are_used_as_meant(batch, profile):
    profiles = [tokens((1, 1)), tokens((1, 8)), tokens((1, 64))]
    assert profile_for(profiles, {"tokens": (batch, 12)}) == profile
    assert profile_for(profiles, {"tokens": (batch, 78)}) is None
    assert profile_for(profiles, {"tokens": (batch, 12, 1)}) is None


@given(st.integers(0, 60), st.lists(RANGES, min_size=1, max_size=4))
def test_every_row_is_in_one_piece_and_every_piece_in_a_range(count, ranges):
    pieces = pieces_of(count, ranges)
    most = max(largest for _, largest in ranges)
    assert sum(rows for rows, _ in pieces) == count
    assert len(pieces) == -(-count // most)
    for rows, batch in pieces:
        # the smallest batch that some range takes and that holds the rows
        fitting = [b for least, largest in ranges for b in range(least, largest + 1) if b >= rows]
        assert (rows >= 1, batch) == (True, min(fitting))


def test_batches_are_those_of_the_profiles_that_cover_the_length():
    profiles = [tokens((1, 1)), tokens((2, 8), (2, 16))]
    assert batch_ranges(profiles, {"tokens": (5, 12)}) == [(1, 1), (2, 8)]
    assert batch_ranges(profiles, {"tokens": (5, 17)}) == [(1, 1)]
    assert batch_ranges(profiles, {"tokens": (5, 78)}) == []


def test_buffers_hold_a_profiles_largest_shapes():
    profile = {
        "tokens": ((1, 2), (2, 16), (4, 77)),
        "image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)),
    }
    sizes = buffer_sizes([TOKENS, IMAGE], [TensorSpec("query", "float32", ("batch", 10))], profile)
    assert sizes == {"tokens": 4 * 77 * 4, "image": 4 * 3 * 64 * 4, "query": 4 * 10 * 4}
    uint8 = TensorSpec("image", "uint8", IMAGE.shape)
    assert buffer_sizes([TOKENS, uint8], [], profile)["image"] == 4 * 3 * 64


def test_free_dimensions_are_read_once_and_must_agree():
    symbols = symbols_of([TOKENS, IMAGE], {"tokens": (3, 12), "image": (3, 3, 8, 8)})
    assert symbols == {"batch": 3, "length": 12}
    assert shape_of(TensorSpec("x", "float32", ("length", 5, "batch")), symbols) == (12, 5, 3)
    for shapes in ({"tokens": (3, 12), "image": (2, 3, 8, 8)}, {"tokens": (3, 12), "image": (3, 3, 8, 9)}):
        with pytest.raises(BackendError, match="image has the shape"):
            symbols_of([TOKENS, IMAGE], shapes)
    with pytest.raises(BackendError, match=r"expected \('batch', 'length'\)"):
        symbols_of([TOKENS], {"tokens": (3,)})


@given(st.lists(st.integers(0, 6)), st.integers(0, 4))
def test_the_first_shapes_that_come_twice_get_a_cuda_graph(shapes, most):
    captures, seen, chosen = Captures(most), [], []
    for shape in shapes:
        if shape in seen and shape not in chosen and len(chosen) < most:
            chosen.append(shape)
        seen.append(shape)
        assert captures.choose(shape) == (shape in chosen)
    captures.stop()
    assert not any(captures.choose(shape) for shape in shapes * 2)


def test_sixteen_threads_never_hold_one_item_together():
    class Item:
        held = False

    items, faults, turns = [Item() for _ in range(3)], [], itertools.count()
    pool = Pool(items, lambda item: None)

    def work(number):
        for _ in range(20):
            try:
                with pool.take() as item:
                    if item.held:
                        faults.append(number)
                    item.held = True
                    time.sleep(0.0002)
                    item.held = False
                    if next(turns) % 3 == 0:
                        raise RuntimeError("a call that fails gives its item back")
            except RuntimeError:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert not faults
    assert next(turns) == 320
    released = []
    pool._release = released.append
    pool.close()
    assert sorted(map(id, released)) == sorted(map(id, items))


def test_who_waits_is_woken_and_the_warm_item_is_lent_first():
    pool = Pool(["a", "b"], lambda item: None)
    with pool.take() as first, pool.take() as second:
        assert {first, second} == {"a", "b"}
        got = []

        def wait():
            with pool.take() as item:
                got.append(item)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.02)
        assert got == []
    thread.join(5)
    assert len(got) == 1
    with pool.take() as last:
        pass
    with pool.take() as again:
        assert again == last


def test_a_closed_pool_releases_each_item_once_and_refuses_everybody():
    released, refused = [], []
    pool = Pool(["a"], released.append)

    def wait():
        try:
            with pool.take():
                pass
        except BackendError as error:
            refused.append(str(error))

    with pool.take():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.02)
        pool.close()
        thread.join(5)
        assert released == []  # still lent
    assert released == ["a"]
    pool.close()
    with pytest.raises(BackendError, match="was closed"), pool.take():
        pass
    assert refused == ["the session was closed; open the bundle again"]
    assert released == ["a"]


@pytest.mark.parametrize("values", [{"contexts": 0}, {"contexts": True}, {"graphs": -1}, {"contexts": 2.0}])
def test_options_of_the_gpu_are_checked(values):
    with pytest.raises(UsageError, match="give a whole number"):
        GpuOptions(**values)
