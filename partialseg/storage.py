"""Where files lie: in a folder, or in an object store that is named by a URL (`s3://`, `gs://`, `az://`).

A local path is a `pathlib.Path`; a URL becomes a `upath.UPath`, which has the same methods and reads and writes
through fsspec (s3fs, gcsfs, adlfs). Credentials are found as each cloud's own tools find them: environment
variables, configuration files, the machine's role. Nothing here imports a cloud's library before a URL is met.

What fails for a moment is tried again by these libraries: s3fs 5 times, gcsfs 6 times, and adlfs 4 times.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Union
from urllib.parse import unquote, urlsplit

from partialseg.errors import DataError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from upath import UPath

Location = Union[Path, "UPath"]

#: A scheme has at least two letters: `c://` is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server "
    "that is not Amazon's)",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
#: Packages whose exceptions are about the store, though they are no OSError.
_STORE_PACKAGES = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs", "fsspec")


def path_or_url(place: str | os.PathLike[str] | UPath) -> Location:
    """Give a path for a local name, and for a URL an object that behaves like a path.

    `Path("s3://bucket/folder")` would lose one of the slashes; whatever may be a URL goes through here.

    Args:
        place: A local path, a URL, or a `UPath` (which may carry settings of its own for its store).

    Raises:
        DataError: If the URL's scheme is unknown, or what reads it is not installed.

    Example:
        >>> path_or_url("/data/prepared").name
        'prepared'
        >>> str(path_or_url("memory://bucket/prepared") / "manifest.json")
        'memory://bucket/prepared/manifest.json'
    """
    if is_remote(place):
        return place  # with the settings that it has
    match = _URL.match(str(place))
    if match is None:
        return Path(place)
    url, scheme = str(place), match[1].lower()
    if scheme == "file":
        return Path(unquote(urlsplit(url).path))
    try:
        from fsspec import get_filesystem_class
        from upath import UPath

        get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme, "s3")
        raise DataError(
            url,
            f"needs a package that is not installed ({error})",
            f'run `pip install "partialseg[{extra}]"`',
        ) from error
    except ValueError as error:
        raise DataError(
            url, f"has the unknown scheme {scheme}", "give a folder, or a URL with s3://, gs:// or az://"
        ) from error
    # A listing that is kept would hide what other processes have written since.
    return UPath(url.rstrip("/"), use_listings_cache=False)


def is_remote(path: object) -> bool:
    """Whether `path_or_url` took this for a URL.

    Example:
        >>> is_remote(path_or_url("memory://bucket/prepared")), is_remote(path_or_url("prepared"))
        (True, False)
    """
    return getattr(path, "protocol", "") not in ("", "file")  # a plain path has none


def file_system(path: UPath) -> AbstractFileSystem:
    """The fsspec file system of a URL: one for all threads of a process, and a new one after a fork.

    Raises:
        DataError: If it cannot be made, since no account is named (Azure).
    """
    import fsspec

    try:
        with naming(path):
            return fsspec.filesystem(path.protocol, **path.storage_options)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"cannot be opened ({error})", _remedy_of_access(path)) from error


@contextlib.contextmanager
def naming(path: Location) -> Iterator[None]:
    """Turn what an object store (or a disk) answers in this block into one line that names `path`.

    Raises:
        DataError: For a missing object, a refused access, missing credentials, a store that does not answer.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        package = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and package not in _STORE_PACKAGES:
            raise
        raise DataError(path, *_explain(error, path)) from error


def read_bytes(path: Location) -> bytes | None:
    """The content of a file; None if there is none.

    `path.is_file()` would say of a refused access, too, that there is no file.

    Raises:
        DataError: If the access is refused, or the store does not answer.
    """
    with naming(path):
        try:
            return file_system(path).cat_file(path.path) if is_remote(path) else path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def is_file(path: Location) -> bool:
    """Whether there is such a file; unlike `path.is_file()`, a refused access is an error.

    Raises:
        DataError: If the access is refused, or the store does not answer.
    """
    if not is_remote(path):
        return path.is_file()
    with naming(path):
        try:
            return file_system(path).info(path.path)["type"] == "file"
        except FileNotFoundError:
            return False


def list_files(folder: Location) -> dict[str, int]:
    """Name below the folder (with `/`) and size in bytes of each file in it; empty if there is none.

    Raises:
        DataError: If the access is refused, or the store does not answer.
    """
    with naming(folder):
        if not is_remote(folder):
            files = (path for path in folder.rglob("*") if path.is_file())
            return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        found = file_system(folder).find(folder.path, detail=True)
    start = len(folder.path.strip("/")) + 1
    return {name.strip("/")[start:]: entry["size"] for name, entry in found.items()}


def upload(local: Path, path: UPath, last: str | None = None) -> None:
    """Copy a file, or the files of a folder, to a URL; each object appears whole or not at all.

    Args:
        local: The file or folder.
        path: Its name in the store.
        last: Of a folder, the file that makes it whole: an earlier one is deleted first, and this one is
            written when all others are there.

    Raises:
        DataError: If the store does not take it.
    """
    store = file_system(path)
    with naming(path):
        if not local.is_dir():
            store.put_file(str(local), path.path)
            return
        files = sorted(file for file in local.rglob("*") if file.is_file() and file != local / (last or ""))
        if last is not None and store.exists((path / last).path):
            store.rm_file((path / last).path)
        store.put(
            [str(file) for file in files],
            [(path / file.relative_to(local).as_posix()).path for file in files],
        )
        if last is not None:
            store.put_file(str(local / last), (path / last).path)


def _explain(error: Exception, path: Location) -> tuple[str, str]:
    """What happened, and what to do."""
    words = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        names = ("bucket", "container")
        what = next((name for name in names if f"{name} does not exist" in words.lower()), "file")
        return f"there is no such {what}", "check the name, or make what is missing"
    if isinstance(error, PermissionError):
        return f"access is refused ({words})", _remedy_of_access(path)
    if "credential" in (type(error).__name__ + words).lower():
        return f"there are no credentials ({words})", _remedy_of_access(path)
    if is_remote(path):
        return (
            f"the store does not answer as it should ({type(error).__name__}: {words})",
            "check the network and the address of the store, and run the command again",
        )
    return f"cannot be read or written ({words})", "check the disk and the permissions"


def _remedy_of_access(path: Location) -> str:
    scheme = _EXTRAS.get(getattr(path, "protocol", ""))
    return _CREDENTIALS[scheme] if scheme else "check who may read and write there"
