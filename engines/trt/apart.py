"""Work that runs in C++ for minutes, and still ends soon after Ctrl-C."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_apart(work: Callable[[], T], cancel: Callable[[], None]) -> T:
    """What `work` returns or raises, run in a thread of its own.

    Python hears of Ctrl-C and SIGTERM in its first thread only, and not while that is inside a
    library. Where one comes, `cancel` is called, `work` is waited for, and the signal's exception
    goes on its way.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    over = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=run, name="engine build")
    thread.start()
    try:
        # Not join(): interrupted, it takes the thread for ended (Python 3.11), and so would we.
        over.wait()
    except BaseException:
        cancel()
        over.wait()
        raise
    finally:
        thread.join()
    if errors:
        raise errors[0]
    return results[0]
