"""Builds that are killed at a random moment, each in a process forked from this one.

Run as a file with a model folder and a number of kills; prints one JSON object. Every build asks
for another largest batch than the one before, so that an older plan under a new key would be seen.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from diffusion_rt.engines.artefact import _PARTIAL
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.trt.plan_file import open_plan, plan_path
from support.simulated_build import SMALL_GRAPHS, folder_of, in_place_of_tensorrt, small_build
from support.simulated_tensorrt.plan import unpack


def one_build(model: ModelFolder, batch: int) -> None:
    with in_place_of_tensorrt() as device:
        small_build(model, device, batch=batch, force=True)


def check(folder: Path, graph: str) -> str | None:
    """Why the plan of a graph loads and is wrong, or does not load; None where it is right."""
    try:
        with open_plan(folder, graph) as plan:
            key, found = plan.header.key, unpack(bytes(plan.data))
            assert found is not None
            shapes = [
                profile.shapes(spec) for spec in plan.header.inputs for profile in key.profiles
            ]
            given = [tuple(p[spec.name]) for spec in plan.header.inputs for p in found[0].profiles]
            return None if shapes == given else f"{graph}: the plan of another key"
    except (BadInput, AssertionError) as damaged:
        return f"{graph}: {damaged!r}"


def main(path: Path, kills: int) -> None:
    model, folder = open_model(path), folder_of(path)
    started = time.perf_counter()
    for batch in (1, 2, 3):  # warm: what a build takes is known
        one_build(model, batch)
    seconds = (time.perf_counter() - started) / 3
    chance = random.Random(7)
    found = {"killed": 0, "whole": 0, "partial": 0, "unfinished": 0}
    wrong: list[str] = []
    for round_ in range(kills):
        batch = 1 + round_ % 8
        for graph in SMALL_GRAPHS:
            if chance.random() < 0.3:  # not over an older plan every time
                plan_path(folder, graph).unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                one_build(model, batch)
                time.sleep(60)
            finally:
                os._exit(1)
        time.sleep(chance.random() * 1.1 * seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found["killed"] += os.WIFSIGNALED(status)
        found["partial"] += any(_PARTIAL.fullmatch(p.name) for p in folder.iterdir())
        there = [graph for graph in SMALL_GRAPHS if plan_path(folder, graph).exists()]
        found["unfinished"] += len(there) < len(SMALL_GRAPHS)
        for graph in there:
            reason = check(folder, graph)
            if reason:
                wrong.append(reason)
            else:
                found["whole"] += 1
    print(json.dumps({**found, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
