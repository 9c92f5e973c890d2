import errno

import numpy as np
import pytest

from partialseg.errors import DataError
from partialseg.training.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    saved = Checkpoints(tmp_path / "checkpoint")
    for step in (1, 2, 10):
        saved.save(step, {"steps": step}, {"model/kernel": np.full((3, 4), step, np.float32)})
    return saved


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_the_newest_two_are_kept(checkpoints):
    assert names(checkpoints) == ["step000000002.npz", "step000000010.npz"]


def test_the_newest_comes_back_as_it_was(checkpoints):
    progress, arrays, torn = checkpoints.newest()
    assert (progress, torn) == ({"steps": 10}, [])
    assert list(arrays) == ["model/kernel"]
    np.testing.assert_array_equal(arrays["model/kernel"], np.full((3, 4), 10, np.float32))
    assert arrays["model/kernel"].dtype == np.float32


def test_there_is_none_before_the_first(tmp_path):
    assert Checkpoints(tmp_path / "none").newest() == (None, {}, [])


def cut_short(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def without_its_end(content):
    return content[:-1]


def one_bit_turned(content):
    place = content.index(np.full((3, 4), 10, np.float32).tobytes()) + 5
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def zeros_as_after_a_lost_power_supply(content):
    return bytes(len(content))


@pytest.mark.parametrize(
    "tear", [cut_short, empty, without_its_end, one_bit_turned, zeros_as_after_a_lost_power_supply]
)
def test_a_torn_one_is_told_and_the_one_before_is_used(checkpoints, tear):
    newest = checkpoints.folder / "step000000010.npz"
    newest.write_bytes(tear(newest.read_bytes()))
    progress, arrays, torn = checkpoints.newest()
    assert progress == {"steps": 2}
    assert float(arrays["model/kernel"][0, 0]) == 2
    assert torn == [newest]


def test_where_all_are_torn_there_is_none_and_each_is_named(checkpoints):
    for path in checkpoints.folder.iterdir():
        path.write_bytes(b"")
    progress, arrays, torn = checkpoints.newest()
    assert (progress, arrays) == (None, {})
    assert [path.name for path in torn] == ["step000000010.npz", "step000000002.npz"]


def test_after_a_torn_one_the_next_two_saved_are_kept_so_that_a_second_tear_loses_none(checkpoints):
    (checkpoints.folder / "step000000010.npz").write_bytes(b"")
    for step in (3, 4):  # as the training does that goes on from step 2
        checkpoints.save(step, {"steps": step}, {})
    assert names(checkpoints) == ["step000000003.npz", "step000000004.npz"]
    (checkpoints.folder / "step000000004.npz").write_bytes(b"")
    assert checkpoints.newest()[0] == {"steps": 3}


def test_one_that_cannot_be_read_is_no_torn_one(checkpoints, monkeypatch):
    def broken_disk(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(np, "load", broken_disk)
    with pytest.raises(DataError, match=r"step000000010\.npz: cannot be read \(Input/output error\)"):
        checkpoints.newest()


def test_one_of_a_later_step_than_asked_for_is_passed_over_and_may_be_dropped(checkpoints):
    assert checkpoints.newest(until=9)[0] == {"steps": 2}
    checkpoints.drop_after(2)
    assert names(checkpoints) == ["step000000002.npz"]


def test_a_write_that_fails_leaves_those_that_were_there(checkpoints, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(11, {"steps": 11}, {})
    assert names(checkpoints) == ["step000000002.npz", "step000000010.npz"]
