"""Linear algebra on one thread: sums come out the same on any number of cores.

Threads of BLAS that wait for each other by spinning also cost more than they bring as soon as
anything else runs on the machine: a Cholesky factor of 768 columns took 5 ms on one thread, 10 to
100 ms on two.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

MOST_WORKERS = 4


def default_workers() -> int:
    """The cores that this process may use, but not more than are of use."""
    known = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(known(0)) if known else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def one_thread() -> AbstractContextManager[Any]:
    """A context in which BLAS uses one thread; ONNX Runtime is not touched."""
    return threadpool_limits(limits=1, user_api="blas")  # type: ignore[no-any-return]
