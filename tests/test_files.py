import errno
import json
import os
import pickle
import tempfile
import uuid
from pathlib import Path

import pytest

from partialseg.errors import DataError
from partialseg.files import atomic_path, os_problem, write_json, write_text
from partialseg.storage import path_or_url


def fail(action):
    action()
    raise RuntimeError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_under_its_name_alone(tmp_path):
    write_text(tmp_path / "deep" / "note.txt", "é")
    assert (tmp_path / "deep" / "note.txt").read_text(encoding="utf-8") == "é"
    assert names(tmp_path / "deep") == ["note.txt"]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"kept": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as temporary:
        fail(lambda: temporary.write_text("half"))
    assert names(tmp_path) == ["a.json"]
    assert "kept" in (tmp_path / "a.json").read_text()


def test_a_folder_replaces_a_folder(tmp_path):
    for content in ("first", "second"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["second"]


def test_a_failed_folder_leaves_the_one_before(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "folder") as temporary:
        fail(temporary.mkdir)
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["kept"]


def test_a_url_is_written_when_the_block_has_ended_well():
    place = path_or_url(f"memory://{uuid.uuid4().hex}")
    with pytest.raises(RuntimeError), atomic_path(place / "a.json") as temporary:
        fail(lambda: temporary.write_text("half"))
    assert not (place / "a.json").exists()
    write_json(place / "a.json", {"written": 1})
    assert json.loads((place / "a.json").read_text()) == {"written": 1}
    with atomic_path(place / "case", last="case.json") as temporary:
        temporary.mkdir()
        for name in ("case.json", "image.npy"):
            (temporary / name).write_text(name)
    assert (place / "case" / "image.npy").read_text() == "image.npy"
    assert (place / "case" / "case.json").read_text() == "case.json"
    assert not temporary.exists()


def test_a_folder_that_cannot_be_renamed_leaves_the_one_before(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").touch()
    real = os.replace

    def refuse(source, target):
        if Path(target).name == "folder" and "replaced" not in Path(source).name:
            raise OSError(errno.EIO, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"), atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["kept"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_folder_for_temporary_files_is_named(code):
    place = path_or_url(f"memory://{uuid.uuid4().hex}") / "a.json"
    full = f"{place}: the folder for temporary files, {tempfile.gettempdir()}, has no room .*set TMPDIR"
    with pytest.raises(DataError, match=full), atomic_path(place) as temporary:
        raise OSError(code, os.strerror(code))
    assert not place.exists()
    assert not temporary.parent.exists()


def test_a_missing_file_that_was_to_be_read_is_not_told_as_one_to_be_made(tmp_path):
    path = tmp_path / "gone.txt"
    with pytest.raises(FileNotFoundError) as read:
        path.read_text()
    expected = f"{path}: there is no such file or folder; correct the path, or put it back"
    assert str(os_problem(read.value)) == expected
    new = tmp_path / "made" / "new.txt"
    with atomic_path(new) as temporary:
        new.parent.rmdir()  # as another process may
        with pytest.raises(FileNotFoundError) as written:
            temporary.touch()
        assert f"{new}: cannot be made in {tmp_path} (" in str(os_problem(written.value))
        new.parent.mkdir()
        temporary.touch()


def test_temporary_names_keep_the_suffixes(tmp_path):
    with atomic_path(tmp_path / "case.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert temporary.parent == tmp_path
        temporary.touch()


def test_a_data_error_is_one_line_and_crosses_processes():
    error = pickle.loads(pickle.dumps(DataError("a.nii.gz", "is\n  odd", "mend it")))
    assert str(error) == "a.nii.gz: is odd; mend it"
    assert error.path == "a.nii.gz"
