"""Which plots there are: lines of one run, and what stands under the roof."""

from dataclasses import replace
from typing import Any

from diffusion_rt.bench.plots import plots
from diffusion_rt.bench.records import Record
from diffusion_rt.bench.spread import spread
from support.races import drawn, growing, origin


def test_three_places_make_a_line() -> None:
    found = plots(growing())
    assert list(found) == ["growth-size.png"], "two numbers of images are no line"
    plot = found["growth-size.png"]
    assert list(plot.lines) == ["diffusion-rt", "diffusers"]
    assert [(place, label) for place, _, label in plot.lines["diffusers"]] == [
        (256.0, "16x16"),
        (1024.0, "32x32"),
        (4096.0, "64x64"),
    ]
    assert plot.note.startswith("medians of 3 runs each, 20")
    with_more = plots([*growing(), drawn(9, images=4)])
    assert set(with_more) == {"growth-size.png", "growth-images.png"}
    assert list(with_more["growth-images.png"].lines) == ["diffusion-rt"], "others have too few"
    assert plots([]) == {}


def test_a_line_is_of_one_run() -> None:
    newer = drawn(99, size="16x16", run="1" * 16)
    (plot,) = plots([*growing(), newer]).values()
    assert min(seconds for _, seconds, _ in plot.lines["diffusion-rt"]) < 1
    again = [replace(record, run="2" * 16) for record in growing()]
    slower = [*again, drawn(50, size="128x128", run="2" * 16)]
    (plot,) = plots([*growing(), *slower]).values()
    assert [label for _, _, label in plot.lines["diffusion-rt"]][-1] == "128x128"
    (plot,) = plots([*slower, *growing()]).values()
    assert len(plot.lines["diffusion-rt"]) == 4, "the longest, whatever came after"


def timed(benchmark: str, measure: str, seconds: float, **work: Any) -> Record:
    contender = work.pop("contender", "diffusion-rt")
    setting = work.pop("setting", {})
    values = spread([seconds])
    return origin(benchmark).record(measure, contender, setting, spread=values, **work)


def test_a_roofline_has_what_was_measured_of_the_device_and_of_the_work() -> None:
    step = {"model": "full", "size": "512x512"}
    point = timed("step", "evaluation", 2.0, flop=100 * 10**9, nbytes=10**9, setting=step)
    theirs = replace(point, contender="diffusers", spread=spread([4.0]))
    copy = timed("chip", "copy", 0.5, nbytes=5 * 10**9, contender="numpy")
    slow, fast = (
        timed("chip", "matmul", seconds, flop=2 * 10**11, contender=name)
        for seconds, name in ((4.0, "torch"), (2.0, "numpy"))
    )
    assert plots([point, copy]) == {}, "no roof without a product"
    assert plots([copy, slow, fast]) == {}, "no roofline without work under it"
    idle = replace(point, setting={**step, "engine": "null"}, spread=spread([1e-6]))
    profiled = replace(point, benchmark="operators")
    found = plots([point, theirs, idle, profiled, copy, slow, fast])["roofline.png"]
    assert found.points == {
        "diffusion-rt": [(100.0, 5e10, "full 512x512 UNet")],
        "diffusers": [(100.0, 2.5e10, "full 512x512 UNet")],
    }
    (line,) = found.lines.values()
    # The better product is the roof, 1e11 FLOP/s; it meets 1e10 bytes/s at 10 FLOP for a byte.
    assert [(x, y) for x, y, _ in line] == [(2.5, 2.5e10), (10.0, 1e11), (400.0, 1e11)]


def test_sizes_of_one_area_stand_side_by_side() -> None:
    sizes = ("96x32", "32x96", "64x48", "48x64", "64x64")
    records = [drawn(i + 1, size=size) for i, size in enumerate(sizes)]
    found = plots([*records, *(drawn(9, size=f"{n}x{n}") for n in (16, 32))])
    assert set(found) == {"growth-size.png", "buckets.png"}
    (line,) = found["buckets.png"].lines.values()
    assert [(place, label) for place, _, label in line] == [
        (1, "32x96"),
        (2, "48x64"),
        (4, "64x48"),
        (8, "96x32"),
    ]
