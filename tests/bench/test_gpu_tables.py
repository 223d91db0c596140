"""What is told of a GPU, of made-up records: shares of the floor, and PyTorch beside us."""

from typing import Any

from diffusion_rt.bench.gpu_tables import Roof, roof
from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import OURS, Record
from diffusion_rt.bench.shelves import Shelf
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.tables import table
from support.races import origin

GPU = Device(kind="gpu", name="A chip", cores=132, memory=1 << 37)


def timed(measure: str, micro: float, contender: Any = OURS, **more: Any) -> Record:
    """A record of that many microseconds; names that a record has are not of its setting."""
    work = {name: more.pop(name) for name in ("flop", "nbytes", "peak_device") if name in more}
    return origin("gpu-time", GPU).record(
        measure, contender, more, spread=spread([micro / 1e6]), **work
    )


ROOF = [
    timed("matmul", 1000, "torch", flop=8 * 10**11),  # 800 TFLOP/s
    timed("copy", 1000, nbytes=4 * 10**9),  # 4 TB/s
]


def test_the_floor_is_the_larger_of_both() -> None:
    found = roof(Shelf(ROOF))
    assert found == Roof(8e14, 4e12)
    assert roof(Shelf(ROOF[:1])) is None
    assert found is not None
    assert found.floor(timed("a", 1, flop=8 * 10**8, nbytes=4 * 10**6)) == 1e-6
    assert found.floor(timed("a", 1, flop=8 * 10**8, nbytes=8 * 10**6)) == 2e-6
    assert found.floor(timed("a", 1)) is None


def test_steps() -> None:
    common: dict[str, Any] = {"model": "sdxl-base", "size": "1024x1024", "rows": 2}
    records = [
        timed("step", 25_000, engine="native", flop=135 * 10**11, peak_device=10**10, **common),
        timed("step", 50_000, "diffusers", **common),
    ]
    text = table("gpu-steps", [*ROOF, *records])
    wanted = "| diffusion-rt, native | 25.0 ms | 25.0 ms | 540 | 68% | 10.0 GB |"
    assert f"| sdxl-base | 1024x1024 | with {wanted}" in text
    assert "| with | diffusers | 50.0 ms | 50.0 ms |  |  |  |" in text
    assert "A chip, 132 SMs" in text


def test_kernels_by_their_fastest_way_beside_torch() -> None:
    shape = {"m": 2048, "n": 1280, "k": 1280}
    records = [
        timed("gemm", 20, flop=6_710_886_400, tactic="slow", cache="cold", **shape),
        timed("gemm", 10, flop=6_710_886_400, tactic="fast", cache="cold", **shape),
        timed("gemm", 13, "torch", flop=6_710_886_400, of="step", count=180, **shape),
        timed("layer_norm.float16", 4, nbytes=8 * 10**6, rows=2, cache="warm"),
    ]
    text = table("gpu-kernels", [*ROOF, *records])
    line = "| gemm | m 2048, n 1280, k 1280 | 10.0 µs |  |  | 671 | 84% | 13.0 µs |"
    assert line in text
    assert "| layer_norm.float16 | rows 2 |  | 4.00 µs | 2.00 |  | 50% |  |" in text
    assert "matmul" not in text


def test_attention_beside_each_backend() -> None:
    shape = {"heads": 20, "queries": 4096}
    records = [
        timed("attention", 250, flop=85 * 10**9, cache="cold", **shape),
        timed("attention", 240, "torch", backend="cudnn", **shape),
        timed("attention", 300, "torch", backend="flash", **shape),
        timed("attention", 9, "torch", backend="flash", heads=1, queries=1),
    ]
    text = table("gpu-attention", records)
    assert "| shape | diffusion-rt | TFLOP/s | torch, cudnn | torch, flash |" in text
    assert "| heads 20, queries 4096 | 250 µs | 340 | 240 µs | 300 µs |" in text
    assert "| heads 1, queries 1 |  |  |  | 9.00 µs |" in text
    assert "attention" not in table("gpu-kernels", [*records, timed("a", 1, cache="cold")])


def test_pictures_and_builds() -> None:
    picture = timed("picture", 9e5, engine="native", model="m", size="64x64", steps=30)
    text = table("gpu-end-to-end", [picture])
    assert "| m | 64x64 | prompt to picture | 30 | diffusion-rt, native | 900 ms |" in text
    build = origin("build", GPU).record(
        "build", OURS, {"model": "m", "engine": "trt"}, spread=spread([60.0]), peak_device=2 << 30
    )
    assert "| m | trt | its own | 60.0 s | not measured |" in table("build", [build])
