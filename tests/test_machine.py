import os

import pytest

from partialseg import machine
from partialseg.machine import free_memory, jobs_in_memory, usable_cores

V2 = {
    "job/cpu.max": "150000 100000\n",
    "job/inner/cpu.max": "max 100000\n",
    "job/memory.max": "1000000\n",
    "job/memory.current": "700000\n",
    "job/memory.stat": "anon 1\ninactive_file 200000\n",
    "job/inner/memory.max": "max\n",
    "job/inner/memory.current": "5\n",
}
V1 = {
    "cpu/job/cpu.cfs_quota_us": "150000\n",
    "cpu/job/cpu.cfs_period_us": "100000\n",
    "cpu/job/inner/cpu.cfs_quota_us": "-1\n",
    "cpu/job/inner/cpu.cfs_period_us": "100000\n",
    "memory/job/memory.limit_in_bytes": "1000000\n",
    "memory/job/memory.usage_in_bytes": "700000\n",
    "memory/job/memory.stat": "inactive_file 3\ntotal_inactive_file 200000\n",
}


@pytest.mark.parametrize(
    ("files", "own"),
    [(V2, "0::/job/inner\n"), (V1, "4:memory:/job/inner\n1:cpu,cpuacct:/job/inner\n0::/\n")],
    ids=["version 2", "version 1"],
)
def test_limits_of_control_groups_count_those_around_too(tmp_path, monkeypatch, files, own):
    for name, content in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert usable_cores() == 1
    assert free_memory() == 500_000


def test_cores_are_those_that_the_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("jobs", "need", "memory", "expected"),
    [
        (None, 10, None, (4, 25)),  # as many as cores, each with its share
        (None, 30, None, (3, 33)),
        (2, 30, None, (2, 50)),
        (8, 10, None, (8, 12)),
        (None, 200, None, (1, 200)),  # the largest does not fit: alone, it may try
        (None, 10, 40, (2, 40)),
        (None, 10, 400, (1, 400)),
    ],
)
def test_workers_fit_the_free_memory(monkeypatch, jobs, need, memory, expected):
    monkeypatch.setattr(machine, "free_memory", lambda: 100)
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    assert jobs_in_memory(jobs, need, memory) == expected
