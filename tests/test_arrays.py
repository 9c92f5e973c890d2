"""Boxes of arrays by byte ranges against slices of the same arrays; and local copies of remote files."""

import os
import pickle
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from partialseg.arrays import Cache, RemoteArray, open_array, plan_ranges, read_boxes
from partialseg.errors import DataError
from partialseg.storage import file_system, path_or_url


def put(array, name="array.npy"):
    """Write an array to this process's memory and give its URL."""
    path = path_or_url(f"memory://{uuid.uuid4().hex}/{name}")
    with path.open("wb") as file:
        np.save(file, array)
    return path


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-1024, 3000, (6, 7, 8)).astype(np.int16)


boxes = st.lists(
    st.integers(1, 6).flatmap(
        lambda size: st.tuples(st.just(size), st.integers(0, size), st.integers(0, size)).map(
            lambda t: (t[0], *sorted(t[1:]))
        )
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(boxes, st.integers(0, 40), st.sampled_from([np.uint8, np.int16, np.int32]))
def test_ranges_hold_the_box_and_little_else(axes, gap, dtype):
    shape = [size for size, _, _ in axes]
    box = tuple(slice(start, stop) for _, start, stop in axes)
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    plan = plan_ranges(shape, array.itemsize, box, gap)
    flat = np.frombuffer(b"".join(array.tobytes()[start:stop] for start, stop in plan.ranges), dtype)
    rows = [flat[position : position + plan.row] for position in plan.positions]
    np.testing.assert_array_equal(np.array(rows, dtype).reshape(plan.shape), array[box])
    assert all(start < stop for start, stop in plan.ranges)
    assert all(later[0] - earlier[1] > gap - array.itemsize for earlier, later in pairwise(plan.ranges))
    if gap < array.itemsize:  # nothing but the box
        assert sum(stop - start for start, stop in plan.ranges) == array[box].nbytes


@pytest.mark.parametrize(
    "key",
    [
        (slice(1, 4), slice(2, 5), slice(3, 8)),
        (slice(None), slice(None), slice(None)),
        (slice(0, 99), slice(-3, None), slice(5, 2)),
        (2, slice(1, 3), -1),
        3,
        (slice(2, 4),),
    ],
)
def test_keys_are_those_of_numpy(volume, key):
    remote = open_array(put(volume))
    assert isinstance(remote, RemoteArray)
    assert (remote.shape, remote.dtype, remote.ndim, len(remote)) == (volume.shape, volume.dtype, 3, 6)
    np.testing.assert_array_equal(remote[key], volume[key], strict=True)
    np.testing.assert_array_equal(np.asarray(remote), volume)


@pytest.mark.parametrize("key", [slice(None, None, 2), 6, -7, (0, 0, 0, 0)])
def test_other_keys_are_refused(volume, key):
    with pytest.raises(IndexError):
        open_array(put(volume))[key]


def test_what_was_read_may_be_written_to(volume):
    part = open_array(put(volume))[1:3]
    part += 1
    np.testing.assert_array_equal(part, volume[1:3] + 1)


def test_several_arrays_are_read_at_the_same_time(volume, tmp_path):
    np.save(tmp_path / "local.npy", volume)
    paths = [put(volume), put((volume > 0).astype(np.uint8))]
    arrays = [open_array(paths[0]), open_array(tmp_path / "local.npy"), open_array(paths[1])]
    box = (slice(1, 5), slice(2, 6), slice(0, 7))
    store = file_system(paths[0])
    with mock.patch.object(store, "cat_ranges", wraps=store.cat_ranges) as asked:
        image, local, label = read_boxes(arrays, box)
    assert asked.call_count == 1
    np.testing.assert_array_equal(image, volume[box])
    np.testing.assert_array_equal(local, volume[box])
    np.testing.assert_array_equal(label, volume[box] > 0)


def test_long_ranges_are_read_in_parts(volume):
    with mock.patch("partialseg.arrays.LONGEST_RANGE", 100):
        np.testing.assert_array_equal(np.asarray(open_array(put(volume))), volume)


def test_array_crosses_to_another_process(volume):
    again = pickle.loads(pickle.dumps(open_array(put(volume))))
    np.testing.assert_array_equal(again[2], volume[2])


def write_header(shape, descr="'<i2'", order=False):
    """The bytes of a `.npy` header that says what it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


BROKEN = {
    "empty": b"",
    "no npy": b"PK\x03\x04" + bytes(200),
    "cut in the header": write_header((2, 2))[:40],
    "pickle": pickle.dumps(print) + bytes(200),
    "pickled objects": write_header((1,), "'|O'") + pickle.dumps([print]),
    "10^12 voxels": write_header((10000, 10000, 10000)) + bytes(64),
    "10^60 voxels": write_header((10**20, 10**20, 10**20)) + bytes(64),
    "cut short": write_header((4, 4, 4)) + bytes(100),
    "code": write_header("__import__('os').abort()") + bytes(64),
}


def read_end(path):
    """Of a remote file, that the end is missing shows when it is read."""
    return open_array(path)[-1, -1:, -1:]


@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_damaged_file_is_named_and_nothing_in_it_is_run(content, where, tmp_path):
    path = (
        tmp_path / "image.npy" if where == "local" else path_or_url(f"memory://{uuid.uuid4().hex}/image.npy")
    )
    path.write_bytes(content)
    with (
        mock.patch("pickle.load", side_effect=AssertionError),
        pytest.raises(DataError, match=r"image\.npy: .*; prepare the case again") as error,
    ):
        read_end(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["{}/image.npy", "memory://nowhere/liver_416/image.npy"])
def test_missing_file_is_named(place, tmp_path):
    with pytest.raises(DataError, match=r"image\.npy: there is no such file"):
        open_array(path_or_url(place.format(tmp_path)))


class TestCache:
    """Local copies."""

    def test_file_is_copied_once(self, volume, tmp_path):
        path, cache = put(volume), Cache(tmp_path / "cache")
        get_file, copied = MemoryFileSystem.get_file, []

        def slowly(*arguments, **settings):
            copied.append(arguments)
            time.sleep(0.05)
            return get_file(*arguments, **settings)

        with mock.patch.object(MemoryFileSystem, "get_file", slowly), ThreadPoolExecutor(8) as pool:
            locals_ = list(pool.map(lambda _: cache.stage(path), range(16)))
        assert len(copied) == 1
        assert len(set(locals_)) == 1
        assert os.listdir(tmp_path / "cache") == [locals_[0].name]
        np.testing.assert_array_equal(open_array(locals_[0]), volume)

    def test_changed_file_is_copied_again(self, volume, tmp_path):
        path, cache = put(volume), Cache(tmp_path)
        before = cache.stage(path)
        with path.open("wb") as file:
            np.save(file, volume + 1)
        np.testing.assert_array_equal(open_array(cache.stage(path)), volume + 1)
        np.testing.assert_array_equal(open_array(before), volume)

    def test_without_room_nothing_is_copied_and_nothing_in_use_goes(self, volume, tmp_path):
        cache = Cache(tmp_path, max_bytes=volume.nbytes + 128)
        first = cache.stage(put(volume))
        assert cache.stage(put(volume)) is None
        assert list(tmp_path.iterdir()) == [first]

    def test_what_was_not_used_for_days_makes_room(self, volume, tmp_path):
        cache = Cache(tmp_path, max_bytes=2 * (volume.nbytes + 128))
        old, older = cache.stage(put(volume)), cache.stage(put(volume))
        for file, days in ((old, 2), (older, 3)):
            os.utime(file, (time.time() - days * 86400,) * 2)
        new = cache.stage(put(volume))
        assert set(tmp_path.iterdir()) == {old, new}

    def test_use_keeps_a_copy(self, volume, tmp_path):
        path, cache = put(volume), Cache(tmp_path, max_bytes=volume.nbytes + 128)
        local = cache.stage(path)
        os.utime(local, (time.time() - 2 * 86400,) * 2)
        assert cache.stage(path) == local
        assert cache.stage(put(volume)) is None

    def test_missing_file_is_named_and_nothing_is_left(self, tmp_path):
        with pytest.raises(DataError, match=r"memory://nowhere/image\.npy: there is no such file"):
            Cache(tmp_path).stage(path_or_url("memory://nowhere/image.npy"))
        assert not list(tmp_path.iterdir())
