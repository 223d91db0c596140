"""A contender in a process of its own, so that memory is told apart and libraries never meet."""

import signal
import warnings
from contextlib import suppress
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from diffusion_rt.bench.case import Case
from diffusion_rt.bench.contender import Contender, Outcome, forget_peak_rss
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory

_FAILURES = {kind.__name__: kind for kind in (OutOfMemory, BadInput, Fault)}


class Worker:
    """Runs a contender elsewhere; idle, it takes no processor time."""

    def __init__(self, name: str, factory: str, **arguments: Any) -> None:
        """Start a fresh interpreter that makes the contender and waits for cases.

        `factory` is where what makes it stands, such as `package.module:Class`: it is imported over
        there and not here. Raises what it raises, BadInput or Fault.
        """
        self.name = name
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, factory, arguments), daemon=True, name=name
        )
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, case: Case) -> Outcome:
        """Have the case carried out; the seconds are those that passed over there."""
        found: Outcome = self._ask(case)
        return found

    def peak_rss(self) -> int | None:
        """The most memory that the process held while it carried out the last case, in bytes."""
        found: int | None = self._ask("peak_rss")
        return found

    def peak_device(self) -> int | None:
        """What the process holds on a GPU, in bytes."""
        found: int | None = self._ask("peak_device")
        return found

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, asked: Case | str) -> Any:
        with suppress(BrokenPipeError):  # the process is gone: the answer says how
            self._connection.send(asked)
        return self._answer()

    def _answer(self) -> Any:
        try:
            failure, answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise Fault(
                f"{self.name}: its process ended early ({_ending(self._process.exitcode)}); "
                "where memory is short, measure it alone or at a smaller size"
            ) from None
        if failure:
            raise _FAILURES.get(failure, Fault)(f"{self.name}: {answer}")
        return answer


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"status {code}"


def _serve(connection: Connection, factory: str, arguments: dict[str, Any]) -> None:
    """The other process: make the contender, then answer until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    # What diffusers' pinned version calls deprecated is how all versions that we take are called.
    warnings.simplefilter("ignore", FutureWarning)
    contender: Contender | None = None
    asked: Case | str | None = None
    while True:
        try:
            answer: Any = None
            if contender is None:
                module, name = factory.split(":")
                contender = getattr(import_module(module), name)(**arguments)
            elif isinstance(asked, Case):
                forget_peak_rss()
                answer = contender.run(asked)
            elif asked == "peak_device":
                answer = contender.peak_device()
            else:
                answer = contender.peak_rss()
        except Exception as error:
            kind = type(error).__name__
            text = str(error) if kind in _FAILURES else f"{kind}: {_first_line(error)}"
            connection.send((kind, text))
            if contender is None:
                return
        else:
            connection.send(("", answer))
        try:
            asked = connection.recv()
        except EOFError:
            return


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
