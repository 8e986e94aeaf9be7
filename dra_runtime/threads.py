"""How many threads this process may use, whether it was forked, and running one task in several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from dra_runtime.errors import BackendError


def available_threads(cgroup_root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> int:
    """Return the number of CPUs that this process may keep busy, at least 1.

    A quota of 2.5 CPUs gives 2: a thread more would be stopped again and again, and the others would wait for it.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        allowed = os.cpu_count() or 1
    quotas = [*_quotas_v2(cgroup_root, process), *_quotas_v1(cgroup_root, process)]
    return max(1, min([allowed, *(int(quota) for quota in quotas)]))


def require_process(opened_by: int, what: str, done: str = "used") -> None:
    """Refuse to use what another process opened.

    Parameters
    ----------
    opened_by
        The process id of whoever opened it.
    what
        Its name in the message, such as "encoder".
    done
        What is about to be done with it, in the message.

    Raises
    ------
    BackendError
        This is another process, a fork. Of all threads only the forking one lives on in it: the workers of ONNX
        Runtime, of faiss and ours don't, and what they had locked stays locked. A call is then slow at best, and waits
        forever at worst; on a GPU it fails.
    """
    if os.getpid() != opened_by:
        raise BackendError(
            f"this {what} was opened by process {opened_by} and can't be {done} in process {os.getpid()}, forked from "
            "it; open one in each worker, after the fork, or start workers by 'spawn'"
        )


def run_together(work: Callable[[int], None], workers: int) -> None:
    """Call ``work`` with 0 to ``workers`` - 1, each in its own thread, the first in this one, and wait for all.

    The threads end with the call: none is left idle, or behind in a fork. Where the system gives fewer, this one works
    for the others too. The first error is raised again.
    """
    errors: list[BaseException] = []

    def guarded(worker: int) -> None:
        try:
            work(worker)
        except BaseException as error:  # noqa: BLE001 -- raised again by the caller's thread
            errors.append(error)

    others: list[threading.Thread] = []
    try:
        for worker in range(1, workers):
            thread = threading.Thread(target=guarded, args=(worker,))
            thread.start()
            others.append(thread)
    except RuntimeError:  # a limit of threads is reached: this one does the work of those that are missing
        pass
    for worker in (0, *range(len(others) + 1, workers)):
        guarded(worker)
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]


def _quotas_v2(root: Path, process: Path) -> list[float]:
    """Read cpu.max ("200000 100000" or "max 100000") of this process's group and all above it."""
    quotas = []
    for line in _lines(process):
        if line.startswith("0::"):
            for group in _with_parents(root, line.removeprefix("0::")):
                for limit in _lines(group / "cpu.max"):
                    quota, _, period = limit.partition(" ")
                    quotas += _quotient(quota, period)
    return quotas


def _quotas_v1(root: Path, process: Path) -> list[float]:
    quotas = []
    for line in _lines(process):
        controllers, _, group_path = line.partition(":")[2].partition(":")
        if "cpu" in controllers.split(","):
            for folder in (root / "cpu", root / "cpu,cpuacct", root / "cpuacct,cpu"):
                for group in _with_parents(folder, group_path):
                    quota, period = (_lines(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                    quotas += _quotient("".join(quota), "".join(period))
    return quotas


def _with_parents(root: Path, group: str) -> list[Path]:
    # Inside a container the path may be the host's and lead nowhere; the root is then the container's own group
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:length]) for length in range(len(parts) + 1)]


def _quotient(quota: str, period: str) -> list[float]:
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return []
    return [limit] if limit > 0 else []  # version 1 writes -1 for no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:64] if path.is_file() else []
    except (OSError, ValueError):
        return []
