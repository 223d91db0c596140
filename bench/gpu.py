"""The whole GPU run as one command: what is right first, then what takes how long.

    python bench/gpu.py --output DIR --graphs GRAPHS

needs NumPy and a GPU with its driver. The device layer, the kernels and the native engine need
cuda-bindings, and NVRTC or nvcc to compile; the yardsticks need torch; the tests need pytest and
hypothesis. What lacks one says "not run: no NAME". Where nothing can be downloaded, carry wheels
along: `pip download --no-deps cuda-bindings cuda-pathfinder` (13 MB), and nvidia-cuda-nvrtc where
there is neither torch, which brings it, nor nvcc.

GRAPHS is SDXL of full size without its weights, 5 MB, which any machine with PyTorch and diffusers
makes in three minutes with 7 GB of disk and 1 GB of memory:

    diffusion-rt bench export --architecture sdxl-base --keep ./sdxl-base
    diffusion-rt bench graphs --model ./sdxl-base --keep ./graphs

The weights, which depend on their names and a seed alone, are generated into DIR, 7 GB, and may be
removed afterwards (DIR/model, DIR/cache). Without GRAPHS the parts of full size are not run.

Each part runs in a process of its own, at most so many seconds, and keeps its records, JSON lines
in DIR, as soon as they are known. The exit status is 0 where all that was checked is right, and
what must be shown was.

    for file in DIR/*.jsonl; do cat "$file" >> "bench/results/${file##*/}"; done
    diffusion-rt bench report                                       (the tables of it)
"""

import argparse
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_rt.bench.gpu_rows import Row

HERE = Path(__file__).resolve().parent
LONGEST = 10.0  # minutes
GRACE = 5.0  # seconds between a part's last row and its end by force
PEERS = ("diffusers", "transformers", "onnxruntime", "tensorrt", "nvmath", "cudnn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts or those named; 0 where everything that should be right was shown to be."""
    # As a script, Python puts this folder first, where any of its files could hide a package.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    if find_spec("diffusion_rt") is None:  # a checkout that is not installed
        sys.path.insert(0, str(HERE.parent / "src"))
    from diffusion_rt.bench.gpu_part import PARTS

    found = _parser(tuple(PARTS)).parse_args(argv)
    found.output.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    end = begun + 60 * found.minutes - GRACE
    rows: list[Row] = []
    try:
        for name in found.parts:
            for row in run_part(name, min(PARTS[name].seconds, end - time.time()), found):
                rows.append(row)
                print(f"{row.outcome:<8}{row.name}: {row.note}", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    print(f"\n{time.time() - begun:.0f} s in all\n")
    print(table(rows))
    required = [name for name in found.parts if PARTS[name].required]
    return 0 if all_right(rows, required) else 1


def run_part(name: str, seconds: float, found: argparse.Namespace) -> "Iterator[Row]":
    """The rows of one part as they come; one that says so where it broke or took too long."""
    from diffusion_rt.bench.gpu_part import BROKEN, PARTS
    from diffusion_rt.bench.gpu_rows import Row, parse_row

    if seconds < 1:
        yield Row(name, name, "not run", "out of time")
        return
    broken = PARTS[name].broken
    child = _start(name, seconds, found)
    lines: queue.Queue[str | None] = queue.Queue()
    assert child.stdout is not None
    threading.Thread(target=_read, args=(child.stdout, lines), daemon=True).start()
    end = time.monotonic() + seconds + GRACE
    try:
        while (line := lines.get(timeout=max(end - time.monotonic(), 0))) is not None:
            row = parse_row(line)
            if row is not None:
                yield row
        status = child.wait(timeout=max(end - time.monotonic(), 1))
        if status not in (0, BROKEN):
            yield Row(name, name, broken, f"ended with status {status}, see log.txt")
    except (queue.Empty, subprocess.TimeoutExpired):
        yield Row(name, name, broken, f"did not end in {seconds:.0f} s, see log.txt")
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # with the tests it started
            child.wait()


def _start(name: str, seconds: float, found: argparse.Namespace) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "diffusion_rt.bench.gpu_part", name]
    command += ["--output", str(found.output), "--device", found.device]
    command += ["--deadline", str(time.time() + seconds), "--command", _command(found)]
    command += ["--commit", found.commit] if found.commit else []
    command += ["--graphs", str(found.graphs)] if found.graphs else []
    # What was compiled or measured before this run is no part of it.
    cache = str((found.output / "cache").resolve())
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(HERE.parent / "src"), *([given] if given else [])])
    with (found.output / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "XDG_CACHE_HOME": cache},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )


