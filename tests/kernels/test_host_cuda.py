"""The shim that runs kernels on the host: barriers, shared memory, float16."""

from pathlib import Path

import numpy as np
import pytest

from diffusion_rt.kernels.catalogue import Variant
from diffusion_rt.kernels.driver import DeviceLost, Launch, Parameter
from support.kernel_bench import DEVICE, KernelBench

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def variant(
    kernel: str,
    source: str,
    parameters: tuple[Parameter, ...],
    constants: tuple[tuple[str, str], ...] = (),
) -> Variant:
    return Variant(
        name=kernel,
        kernel=kernel,
        source=str(SUPPORT / source),
        constants=constants,
        parameters=parameters,
        registers=64,
    )


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim is what is tested here, whatever the other tests run on."""
    monkeypatch.delenv(DEVICE, raising=False)


def test_float16_is_converted_as_numpy_does_it() -> None:
    """Every float16 to float32, and float32 near every rounding boundary to float16."""
    names = ("halves", "widened", "floats", "narrowed")
    parameters = (*(Parameter(n, "pointer", 2) for n in names), Parameter("count", "int32"))
    element = (("ELEMENT", "half"),)
    bench = KernelBench([variant("half_round_trip", "half_round_trip.cu", parameters, element)])
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        centre = halves.astype(np.float32)
        halfway = (centre + np.roll(centre, -1)) / 2  # ties between neighbours
        floats = np.concatenate(
            [
                centre,
                halfway,
                np.nextafter(halfway, np.float32(np.inf)),
                np.nextafter(halfway, np.float32(-np.inf)),
                np.array([65519.996, 65520, 65536, 1e38, -1e38, 1e-40, 2**-25, 3 * 2**-26]),
            ],
            dtype=np.float32,
        )
        wanted = floats.astype(np.float16)
    count = len(floats)
    source = np.resize(halves, count)
    widened, narrowed = bench.poisoned([count], "f4"), bench.poisoned([count], "f2")
    bench.run(
        "half_round_trip",
        Launch(grid=(-(-count // 256), 1, 1), block=(256, 1, 1)),
        *(bench.put(source), widened, bench.put(floats), narrowed, count),
    )
    np.testing.assert_array_equal(
        bench.get(widened, [count], "f4"), source.astype(np.float32), strict=True
    )
    got = bench.get(narrowed, [count], "f2")
    np.testing.assert_array_equal(got, wanted, strict=True)
    zero = wanted == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(wanted[zero]))


def test_bfloat16_is_the_upper_half_of_float32_rounded_to_even() -> None:
    """Every bfloat16 to float32, and float32 at and beside every rounding boundary to bfloat16."""
    names = ("brains", "widened", "floats", "narrowed")
    parameters = (*(Parameter(n, "pointer", 2) for n in names), Parameter("count", "int32"))
    element = (("ELEMENT", "bfloat16"),)
    bench = KernelBench([variant("half_round_trip", "half_round_trip.cu", parameters, element)])
    patterns = np.arange(65536, dtype=np.uint32)
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    floats = (patterns[:, None] << 16 | lower).reshape(-1)
    # By the definition: the nearer of the two neighbours, the even one where both are as near.
    up = (lower > 0x8000) | ((lower == 0x8000) & (patterns[:, None] % 2 == 1))
    wanted = (patterns[:, None] + up).reshape(-1).astype(np.uint16)
    is_nan = np.isnan(floats.view(np.float32))
    wanted[is_nan] = 0x7FFF
    count = len(floats)
    source = np.resize(patterns, count).astype(np.uint16)
    widened, narrowed = bench.poisoned([count], "u4"), bench.poisoned([count], "u2")
    bench.run(
        "half_round_trip",
        Launch(grid=(-(-count // 256), 1, 1), block=(256, 1, 1)),
        *(bench.put(source), widened, bench.put(floats), narrowed, count),
    )
    got = bench.get(widened, [count], "u4")
    np.testing.assert_array_equal(got, source.astype(np.uint32) << 16)
    np.testing.assert_array_equal(bench.get(narrowed, [count], "u2"), wanted)


@pytest.fixture
def barriers() -> KernelBench:
    names = ("half_a_block", "half_a_warp", "no_barrier", "with_barrier")
    parameters = (Parameter("values", "pointer", 4),)
    return KernelBench([variant(name, "barriers.cu", parameters) for name in names])


@pytest.mark.parametrize(
    ("kernel", "said"), [("half_a_block", "barrier that not all"), ("half_a_warp", "exchange")]
)
def test_a_barrier_not_all_threads_reach_is_found(
    barriers: KernelBench, kernel: str, said: str
) -> None:
    values = barriers.poisoned([64], "f4")
    barriers.run(kernel, Launch(grid=(1, 1, 1), block=(64, 1, 1)), values)
    with pytest.raises(DeviceLost, match=said):
        barriers.stream.synchronize()


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_a_missing_barrier_shows(
    barriers: KernelBench, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setenv("HOST_CUDA_ORDER", order)
    wanted = np.roll(np.arange(1, 65, dtype=np.float32), -1)
    for kernel, right in (("with_barrier", True), ("no_barrier", False)):
        values = barriers.poisoned([64], "f4")
        barriers.run(kernel, Launch(grid=(1, 1, 1), block=(64, 1, 1)), values)
        assert np.array_equal(barriers.get(values, [64], "f4"), wanted) == right
