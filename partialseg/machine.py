"""What this process may use of the machine: cores and memory, control groups (containers) included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

#: Where Linux shows control groups: what the processes in one may take of cores and memory.
_CGROUP = Path("/sys/fs/cgroup")
#: Where it says in which control groups this process is.
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Number of processors that this process may use: its affinity, and the quota of its control groups.

    Example:
        >>> 1 <= usable_cores() <= os.cpu_count()
        True
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        cores = os.cpu_count() or 1
    for quota, period in _cpu_quotas():
        cores = min(cores, max(1, int(quota / period)))
    return cores


def free_memory() -> int:
    """Bytes of memory that can be taken now without swapping: the machine's, and that of its control groups.

    Example:
        >>> free_memory() > 2**20
        True
    """
    return min([_free_memory_of_machine(), *_free_memory_of_cgroups()])


def jobs_in_memory(jobs: int | None, need: int, memory: int | None = None) -> tuple[int, int]:
    """How many workers there may be at a time, and how many bytes each may take.

    Args:
        jobs: At most so many; None for one per usable core.
        need: Bytes that the largest task is expected to take.
        memory: Bytes that a worker may take; None for its share of what is free, and what the largest task needs at
            least.

    Returns:
        At least one worker, and no more than fit the free memory; the bytes that each may take.

    Example:
        >>> jobs_in_memory(1, need=1, memory=2**30)
        (1, 1073741824)
    """
    free = free_memory()
    wanted = jobs if jobs is not None else usable_cores()
    fitting = max(1, min(wanted, free // max(1, memory or need)))
    return fitting, memory or max(need, free // fitting)


def _free_memory_of_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not on macOS
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _cgroup_folders(controller: str) -> list[Path]:
    """The folders of this process's control group and of those around it, version 2 or 1."""
    folders = []
    for line in _OWN_CGROUPS.read_text(encoding="utf-8").splitlines() if _OWN_CGROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _CGROUP / controller if controllers else _CGROUP
        folder = top / path.strip("/")
        folders += [each for each in (folder, *folder.parents) if each == top or top in each.parents]
    return folders


def _cpu_quotas() -> Iterator[tuple[int, int]]:
    """Microseconds of processor time in a period, and the period; of each control group that has a limit."""
    for folder in _cgroup_folders("cpu"):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota, period = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        else:
            continue
        if quota not in ("max", "-1"):
            yield int(quota), int(period)


def _free_memory_of_cgroups() -> Iterator[int]:
    """Bytes that are left in each control group; pages that only cache files count as free."""
    for folder in _cgroup_folders("memory"):
        for limit, used in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            if not (folder / limit).is_file():
                continue
            allowed = (folder / limit).read_text(encoding="ascii").strip()
            if allowed == "max":
                continue
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            yield max(0, int(allowed) - int((folder / used).read_text(encoding="ascii")) + cached)
