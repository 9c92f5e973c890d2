"""Patches of 48 x 160 x 160 voxels from a disk, by byte ranges from an S3 server, and from a local copy.

    python benchmarks/object_store.py [--batches 12] [--latency 0 20]

About 2 minutes on 2 cores. Two servers on loopback, each in a process of its own: moto's, which speaks the whole
protocol and takes some milliseconds of its own for each request, and one that only gives byte ranges of files
(aiohttp), in front of which each answer waits for so many milliseconds. Bytes and requests are counted there.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SHAPE, PATCH, NUM_CASES = (200, 300, 300), (48, 160, 160), 6
GAPS = (32 * 1024, 128 * 1024)


def write_prepared(folder: Path) -> None:
    """Cases of noise, one organ of 1000 voxels in each."""
    from partialseg.data.labels import candidate_table
    from partialseg.data.prepared import Case, Dataset, Prepared, write_manifest

    rng, cases, classes = np.random.default_rng(0), [], ("background", "liver")
    for number in range(NUM_CASES):
        name = f"case_{number}"
        (folder / "noise" / name).mkdir(parents=True)
        indices = np.sort(rng.choice(np.prod(SHAPE), 1000, replace=False)).astype(np.int32)
        label = np.zeros(SHAPE, np.uint8)
        label.ravel()[indices] = 1
        image = rng.integers(-1000, 1500, SHAPE, dtype=np.int16)
        for file, array in (("image", image), ("label", label), ("foreground", indices)):
            np.save(folder / "noise" / name / f"{file}.npy", array)
        affine = tuple(map(tuple, np.eye(4).tolist()))
        cases.append(
            Case(
                dataset="noise",
                name=name,
                split="train",
                shape=SHAPE,
                affine=affine,
                foreground=((1, 0, 1000),),
                voxels=(1000,),
                image_source="",
                label_source="",
                fingerprint="",
                annotated=("liver",),
            )
        )
    datasets = {"noise": Dataset("noise", ("liver",), candidate_table(classes, ["liver"]))}
    write_manifest(Prepared(folder, classes, (3.0, 1.5, 1.5), datasets, tuple(cases)))


def serve_files(folder: Path, latency: float, port, counts) -> None:
    """GET and HEAD of files, by byte ranges, and a list of them."""
    from aiohttp import web

    def listing() -> web.Response:
        files = [path for path in sorted((folder / "bucket").rglob("*")) if path.is_file()]
        entries = "".join(
            f"<Contents><Key>{path.relative_to(folder / 'bucket')}</Key><Size>{path.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>0</ETag></Contents>"
            for path in files
        )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        return web.Response(text=text, content_type="application/xml")

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency)
        if "list-type" in request.query:
            return listing()
        path = folder / request.path.lstrip("/")
        if not path.is_file():
            return web.Response(status=404)
        with counts.get_lock():
            counts[0] += 1
            span = request.http_range
            counts[1] += path.stat().st_size if span.start is None else span.stop - span.start
        return web.FileResponse(path)

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(main())


def serve_moto(folder: Path, latency: float, port, counts) -> None:
    """The whole protocol, by moto; counts what it answers."""
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log_request(self, *_: object) -> None:
            """Say nothing."""

    app = DomainDispatcherApplication(create_backend_app)

    def counted(environ, start):
        body = list(app(environ, start))
        with counts.get_lock():
            counts[0] += 1
            counts[1] += sum(map(len, body))
        return body

    server = make_server("127.0.0.1", 0, counted, threaded=True, request_handler=Quiet)
    port.value = server.server_port
    server.serve_forever()


@contextmanager
def server(serve, folder: Path, latency: float = 0.0) -> Iterator[multiprocessing.Array]:
    """Run a server, and give its counts of requests and bytes."""
    import fsspec

    context = multiprocessing.get_context("spawn")
    port, counts = context.Value("i", 0), context.Array("q", 2)
    process = context.Process(target=serve, args=(folder, latency, port, counts), daemon=True)
    process.start()
    while port.value == 0:
        time.sleep(0.05)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port.value}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    try:
        yield counts
    finally:
        process.terminate()
        process.join()


def measure(prepared, batches: int, workers: int, counts=None) -> dict[str, float]:
    """Patches per second, and requests and bytes for each patch, after two batches to begin with."""
    from partialseg.data.pipeline import patches

    config = {"patch_size": PATCH, "batch_size": 2, "batches_per_epoch": batches + 2, "workers": workers}
    stream = iter(patches(prepared, config))
    for _ in range(2):
        next(stream)
    before, start = list(counts or (0, 0)), time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = time.perf_counter() - start
    requests, received = np.subtract(list(counts or (0, 0)), before)
    num = 2 * batches
    return {
        "patches/s": num / seconds,
        "requests": requests / num,
        "of the box": received / num / (3 * np.prod(PATCH)),
    }


def row(name: str, workers: int, found: dict[str, float]) -> None:
    """Print a row of the table; with several workers, what is read ahead blurs the counts."""
    if workers > 1:
        print(f"| {name} | {workers} | {found['patches/s']:.1f} | | |", flush=True)
        return
    print(
        f"| {name} | {workers} | {found['patches/s']:.1f} | {found['requests']:.0f} | {found['of the box']:.2f} |",
        flush=True,
    )


def main() -> None:
    """Measure each way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--latency", type=float, nargs="*", default=[0, 20], help="milliseconds")
    arguments = parser.parse_args()
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="2", AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    os.environ.update(AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true")
    from partialseg import arrays
    from partialseg.data.prepared import read_prepared
    from partialseg.storage import path_or_url, upload

    with tempfile.TemporaryDirectory() as work:
        local = Path(work) / "bucket" / "prepared"
        write_prepared(local)
        print("| way | workers | patches/s | requests/patch | bytes read / bytes of the patch |")
        print("|---|---|---|---|---|")
        for workers in (1, 8):
            row("memory-mapped", workers, measure(read_prepared(local), 4 * arguments.batches, workers))
        for latency in arguments.latency:
            with server(serve_files, Path(work), latency / 1000) as counts:
                for gap in GAPS:
                    arrays.GAP = gap
                    for workers in (1, 8):
                        prepared = read_prepared("s3://bucket/prepared")
                        name = f"ranges, gap {gap // 1024} KiB, {latency:g} ms"
                        row(name, workers, measure(prepared, arguments.batches, workers, counts))
                cached = read_prepared("s3://bucket/prepared", cache=Path(work) / f"cache-{latency:g}")
                row("first batches, copying", 1, measure(cached, NUM_CASES, 1, counts))
                row("from the copies", 1, measure(cached, 4 * arguments.batches, 1, counts))
        with server(serve_moto, Path(work)) as counts:
            import boto3

            boto3.client("s3").create_bucket(Bucket="bucket")
            upload(local, path_or_url("s3://bucket/prepared"))
            for workers in (1, 8):
                prepared = read_prepared("s3://bucket/prepared")
                row("ranges, moto", workers, measure(prepared, arguments.batches, workers, counts))


if __name__ == "__main__":
    main()
