"""Batches that other processes read: a dispatcher and two workers on loopback against the stream of this process."""

import dataclasses
import itertools
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from partialseg.data import patch_service
from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table
from partialseg.data.patch_service import distribute, find_workers, in_order
from partialseg.data.pipeline import BatchReader, data_problems, patches
from partialseg.data.prepared import Case, Dataset, Prepared, write_manifest
from partialseg.data.sampling import PatchConfig
from partialseg.errors import DataError
from partialseg.training import read_config, train

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
CONFIG = PatchConfig(patch_size=(6, 8, 8), batch_size=2, batches_per_epoch=8, seed=3)
COMMAND = [sys.executable, "-c", "from partialseg.cli import main; main()", "data-service"]
#: No wait is longer, in seconds.
PATIENCE = 100


def write_case(folder, name):
    """Write a prepared case of random HU and labels; gives its entry."""
    random = np.random.default_rng(int(name))
    shape = (9, 12, 11)
    label = random.integers(0, 4, shape).astype(np.uint8)
    case_folder = folder / "full" / name
    case_folder.mkdir(parents=True)
    np.save(case_folder / "image.npy", random.integers(-1000, 2000, shape).astype(np.int16))
    np.save(case_folder / "label.npy", label)
    indices = [np.flatnonzero(label == value) for value in (1, 2, 3)]
    np.save(case_folder / "foreground.npy", np.concatenate(indices).astype(np.int32))
    voxels = tuple(len(part) for part in indices)
    stops = np.cumsum(voxels).tolist()
    parts = tuple(zip((1, 2, 3), [0, *stops], stops, strict=False))
    return Case("full", name, "train", shape, np.eye(4).tolist(), parts, voxels, "", "", "")


@pytest.fixture
def prepared(tmp_path):
    cases = tuple(write_case(tmp_path, str(number)) for number in range(3))
    datasets = {"full": Dataset("full", CLASSES[1:], candidate_table(CLASSES, CLASSES[1:]))}
    prepared = Prepared(tmp_path, CLASSES, (3.0, 1.5, 1.5), datasets, cases)
    write_manifest(prepared)
    return prepared


def start(folder, *arguments):
    """Start `partialseg data-service ...`; gives the process and where it writes."""
    printed = folder / f"{'-'.join(arguments[:1])}-{time.monotonic_ns()}.txt"
    with open(printed, "w") as out:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=out, stderr=subprocess.STDOUT)
    return process, printed


