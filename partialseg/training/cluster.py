"""Which processes train together: read from TF_CONFIG, or from the variables that Slurm sets."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from partialseg.errors import DataError

#: Kinds of tasks that train, in the order in which they are counted; what others do is not done here.
_KINDS = ("chief", "worker")
#: Ports of Slurm's jobs: below those that systems give out by themselves (from 32768 on Linux).
_FIRST_PORT, _NUM_PORTS = 20000, 10000
#: Set by srun in the processes that it starts, and not in the batch script that calls it.
_OF_A_STEP = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")


@dataclass(frozen=True)
class Cluster:
    """Two or more processes that train together, and which of them this one is.

    Attributes:
        tasks: Kind ("chief" or "worker") to the addresses `host:port` of its tasks.
        kind: Of this process.
        index: Of this process among those of its kind.
    """

    tasks: dict[str, tuple[str, ...]]
    kind: str
    index: int

    @property
    def count(self) -> int:
        """How many processes there are."""
        return sum(map(len, self.tasks.values()))

    @property
    def worker(self) -> int:
        """Number of this process from 0: the chief, where there is one, then the workers."""
        return self.index + (len(self.tasks.get("chief", ())) if self.kind == "worker" else 0)


def this_worker(environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Which of how many processes this one is: `(0, 1)` where it trains alone.

    Args:
        environment: Variables; those of this process by default.

    Raises:
        DataError: See `find_cluster`.

    Example:
        >>> this_worker({})
        (0, 1)
        >>> step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "gpu[08-11]", "SLURM_STEP_NUM_TASKS": "4"}
        >>> this_worker(step | {"SLURM_PROCID": "2"})
        (2, 4)
    """
    cluster = find_cluster(environment)
    return (0, 1) if cluster is None else (cluster.worker, cluster.count)


def find_cluster(environment: Mapping[str, str] | None = None) -> Cluster | None:
    """The cluster that TF_CONFIG describes, else the step of a Slurm job; None for a process alone.

    Args:
        environment: Variables; those of this process by default.

    Raises:
        DataError: If TF_CONFIG or Slurm's variables describe no cluster that this process is in.

    Example:
        >>> workers = '["10.0.0.1:2222", "10.0.0.2:2222"]'
        >>> text = f'{{"cluster": {{"worker": {workers}}}, "task": {{"type": "worker", "index": 1}}}}'
        >>> find_cluster({"TF_CONFIG": text})
        Cluster(tasks={'worker': ('10.0.0.1:2222', '10.0.0.2:2222')}, kind='worker', index=1)
    """
    environment = os.environ if environment is None else environment
    text = environment.get("TF_CONFIG", "").strip()
    cluster = _of_tf_config(text) if text else _of_slurm(environment)
    return None if cluster is None or cluster.count == 1 else cluster


