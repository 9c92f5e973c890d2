"""Paths and URLs, and what is said of a store that does not give or take a file."""

import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from unittest import mock

import pytest

from partialseg.errors import DataError
from partialseg.files import write_text
from partialseg.storage import (
    file_system,
    is_file,
    is_remote,
    list_files,
    naming,
    path_or_url,
    read_bytes,
    upload,
)


@pytest.fixture
def bucket():
    """A URL below which nothing lies yet, in this process's memory."""
    return path_or_url(f"memory://{uuid.uuid4().hex}")


@pytest.mark.parametrize(
    "place", ["/data/prepared", "prepared", Path("prepared"), "c:/prepared", "c://prepared"]
)
def test_a_local_name_is_a_plain_path(place):
    assert path_or_url(place) == Path(place)
    assert not is_remote(path_or_url(place))


def test_file_url_is_a_local_path(tmp_path):
    assert path_or_url((tmp_path / "a b").as_uri()) == tmp_path / "a b"


@pytest.mark.parametrize("url", ["s3://bucket/prepared", "s3://bucket/prepared/", "memory://bucket/prepared"])
def test_a_url_keeps_its_slashes(url):
    path = path_or_url(url)
    assert is_remote(path)
    assert str(path / "a" / "case.json") == f"{url.rstrip('/')}/a/case.json"
    assert path_or_url(path / "a") == path / "a"


def test_a_url_crosses_to_another_process():
    path = path_or_url("s3://bucket/prepared/case.json")
    again = pickle.loads(pickle.dumps(path))
    assert str(again) == str(path)
    assert again.storage_options == path.storage_options


def test_unknown_scheme_is_refused():
    with pytest.raises(
        DataError, match="nothing://bucket: has the unknown scheme nothing; give a folder, or a URL"
    ):
        path_or_url("nothing://bucket")


@pytest.mark.parametrize(
    ("url", "extra"), [("gs://bucket/a", "gs"), ("az://box/a", "az"), ("s3://bucket", "s3")]
)
def test_missing_package_names_the_extra(url, extra):
    with (
        mock.patch("fsspec.get_filesystem_class", side_effect=ImportError("Install it")),
        pytest.raises(DataError, match=rf'{url}: needs a package .*pip install "partialseg\[{extra}\]"'),
    ):
        path_or_url(url)


def test_a_local_path_loads_no_store_s_library():
    code = (
        "import sys\nfrom partialseg.storage import path_or_url\nfrom partialseg.files import write_text\n"
        "path_or_url('prepared')\nsys.exit(', '.join({'fsspec', 'upath', 's3fs'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_folder_is_uploaded_with_the_named_file_last(bucket, tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.npy", "case.json", "deep/b.npy"):
        (tmp_path / name).write_text(name)
    (bucket / "case.json").write_text("of an earlier run")
    store, seen = file_system(bucket), []
    put_file = store.put_file

    def spy(local, remote, **settings):
        names = {Path(path).name for path in store.find(bucket.path)}
        seen.append((Path(remote).name, "case.json" in names))
        put_file(local, remote, **settings)

    with mock.patch.object(store, "put_file", spy):
        upload(tmp_path, bucket, last="case.json")
    assert seen == [("a.npy", False), ("b.npy", False), ("case.json", False)]
    assert {name: (bucket / name).read_text() for name in ("a.npy", "case.json", "deep/b.npy")} == {
        name: name for name in ("a.npy", "case.json", "deep/b.npy")
    }


@pytest.mark.parametrize("where", ["local", "remote"])
def test_files_are_listed_and_read(where, bucket, tmp_path):
    folder = tmp_path if where == "local" else bucket
    assert list_files(folder / "a") == {}
    assert read_bytes(folder / "a" / "b.txt") is None
    write_text(folder / "a" / "b.txt", "bc")
    write_text(folder / "a" / "c" / "d.txt", "d")
    assert list_files(folder / "a") == {"b.txt": 2, "c/d.txt": 1}
    assert read_bytes(folder / "a" / "b.txt") == b"bc"
    assert [is_file(folder / "a" / name) for name in ("b.txt", "c", "e.txt")] == [True, False, False]


def test_refused_access_is_not_taken_for_a_missing_file(bucket):
    refusal = mock.patch(
        "fsspec.implementations.memory.MemoryFileSystem.cat_file", side_effect=PermissionError
    )
    with refusal, pytest.raises(DataError, match="access is refused"):
        read_bytes(bucket / "a.json")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError("bucket/a"), "there is no such"),
        (FileNotFoundError("The specified bucket does not exist"), "there is no such bucket"),
        (PermissionError("Forbidden"), r"access is refused \(Forbidden\); set AWS_PROFILE"),
        (TimeoutError(), "does not answer as it should.*check the network"),
    ],
)
def test_what_a_store_answers_becomes_one_line_with_the_url(error, words):
    with pytest.raises(DataError, match=rf"^s3://b/a: .*{words}"), naming(path_or_url("s3://b/a")):
        raise error


def test_a_mistake_of_the_program_is_not_taken_for_the_store_s():
    with pytest.raises(ZeroDivisionError), naming(path_or_url("s3://b/a")):
        1 / 0  # noqa: B018
