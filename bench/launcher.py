"""Starts one command and prints what it took, as JSON: run by path, it imports nothing of ours.

Linux counts the memory of the process that starts another as the least that the other ever held,
so a command is measured from this small process and not from the benchmark.
"""

import json
import os
import sys
import time


def main() -> None:
    """Run the command that the arguments spell, its standard output going to standard error."""
    os.set_inheritable(output := os.dup(1), False)
    os.dup2(2, 1)
    started_at = time.time()
    started = time.perf_counter()
    pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    found = {
        "status": os.waitstatus_to_exitcode(status),
        "started_at": started_at,
        "seconds": seconds,
        "peak_rss": usage.ru_maxrss * 1024,
    }
    os.write(output, json.dumps(found).encode())


if __name__ == "__main__":
    main()
