"""How many cores a contender of a benchmark has. Linux only."""

from __future__ import annotations

import os
from types import ModuleType


def use_threads(threads: int) -> None:
    """Give this process as many cores; before a framework is imported, since its pools count them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(threads)


def use_framework_threads(framework: ModuleType, threads: int) -> None:
    """Tell an imported `torch` or `tensorflow` the same, whose pools do not all ask the system or its variables."""
    if framework.__name__ == "torch":
        framework.set_num_threads(threads)
        return
    framework.config.threading.set_intra_op_parallelism_threads(threads)
    framework.config.threading.set_inter_op_parallelism_threads(threads)
