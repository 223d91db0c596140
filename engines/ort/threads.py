"""How many threads one ONNX graph is given."""

import os
from math import ceil
from pathlib import Path

_QUOTAS = (  # of a container: what it may use, in cores; cgroup 2, then 1
    ("cpu.max", None),
    ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
)


def usable_cores(system: Path = Path("/sys")) -> int:
    """The cores this process may use: one of each pair of hyperthreads, no more than its quota.

    Arithmetic on the second hyperthread of a core adds nothing and takes the first one's cache.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_core(system, cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota(system) or len(cores)))


def _core(system: Path, cpu: int) -> str:
    """What the hyperthreads of one core have in common."""
    try:
        return (system / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(system: Path) -> int | None:
    for quota_file, period_file in _QUOTAS:
        try:
            quota, *period = (system / "fs/cgroup" / quota_file).read_text().split()
            if period_file:
                period = (system / "fs/cgroup" / period_file).read_text().split()
            if int(quota) > 0:
                return ceil(int(quota) / int(period[0]))
        except (OSError, ValueError, IndexError, ZeroDivisionError):  # none, or "max"
            continue
    return None