def _of_tf_config(text: str) -> Cluster | None:
    """What TF_CONFIG says; None if it names no cluster."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise _wrong_tf_config(f"is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise _wrong_tf_config(f"holds {type(content).__name__}, expected an object")
    if not content.get("cluster"):
        return None
    tasks = _checked_tasks(content["cluster"])
    task = content.get("task")
    if not isinstance(task, dict):
        raise _wrong_tf_config(f"has task {task!r}, expected its type and index")
    kind, index = task.get("type"), task.get("index")
    if kind not in tasks:
        raise _wrong_tf_config(f"has task type {kind!r}, expected one of {', '.join(tasks)}")
    if isinstance(index, str) and index.isdecimal():  # as a shell writes it that fills in a template
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(tasks[kind]):
        last = len(tasks[kind]) - 1
        raise _wrong_tf_config(
            f"has task index {index!r}, expected 0 to {last}, of the {kind}s in its cluster"
        )
    return Cluster(tasks, kind, index)


def _checked_tasks(cluster: Any) -> dict[str, tuple[str, ...]]:
    """The addresses of each kind."""
    if not isinstance(cluster, dict):
        raise _wrong_tf_config(f"has cluster {cluster!r}, expected an object")
    if others := [kind for kind in cluster if kind not in _KINDS]:
        raise _wrong_tf_config(f"has {', '.join(others)} in its cluster, expected chief and worker alone")
    tasks = {}
    for kind in _KINDS:
        addresses = cluster.get(kind, [])
        if not isinstance(addresses, list) or not all(
            isinstance(address, str) and re.fullmatch(r".+:\d+", address) for address in addresses
        ):
            raise _wrong_tf_config(f"has {kind} {addresses!r}, expected a list of host:port")
        if addresses:
            tasks[kind] = tuple(addresses)
    if len(tasks.get("chief", ())) > 1:
        raise _wrong_tf_config(f"has {len(tasks['chief'])} chiefs, expected at most one")
    every = [address for addresses in tasks.values() for address in addresses]
    if not every or len(set(every)) < len(every):
        raise _wrong_tf_config(f"has the addresses {every}, expected some, each once")
    return tasks


def _wrong_tf_config(problem: str) -> DataError:
    example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
    return DataError("TF_CONFIG", problem, f"set it like {example}, or unset it to train on one host")


def _of_slurm(environment: Mapping[str, str]) -> Cluster | None:
    """The tasks of the step that this process is in, numbered as Slurm does; None outside of one."""
    in_step = any(name in environment for name in _OF_A_STEP)
    count_name = next((n for n in ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if n in environment), None)
    if "SLURM_PROCID" not in environment and not in_step:
        return None
    if count_name is None:
        if not in_step:
            return None
        raise _wrong_slurm("SLURM_STEP_NUM_TASKS", "is not set, and other variables of a Slurm step are")
    count = _number(environment, count_name)
    if count == 1:
        return None
    rank = _number(environment, "SLURM_PROCID")
    if rank >= count:
        raise _wrong_slurm("SLURM_PROCID", f"is {rank}, expected 0 to {count - 1} ({count_name} is {count})")
    if not in_step and rank == 0:
        # A batch script has this number too: it would wait for tasks that nobody starts.
        raise DataError(
            count_name,
            f"is {count}, and srun did not start this process: there is none of {', '.join(_OF_A_STEP)}",
            "write `srun partialseg train ...`, or ask for one task (--ntasks=1 --cpus-per-task=N)",
        )
    hosts = _hosts_of_tasks(environment, count)
    local = [hosts[:task].count(host) for task, host in enumerate(hosts)]
    _check_order(environment, rank, local[rank])
    first = _FIRST_PORT + _number(environment, "SLURM_JOB_ID") % _NUM_PORTS
    return Cluster(
        {"worker": tuple(f"{h}:{first + k}" for h, k in zip(hosts, local, strict=True))}, "worker", rank
    )


def _hosts_of_tasks(environment: Mapping[str, str], count: int) -> list[str]:
    """The host of each task, in the order of the hosts."""
    list_name = next((n for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if n in environment), None)
    if list_name is None:
        raise _wrong_slurm("SLURM_STEP_NODELIST", f"is not set, and the step has {count} tasks")
    hosts = expand_hosts(environment[list_name], list_name)
    tasks_name = "SLURM_STEP_TASKS_PER_NODE"
    if tasks_name in environment:
        tasks = _expand_counts(environment[tasks_name], tasks_name)
    elif count % len(hosts) == 0:
        tasks = [count // len(hosts)] * len(hosts)
    else:
        raise _wrong_slurm(
            tasks_name, f"is not set, and {len(hosts)} hosts cannot share {count} tasks evenly"
        )
    if len(tasks) != len(hosts) or sum(tasks) != count:
        found = f"{environment[list_name]} with {tasks} tasks"
        raise _wrong_slurm(list_name, f"has {len(hosts)} hosts ({found}), and the step has {count} tasks")
    return [host for host, number in zip(hosts, tasks, strict=True) for _ in range(number)]


def _check_order(environment: Mapping[str, str], rank: int, local: int) -> None:
    """Refuse tasks that are not dealt to the hosts one host after the other, as Slurm does by default."""
    if "SLURM_LOCALID" in environment and _number(environment, "SLURM_LOCALID") != local:
        raise DataError(
            "SLURM_LOCALID",
            f"is {environment['SLURM_LOCALID']}, expected {local} for task {rank}: tasks are dealt to hosts in turn",
            "add --distribution=block to srun, or ask for one task on each host (--ntasks-per-node=1)",
        )


def expand_hosts(text: str, name: str = "SLURM_STEP_NODELIST") -> list[str]:
    """The hosts of a list as Slurm writes it, in its order.

    Args:
        text: Names at commas; in brackets numbers and ranges of them, which keep their zeros.
        name: Of the variable that it comes from, for the error.

    Raises:
        DataError: If it is no such list.

    Example:
        >>> expand_hosts("node[01-03,07],login")
        ['node01', 'node02', 'node03', 'node07', 'login']
        >>> expand_hosts("rack[1-2]-n[9-10].site")
        ['rack1-n9.site', 'rack1-n10.site', 'rack2-n9.site', 'rack2-n10.site']
    """
    part = r"[^\[\],\s]|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
    if not re.fullmatch(rf"(?:{part})+(?:,(?:{part})+)*", text):
        raise _wrong_slurm(name, f"is {text!r}, expected names like node[01-03,07]")
    hosts = []
    for pattern in re.split(r",(?![^\[]*\])", text):
        pieces = re.split(r"\[([^\]]*)\]", pattern)  # text, numbers, text, numbers, ..., text
        choices = [_numbers(piece) if place % 2 else [piece] for place, piece in enumerate(pieces)]
        if not all(choices):
            raise _wrong_slurm(name, f"is {text!r}, expected ranges from the lower number to the higher")
        hosts += ["".join(chosen) for chosen in itertools.product(*choices)]
    if len(set(hosts)) < len(hosts):
        raise _wrong_slurm(name, f"is {text!r}, expected each host once")
    return hosts


def _numbers(text: str) -> list[str]:
    """The numbers of a bracket.

    Example:
        >>> _numbers("8-10,007")
        ['8', '9', '10', '007']
    """
    ranges = [part.partition("-")[::2] for part in text.split(",")]
    return [
        str(number).zfill(len(first))
        for first, last in ranges
        for number in range(int(first), int(last or first) + 1)
    ]


def _expand_counts(text: str, name: str) -> list[int]:
    """How many tasks each host has.

    Example:
        >>> _expand_counts("3(x2),1", "SLURM_STEP_TASKS_PER_NODE")
        [3, 3, 1]
    """
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", text):
        raise _wrong_slurm(name, f"is {text!r}, expected counts like 3(x2),1")
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in parts for _ in range(int(times or 1))]


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None or not re.fullmatch(r"\d+", text, re.ASCII):
        found = "is not set" if text is None else f"is {text!r}"
        raise _wrong_slurm(name, f"{found}, expected a number, since other variables of a Slurm step are set")
    return int(text)


def _wrong_slurm(name: str, problem: str) -> DataError:
    return DataError(
        name,
        problem,
        "start the processes with srun, or set TF_CONFIG={} to train in one process",
    )
