"""Measuring on the simulator: what is left to know, what is kept, and that numbers stay right."""

from pathlib import Path

import numpy as np

from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.measure import measure
from diffusion_rt.engines.native.tactics import Tactics, key_of
from support.native_run import Runner, chip_of, normal
from support.plan_maker import PlanMaker


def two_products() -> p.Plan:
    """Of the same sizes, each with weights of its own."""
    make = PlanMaker("float32")
    x = make.buffer("x", (24, 256), "input")
    middle = make.buffer("middle", (24, 256))
    y = make.buffer("y", (24, 256), "output")
    make.operations = [
        p.Product(
            name=name,
            sources=(source,),
            weight=make.weight(name, normal(number, 256, 256) / 16),
            columns=256,
            image_rows=24,
            epilogue=p.Epilogue(),
            output=output,
        )
        for number, (name, source, output) in enumerate((("a", x, middle), ("b", middle, y)))
    ]
    return make.plan()


def test_each_size_is_measured_once_and_the_numbers_stay(tmp_path: Path) -> None:
    plan = two_products()
    runner = Runner(plan)
    device = runner.gpu.device
    options = runner.program.options
    assert options[0].sizes == options[1].sizes
    assert len(options[0].ways) > 1
    values = normal(9, 24, 256)
    before = runner(x=values)["y"]
    tactics = Tactics(tmp_path, key_of(device))
    runner.arena.reserve(*runner.program.most)
    heard: list[tuple[int, int]] = []

    def run() -> int:
        return measure(
            runner.program,
            runner.places(),
            tactics,
            device=device,
            stream=runner.stream,
            kernel=runner.gpu.kernel,
            progress=lambda done, total: heard.append((done, total)),
        )

    assert run() == 1
    assert heard == [(0, 1), (1, 1)]
    assert run() == 0
    tactics.save()
    again = Tactics(tmp_path, key_of(device))
    assert again.knows(options[0])
    chosen = Program(plan, chip_of(runner.gpu), again.choose)
    names = {way.name for way in options[0].ways}
    assert {way.name for way in chosen.ways} < names
    for way in options[0].ways:  # every one computes the same
        runner.program.ways = tuple(
            next(w for w in found.ways if w.name == way.name) for found in options
        )
        np.testing.assert_allclose(runner(x=values)["y"], before, rtol=0, atol=1e-4)