def printed_match(pattern, process, printed):
    """Wait until a process printed a line that matches; gives the first group."""
    deadline = time.monotonic() + PATIENCE
    while not (found := re.search(pattern, printed.read_text(), re.MULTILINE)):
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.1)
    return found[1]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Address, and processes of the dispatcher and of two workers by name."""
    folder = tmp_path_factory.mktemp("service")
    processes = []
    try:
        processes.append(start(folder, "dispatcher", "--port", "0", "--host", "localhost"))
        address = printed_match(r"^data_service: (grpc://localhost:\d+)$", *processes[0])
        for _ in range(2):
            arguments = ("--dispatcher", address.removeprefix("grpc://"), "--host", "localhost")
            processes.append(start(folder, "worker", *arguments))
        workers = {
            printed_match(r"^Worker (localhost:\d+) reads", *worker): worker for worker in processes[1:]
        }
        yield address, workers, processes[0]
    finally:
        for process, _ in processes:
            process.kill()
            process.wait(PATIENCE)


def stream(prepared, address, **options):
    """The local reader, and the stream of the service."""
    batches = BatchReader(prepared, CONFIG)
    request = {
        "prepared": str(prepared.folder),
        "config": CONFIG.model_dump(mode="json"),
        "shard": [0, 1],
        "state": batches.plan.state(0),
    }
    signature = [
        tf.TensorSpec(batches.image_shape, tf.float32),
        tf.TensorSpec(batches.candidates_shape, tf.uint8),
    ]
    options = {"answer_s": PATIENCE, "patience_s": PATIENCE, **options}
    return batches, distribute(request, batches.read, signature, address, **options)


def test_batches_come_in_order_each_once_whatever_arrives():
    arriving = [(4, "a", 4), (2, "a", 2), (3, "b", 3), (3, "b", -1), (6, "a", 6), (7, "a", 7), (8, "a", 8)]
    arriving += [(9, "b", 9), (10, "b", 10), (5, "b", -1), (11, "b", 11)]
    read = []
    batches = in_order(iter(arriving), lambda index: read.append(index) or index, 2, most_ahead=2)
    assert list(batches) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert read == [5]


def test_two_workers_give_the_local_stream_also_when_one_is_killed(prepared, service, caplog):
    address, workers, _ = service
    caplog.set_level(logging.DEBUG, "partialseg.data.patch_service")

    def taking_part():
        return {record.args[1] for record in caplog.records if record.levelno == logging.DEBUG}

    batches, dataset = BatchReader(prepared, CONFIG), patches(prepared, CONFIG, 5, service=address)
    deadline, killed_at = time.monotonic() + PATIENCE, None
    for index, (image, sets) in zip(itertools.count(5), dataset, strict=False):
        expected = batches.read(index)
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(sets, expected[1])
        if killed_at is None and index >= 17 and taking_part() == set(workers):
            workers[next(iter(workers))][0].send_signal(signal.SIGKILL)
            killed_at = index
        if killed_at is not None and index >= killed_at + 40:
            break
        assert time.monotonic() < deadline, taking_part()
    assert killed_at is not None


def test_what_a_worker_finds_wrong_reaches_the_client(prepared, service):
    path = prepared.folder / "full" / "1" / "label.npy"
    np.save(path, np.full((9, 12, 11), 9, np.uint8))
    dataset = patches(prepared, CONFIG, service=service[0])
    with pytest.raises(DataError, match=r"holds value 9.*\(on localhost:\d+\)") as error, data_problems():
        list(dataset.take(20))
    assert error.value.path == str(path)


def test_a_worker_with_other_cases_is_refused(prepared, service):
    _, dataset = stream(prepared, service[0])
    write_manifest(dataclasses.replace(prepared, cases=prepared.cases[:2]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="other cases"):
        list(dataset.take(1))


def test_a_training_fed_by_the_service_is_the_same(service, tiny_prepared, tmp_path):
    config = read_config("tiny")
    config = config.model_copy(
        update={
            "stages": (config.stages[1].model_copy(update={"epochs": 1}),),
            "augmentation": AugmentationConfig(),
        }
    )
    local = train(config, tiny_prepared, tmp_path / "local").load_model().get_weights()
    config = config.model_copy(update={"data_service": service[0]})
    fed = train(config, tiny_prepared, tmp_path / "fed").load_model().get_weights()
    for one, other in zip(local, fed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_process_ends_while_the_service_feeds_it(prepared, service):
    code = (
        "from partialseg.data import patches\n"
        "from partialseg.data.sampling import PatchConfig\n"
        f"config = PatchConfig.model_validate_json({CONFIG.model_dump_json()!r})\n"
        f"stream = patches({str(prepared.folder)!r}, config, service={service[0]!r})\n"
        "for index, _ in zip(range(5), stream): pass\n"
        "print('done')"
    )
    for _ in range(2):  # without care for it, every second process hung
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


def test_a_worker_of_another_version_is_named(monkeypatch):
    answer = patch_service._answering(lambda request: pytest.fail("nothing is to be opened"), "host:1")
    text = json.dumps({"request": "{}", "version": "0.0.1", "dtypes": ["float32"]}).encode()
    index, report, array = answer(text, np.int64(3))
    assert (index, array.size) == (3, 0)
    monkeypatch.setattr(patch_service, "__version__", "0.0.1")  # what the client is
    with pytest.raises(DataError, match=r"worker host:1 is partialseg .*, expected 0\.0\.1 as here"):
        patch_service._checked_worker(json.loads(report), "grpc://reader:5000")


def test_a_missing_dispatcher_is_named_with_what_to_do(prepared):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"grpc://localhost:{free.getsockname()[1]}"
    with pytest.raises(
        DataError, match=rf"^{address}: no dispatcher answered .*partialseg data-service dispatcher"
    ):
        stream(prepared, address, answer_s=0.3)


def test_a_dispatcher_without_workers_is_named_with_what_to_do():
    server = tf.data.experimental.service.DispatchServer()
    with pytest.raises(DataError, match=r"no worker answered.*partialseg data-service worker"):
        find_workers(server.target, answer_s=1)
    server.stop()


@pytest.mark.parametrize("address", ["localhost", "grpc://reader", "http://reader:5000", "grpc://reader:0"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(DataError, match="is no address of a data service; write grpc://HOST:PORT"):
        find_workers(address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_process_with_status_0_and_one_line(service, number):
    _, workers, dispatcher = service
    name, worker = list(workers.items())[1]
    process, printed = worker if number == signal.SIGTERM else dispatcher
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0, printed.read_text()
    assert printed.read_text().rstrip().endswith("stopped."), name
