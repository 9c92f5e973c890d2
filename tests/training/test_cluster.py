import json

import pytest

from partialseg.errors import DataError
from partialseg.training.cluster import Cluster, expand_hosts, find_cluster, this_worker


def tf_config(**content):
    return {"TF_CONFIG": json.dumps(content)}


TWO = {"worker": ["a:2222", "b:2222"]}
#: Of a step of three tasks on two hosts, as Slurm sets them in the last task.
STEP = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[09-10]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"TF_CONFIG": ""},
        tf_config(),
        tf_config(cluster={"worker": ["a:1"]}, task={"type": "worker", "index": 0}),
        tf_config() | STEP,
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"},  # a shell of salloc
        STEP | {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_a_process_alone_is_in_no_cluster(environment):
    assert find_cluster(environment) is None
    assert this_worker(environment) == (0, 1)


def test_tf_config_counts_the_chief_first():
    tasks = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    chief, second, last = (
        this_worker(tf_config(cluster=tasks, task={"type": kind, "index": index}))
        for kind, index in (("chief", 0), ("worker", 0), ("worker", "1"))
    )
    assert (chief, second, last) == ((0, 3), (1, 3), (2, 3))


def test_tf_config_goes_before_slurm():
    assert this_worker(tf_config(cluster=TWO, task={"type": "worker", "index": 1}) | STEP) == (1, 2)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"TF_CONFIG": "{'cluster'"}, "TF_CONFIG: is not JSON"),
        ({"TF_CONFIG": "[1]"}, "holds list, expected an object"),
        (tf_config(cluster=["a:1"]), r"has cluster \['a:1'\]"),
        (tf_config(cluster=TWO), "has task None, expected its type and index"),
        (
            tf_config(cluster=TWO, task={"type": "worker", "index": 2}),
            "has task index 2, expected 0 to 1, of the workers",
        ),
        (tf_config(cluster=TWO, task={"type": "worker", "index": -1}), "task index -1"),
        (tf_config(cluster=TWO, task={"type": "worker"}), "task index None"),
        (
            tf_config(cluster=TWO, task={"type": "chief", "index": 0}),
            "task type 'chief', expected one of worker",
        ),
        (tf_config(cluster=TWO | {"ps": ["c:1"]}), "has ps in its cluster"),
        (tf_config(cluster={"chief": ["a:1", "b:1"]}), "has 2 chiefs"),
        (tf_config(cluster={"worker": ["a", "b:1"]}), "expected a list of host:port"),
        (tf_config(cluster={"worker": ["a:1", "a:1"]}), "each once"),
    ],
)
def test_a_wrong_tf_config_is_named_with_what_is_wrong(environment, words):
    with pytest.raises(DataError, match=words):
        find_cluster(environment)


def test_slurm_deals_its_tasks_to_hosts_and_ports():
    addresses = ("gpu09:24567", "gpu09:24568", "gpu10:24567")
    assert find_cluster(STEP) == Cluster({"worker": addresses}, "worker", 2)
    assert this_worker(STEP) == (2, 3)


def test_tasks_of_another_slurm_are_spread_evenly_over_the_hosts_of_the_job():
    environment = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "a,b", "SLURM_PROCID": "3"}
    assert find_cluster(environment) == Cluster(
        {"worker": ("a:20005", "a:20006", "b:20005", "b:20006")}, "worker", 3
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID: is not set"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID: is 3, expected 0 to 2"),
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID: is 'x'"),
        ({"SLURM_STEP_NUM_TASKS": None}, "SLURM_STEP_NUM_TASKS: is not set"),
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID: is not set"),
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST: is not set, and the step has 3 tasks"),
        ({"SLURM_STEP_NODELIST": "gpu[09-"}, r"SLURM_STEP_NODELIST: is 'gpu\[09-'"),
        ({"SLURM_STEP_NODELIST": "gpu[09-11]"}, "has 3 hosts"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, r"with \[2, 2\] tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "two"}, "SLURM_STEP_TASKS_PER_NODE: is 'two'"),
        ({"SLURM_STEP_TASKS_PER_NODE": None}, "2 hosts cannot share 3 tasks evenly"),
        ({"SLURM_LOCALID": "1"}, "SLURM_LOCALID: is 1, expected 0 for task 2"),
    ],
)
def test_slurm_variables_that_are_partly_there_are_named(changes, words):
    environment = {name: value for name, value in (STEP | changes).items() if value is not None}
    with pytest.raises(DataError, match=words):
        find_cluster(environment)


def test_a_batch_script_that_forgot_srun_is_told_so_rather_than_wait_for_ever():
    script = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "a,b", "SLURM_PROCID": "0"}
    with pytest.raises(DataError, match="srun did not start this process"):
        find_cluster(script)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("localhost", ["localhost"]),
        ("a,b-1,c.d", ["a", "b-1", "c.d"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n[1,3-4],m5,o[6]x", ["n1", "n3", "n4", "m5", "o6x"]),
    ],
)
def test_lists_of_hosts_are_expanded_in_their_order(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text", ["", ",a", "a,", "n[1", "n[]", "n[1-]", "n[a-b]", "a b", "n[1],n1", "a,n[3-1]"]
)
def test_what_is_no_list_of_hosts_is_refused(text):
    with pytest.raises(DataError, match="SLURM_STEP_NODELIST"):
        expand_hosts(text)
