"""The whole GPU run as one command: what is right first, then what takes how long.

    python bench/gpu.py --output DIR

needs NumPy and a GPU with its driver. The device layer, the kernels and the native engine need
cuda-bindings, and NVRTC or nvcc to compile; the yardsticks need torch; the tests need pytest and
hypothesis. What lacks one says "not run: no NAME". Where nothing can be downloaded, carry wheels
along: `pip download --no-deps cuda-bindings cuda-pathfinder` (13 MB), and nvidia-cuda-nvrtc where
there is neither torch, which brings it, nor nvcc.

SDXL of full size comes with this script without its weights (bench/graphs). These, which depend
on their names and a seed alone, are generated into DIR, 7 GB, and may be removed afterwards
(DIR/model, DIR/cache). Another exported model, of generated weights or its own, is --graphs GRAPHS:

    diffusion-rt bench export --architecture sdxl-base --keep ./sdxl-base
    diffusion-rt bench graphs --model ./sdxl-base --keep ./graphs

Each part runs in a process of its own, at most so many seconds, and keeps its records, JSON lines
in DIR, as soon as they are known. Where time runs out, run the rest by --parts. The exit status is
0 where all that was checked is right, and what must be shown was.

    for file in DIR/*.jsonl; do cat "$file" >> "bench/results/${file##*/}"; done
    diffusion-rt bench report                                       (the tables of it)
    diffusion-rt bench tactics --measured DIR                       (the tactics that ship)
"""

import argparse
import os
import queue
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_rt.bench.gpu_rows import Row

HERE = Path(__file__).resolve().parent
LONGEST = 10.0  # minutes
GRAPHS = HERE / "graphs" / "sdxl-base.tar.xz"
GRACE = 5.0  # seconds between a part's last row and its end by force
_children: "list[subprocess.Popen[bytes]]" = []
PEERS = ("diffusers", "transformers", "onnxruntime", "tensorrt", "nvmath", "cudnn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all parts or those named; 0 where everything that should be right was shown to be."""
    # As a script, Python puts this folder first, where any of its files could hide a package.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    if find_spec("diffusion_rt") is None:  # a checkout that is not installed
        sys.path.insert(0, str(HERE.parent / "src"))
    from diffusion_rt.bench.gpu_part import PARTS
    from diffusion_rt.bench.gpu_targets import verdicts

    found = _parser(tuple(PARTS)).parse_args(argv)
    found.output.mkdir(parents=True, exist_ok=True)
    if found.graphs is None and found.device == "cuda":
        found.graphs = unpacked(found.output)
    begun = time.time()
    end = begun + 60 * found.minutes - GRACE
    rows: list[Row] = []

    def run(name: str) -> None:
        for row in run_part(name, min(PARTS[name].seconds, end - time.time()), found):
            rows.append(row)
            print(f"{row.outcome:<8}{row.name}: {row.note}", flush=True)

    beside = [name for name in found.parts if PARTS[name].beside]
    try:
        with ThreadPoolExecutor(1) as pool:
            others = [pool.submit(run, name) for name in beside]
            try:
                for name in found.parts:
                    if name not in beside:
                        run(name)
            except KeyboardInterrupt:
                for child in _children:
                    _end(child)
                raise
            for other in others:
                other.result()
    except KeyboardInterrupt:
        print("interrupted")
    print(f"\n{time.time() - begun:.0f} s in all\n")
    print(table(rows))
    print(verdicts(found.output))
    required = [name for name in found.parts if PARTS[name].required]
    return 0 if all_right(rows, required) else 1


def unpacked(folder: Path) -> Path:
    """The graphs that come with this script, in a folder of `folder`."""
    target = folder / "graphs"
    if not (target / "manifest.json").exists():
        with tarfile.open(GRAPHS) as archive:
            archive.extractall(target, filter="data")
    return target


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
        _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    """Kill what still runs, with the tests it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
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
        child = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "XDG_CACHE_HOME": cache},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    _children.append(child)
    return child


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
        help="an exported SDXL model, by `diffusion-rt bench graphs` without its weights; default: "
        "SDXL base of generated weights",
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