def _read(stream: IO[bytes], lines: "queue.Queue[str | None]") -> None:
    with stream:
        for line in stream:
            lines.put(line.decode(errors="replace"))
    lines.put(None)


def all_right(rows: "Sequence[Row]", required: Iterable[str]) -> bool:
    """Whether nothing was wrong, and each part that is required ran whole."""
    shown = {row.part for row in rows if row.outcome == "right"}
    missed = {row.part for row in rows if row.outcome == "not run"}
    return not any(row.bad for row in rows) and set(required) <= shown - missed


def table(rows: "Sequence[Row]") -> str:
    """What is known now, in few lines: all that is wrong, the chief times, what was not run."""
    from diffusion_rt.bench.gpu_part import importable

    right = sum(row.outcome == "right" for row in rows)
    wrong = [row for row in rows if row.bad]
    times = [row for row in rows if row.outcome == "timed"]
    lines = [f"  {row.name}: {_short(row.note)}" for row in times if row.shown]
    missing = [(row.name, row.note) for row in rows if row.outcome == "not run"]
    lines += [f"not run: {name}: {_short(note)}" for name, note in dict.fromkeys(missing)]
    absent = [peer for peer in PEERS if not importable(peer)]
    lines += [f"not run: {', '.join(absent)}: no such package"] if absent else []
    lines += [f"WRONG {row.name}: {row.note}" for row in wrong]
    return "\n".join([*lines, f"right: {right}, wrong: {len(wrong)}, timed: {len(times)}"])


def _short(note: str) -> str:
    return note if len(note) <= 110 else f"{note[:109]}…"


def _command(found: argparse.Namespace) -> str:
    """As anybody can type it; of the folder nothing."""
    words = ["python", "bench/gpu.py", "--output", "DIR"]
    words += ["--graphs", "DIR"] if found.graphs else []
    words += ["--device", found.device] if found.device != "cuda" else []
    return shlex.join(words)


def _parser(parts: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/gpu.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the records")
    parser.add_argument(
        "--minutes", type=_minutes, default=9.0, help=f"in all, at most {LONGEST:g}; default 9"
    )
    parser.add_argument(
        "--device",
        choices=("cuda", "simulator"),
        default="cuda",
        help="simulator: tiny shapes on the host, to try this program; no times are kept, and no "
        "report takes its records",
    )
    parser.add_argument(
        "--parts",
        type=lambda text: _parts(text, parts),
        default=list(parts),
        metavar="NAME,…",
        help=f"of {', '.join(parts)}; default: all, in this order",
    )
    parser.add_argument(
        "--graphs",
        type=_folder,
        metavar="DIR",
        help="an exported SDXL model of generated weights, with or without them, by `diffusion-rt "
        "bench graphs`; without it nothing of full size runs",
    )
    parser.add_argument(
        "--commit", type=_commit, help="of these sources, for a copy without its history"
    )
    return parser


def _minutes(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text}: 0.1 to {LONGEST:g} is wanted")
    return value


def _parts(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"{name!r} is no part; one of {', '.join(known)}")
    return names


def _folder(text: str) -> Path:
    if not Path(text, "manifest.json").is_file():
        raise argparse.ArgumentTypeError(f"{text}: no exported model; give the folder of one")
    return Path(text)


def _commit(text: str) -> str:
    if len(text) != 40 or set(text) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r}: 40 hexadecimal digits are wanted")
    return text


if __name__ == "__main__":
    sys.exit(main())
