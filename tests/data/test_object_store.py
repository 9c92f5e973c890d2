"""Prepared data in a bucket, against a server that speaks the S3 protocol (moto's, on loopback)."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass, field
from unittest import mock

import fsspec
import numpy as np
import pytest
import tensorflow as tf

from partialseg.arrays import Cache, RemoteArray
from partialseg.cli import main
from partialseg.data.cards import read_card
from partialseg.data.labels import candidate_table
from partialseg.data.patch_reading import PatchReader
from partialseg.data.pipeline import patches
from partialseg.data.prepare import prepare
from partialseg.data.prepared import Case, Dataset, Prepared, read_prepared, write_manifest
from partialseg.data.sampling import PatchConfig
from partialseg.errors import DataError
from partialseg.storage import path_or_url, upload

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

CONFIG = PatchConfig(patch_size=(7, 16, 20), batch_size=3, batches_per_epoch=4, seed=5)


@dataclass
class Server:
    """A server, and what it was asked for: `(method, path, bytes of the answer)`."""

    url: str
    answers: list[tuple[str, str, int]] = field(default_factory=list)
    busy: int = 0  # so many requests are answered with 503

    def refuse_unknown_keys(self, refuse: bool) -> None:
        """Check the access keys from now on (or no longer)."""
        url, calls = f"{self.url}/moto-api/reset-auth", b"0" if refuse else b"1000000"
        request = urllib.request.Request(
            url, data=calls, headers={"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def server():
    """A server with the bucket `bucket`; credentials and its address stand in the environment."""
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log_request(self, *_):
            pass

    app, running = DomainDispatcherApplication(create_backend_app), Server("")

    def counted(environ, start):
        if running.busy:
            running.busy -= 1
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        body = list(app(environ, start))
        running.answers.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], sum(map(len, body))))
        return body

    listening = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        url = f"http://127.0.0.1:{listening.server_port}"
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        s3fs.S3FileSystem.clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        running.url = url
        yield running
    s3fs.S3FileSystem.clear_instance_cache()
    listening.shutdown()
    thread.join()


@pytest.fixture
def fresh_client(server):
    """What the environment says of credentials and address now counts, and that of before counts afterwards."""
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def remote(server, tiny_prepared):
    """The URL of a copy of the prepared phantom data; tests must not write there."""
    upload(tiny_prepared, path_or_url("s3://bucket/prepared"), last="manifest.json")
    return "s3://bucket/prepared"


def write_array(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def batches(prepared, num=6, **settings):
    return list(patches(prepared, CONFIG.model_copy(update=settings)).take(num).as_numpy_iterator())


def test_patches_are_those_of_the_local_folder(remote, tiny_prepared):
    expected = batches(tiny_prepared)
    tf.nest.map_structure(np.testing.assert_array_equal, batches(remote, workers=4), expected)


def test_patches_from_local_copies_are_the_same_and_read_the_store_once(
    server, remote, tiny_prepared, tmp_path
):
    server.answers.clear()
    for _ in range(2):
        prepared = read_prepared(remote, cache=tmp_path)
        tf.nest.map_structure(
            np.testing.assert_array_equal, batches(prepared, workers=4), batches(tiny_prepared)
        )
    read = [path for method, path, _ in server.answers if method == "GET" and path.endswith(".npy")]
    assert len(read) == len(set(read)) > 3


def test_environment_names_the_folder_of_local_copies(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("PARTIALSEG_CACHE", str(tmp_path))
    prepared = read_prepared(remote)
    assert prepared.cache == Cache(tmp_path)
    assert isinstance(prepared.image(prepared.cases[0]), np.memmap)
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_patch_s_own_part_is_read(server, tmp_path):
    shape, size = (40, 600, 400), (8, 80, 200)
    image = np.random.default_rng(0).integers(-1000, 3000, shape, dtype=np.int16)
    label = (image > 0).astype(np.uint8)
    affine = tuple(map(tuple, np.eye(4).tolist()))
    case = Case("wide", "a", "train", shape, affine, ((1, 0, 1),), (1,), "", "", "")
    table = candidate_table(("background", "liver"), ["liver"])
    datasets = {"wide": Dataset("wide", ("liver",), table)}
    write_manifest(Prepared(tmp_path, ("background", "liver"), (3.0, 1.5, 1.5), datasets, (case,)))
    for name, array in (("image", image), ("label", label), ("foreground", np.array([7], np.int32))):
        write_array(tmp_path / "wide" / "a" / f"{name}.npy", array)
    upload(tmp_path, path_or_url("s3://bucket/wide"))
    prepared = read_prepared("s3://bucket/wide")
    assert isinstance(prepared.image(case), RemoteArray)
    assert isinstance(prepared.label(case), RemoteArray)

    server.answers.clear()
    patch = PatchReader(prepared, size).read_box(case, (3, 40, 60), size)
    for read, whole in zip(patch, (image, label), strict=True):
        np.testing.assert_array_equal(read, whole[3:11, 40:120, 60:260])
    patch_bytes = sum(array.nbytes for array in patch)
    received = sum(size for _, _, size in server.answers)
    assert patch_bytes < received <= 2 * patch_bytes  # rows of 400 voxels for 200, not whole slices
    assert received < (image.nbytes + label.nbytes) / 35
    assert len(server.answers) == 16  # one for each slice of image and label, not for each row


def test_a_store_that_is_busy_for_a_moment_is_asked_again(server, remote, tiny_prepared):
    prepared, local = read_prepared(remote), read_prepared(tiny_prepared)
    label = prepared.label(prepared.cases[0])
    server.busy = 2
    np.testing.assert_array_equal(label[3:5], local.label(local.cases[0])[3:5])
    assert server.busy == 0


@pytest.mark.slow
def test_a_forked_process_reads_too(remote):
    code = (
        "import multiprocessing\nfrom partialseg.data.prepared import read_prepared\n"
        f"prepared = read_prepared('{remote}')\n"
        "def total(case): return int(prepared.label(case)[2:4].sum())\n"
        "here = [total(case) for case in prepared.cases]\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    assert pool.map(total, prepared.cases) == here\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def files_of(url):
    """`{name: content}` of all objects below a URL."""
    path = path_or_url(url)
    store = fsspec.filesystem("s3", use_listings_cache=False)
    return {name.removeprefix(path.path): store.cat_file(name) for name in store.find(path.path)}


def test_prepare_writes_to_a_bucket_what_it_writes_to_a_folder(server, tiny_raw, tmp_path):
    cards, out = [read_card("msd_spleen")], "s3://bucket/spleens"
    local = prepare(cards, tiny_raw, tmp_path, spacing_mm=(6.0, 6.0, 6.0), jobs=1)
    there = prepare(cards, tiny_raw, out, spacing_mm=(6.0, 6.0, 6.0), jobs=1)
    assert not there.problems
    assert there.done == local.done > 1
    expected = {f"/{path.relative_to(tmp_path)}": path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert files_of(out) == expected

    again = prepare(cards, tiny_raw, out, spacing_mm=(6.0, 6.0, 6.0), jobs=1)
    assert (again.done, again.skipped) == (0, local.done)
    case = again.prepared.cases[0]
    (
        again.prepared.folder / case.dataset / case.name / "case.json"
    ).unlink()  # as if it had been killed there
    server.answers.clear()
    again = prepare(cards, tiny_raw, out, spacing_mm=(6.0, 6.0, 6.0), jobs=1)
    assert (again.done, again.skipped) == (1, local.done - 1)
    written = [path for method, path, _ in server.answers if method == "PUT"]
    of_the_case = [path.rsplit("/", 1)[1] for path in written if f"/{case.name}/" in path]
    assert sorted(of_the_case[:3]) == ["foreground.npy", "image.npy", "label.npy"]
    assert of_the_case[3:] == ["case.json"]
    assert written[-1] == "/bucket/spleens/manifest.json"
    assert files_of(out) == expected


def test_problem_of_one_case_leaves_nothing_of_it_in_the_bucket(server, tiny_raw, tmp_path):
    shutil.copytree(tiny_raw / "Task09_Spleen", tmp_path / "Task09_Spleen")
    broken = sorted((tmp_path / "Task09_Spleen" / "imagesTr").iterdir())[0]
    broken.write_bytes(b"")
    result = prepare(
        [read_card("msd_spleen")], tmp_path, "s3://bucket/broken", spacing_mm=(6.0, 6.0, 6.0), jobs=1
    )
    assert len(result.problems) == 1
    names = list(files_of("s3://bucket/broken"))
    assert result.done == sum(name.endswith("case.json") for name in names) == len(result.prepared.cases)
    assert not [name for name in names if broken.name.removesuffix(".nii.gz") in name]


class TestWrongPlace:
    """One line each, with the URL and what to do."""

    def refusal(self, url):
        with pytest.raises(DataError) as error:
            read_prepared(url)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_missing_manifest(self, server):
        assert self.refusal("s3://bucket/nothing").startswith(
            "s3://bucket/nothing/manifest.json: there is no manifest"
        )

    def test_missing_bucket(self, server, tiny_raw):
        assert "s3://nobucket/x/manifest.json: there is no" in self.refusal("s3://nobucket/x")
        words = r"s3://nobucket/x/msd_spleen/spleen_\d: .*there is no such bucket"
        with pytest.raises(DataError, match=words):
            prepare(
                [read_card("msd_spleen")], tiny_raw, "s3://nobucket/x", spacing_mm=(6.0, 6.0, 6.0), jobs=1
            )

    def test_wrong_key(self, fresh_client, remote, tiny_raw, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
        fresh_client.refuse_unknown_keys(True)
        try:
            line = self.refusal(remote)
            with pytest.raises(DataError, match=r"s3://bucket/new/manifest\.json: access is refused"):
                prepare([read_card("msd_spleen")], tiny_raw, "s3://bucket/new", jobs=1)
        finally:
            fresh_client.refuse_unknown_keys(False)
        assert line.startswith("s3://bucket/prepared/manifest.json: access is refused")
        assert "AWS_ACCESS_KEY_ID" in line

    def test_no_credentials(self, fresh_client, remote, monkeypatch, tmp_path):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        line = self.refusal(remote)
        assert "there are no credentials" in line
        assert "AWS_PROFILE" in line

    @pytest.mark.slow  # it is tried five times
    def test_no_server(self, fresh_client, remote, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "the store does not answer as it should" in self.refusal(remote)


def test_lost_object_is_named_before_the_first_patch(server, tiny_prepared):
    upload(tiny_prepared, path_or_url("s3://bucket/lost"))
    prepared = read_prepared("s3://bucket/lost")
    case = prepared.select(split="train")[-1]
    (prepared.folder / case.dataset / case.name / "label.npy").unlink()
    with pytest.raises(
        DataError, match=rf"s3://bucket/lost/{case.dataset}/{case.name}/label\.npy: there is no such"
    ):
        patches(prepared, CONFIG)


def test_manifest_in_a_bucket_is_checked_like_a_local_one(server, tiny_prepared):
    manifest = json.loads((tiny_prepared / "manifest.json").read_text())
    manifest["cases"][0]["name"] = "../../other"
    path_or_url("s3://bucket/evil/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"s3://bucket/evil/manifest\.json: cases\.0\.name"):
        read_prepared("s3://bucket/evil")


def call(*arguments):
    """Call the command line in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["partialseg", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return ended.value.code or 0, out.getvalue(), err.getvalue()


def test_command_line_keeps_the_slashes_of_a_url(server, tmp_path):
    status, _, err = call("train", "tiny", "--prepared", "s3://bucket/nothing", "--out", tmp_path / "run")
    assert status == 1
    assert err.splitlines() == [
        "s3://bucket/nothing/manifest.json: there is no manifest; "
        "run `partialseg prepare CARD... --raw DIR --out s3://bucket/nothing`",
        "1 problem",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_whole_way_through_a_bucket_from_the_command_line(server, tiny_raw, tmp_path):
    url = "s3://bucket/by-command"
    cards = ("btcv", "msd_spleen")
    status, out, err = call(
        "prepare", *cards, "--raw", tiny_raw, "--out", url, "--spacing", 6, 6, 6, "--jobs", 2
    )
    assert (status, err.count("problem")) == (0, 0)
    assert url in out
    options = ("--prepared", url, "--out", tmp_path / "run", "--cache", tmp_path / "cache")
    assert call("train", "tiny", *options)[0] == 0
    assert (tmp_path / "run" / "model.keras").is_file()
    assert len(list((tmp_path / "cache").iterdir())) >= 6
