"""sm_90a's instructions on the host: tiles, barriers and products as the PTX ISA describes them.

Where bytes lie is worked out here once more, from the pictures of the swizzles (a chunk of 16 bytes
changes places within its row of 128, 64 or 32), not from the formula of the emulation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.kernels.driver import DeviceLost, Launch, Parameter, TensorMap
from diffusion_rt.kernels.variant import Variant
from support.kernel_bench import DEVICE, KernelBench

SUPPORT = Path(__file__).resolve().parents[1] / "support"
Array = NDArray[Any]

PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "probe_tile": (
        Parameter("map", "tensor_map"),
        *(Parameter(name, "int32") for name in ("rank", "x", "y", "z", "w", "to", "bytes")),
        Parameter("out", "pointer"),
    ),
    "probe_product": (
        Parameter("image", "pointer"),
        Parameter("bytes", "int32"),
        Parameter("descriptors", "pointer", 8),
        Parameter("steps", "int32"),
        Parameter("before", "float32"),
        Parameter("out", "pointer", 4),
    ),
    "probe_ring": (
        Parameter("stages", "int32"),
        Parameter("count", "int32"),
        Parameter("out", "pointer", 4),
    ),
    "probe_misuse": (
        Parameter("which", "int32"),
        Parameter("map", "tensor_map"),
        Parameter("out", "pointer", 4),
    ),
}
SWIZZLES = {0: 0, 128: 1, 64: 2, 32: 3}  # bytes, and the number in a descriptor


@pytest.fixture(params=["forward", "reverse"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Copies at once and products late, or the other way round; always on the host."""
    monkeypatch.delenv(DEVICE, raising=False)
    monkeypatch.setenv("HOST_CUDA_ORDER", request.param)
    return str(request.param)


@pytest.fixture
def bench(order: str) -> KernelBench:
    return KernelBench([variant(name) for name in PARAMETERS])


def variant(kernel: str) -> Variant:
    return Variant(
        name=kernel,
        kernel=kernel,
        source=str(SUPPORT / "hopper_probe.cu"),
        constants=(),
        parameters=PARAMETERS[kernel],
        registers=168,
        archs=(90,),
        suffix="a",
    )


def chunks_exchanged(rows: Array, span: int) -> Array:
    """Rows of `span` bytes one after the other, as they lie in shared memory from 1,024 * n on."""
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
    if span == 0:
        return raw
    result = np.empty_like(raw)
    per_row = span // 16
    for at in range(0, raw.size, 16):
        row, chunk = divmod(at // 16, per_row)
        # Of eight rows of 128 bytes all chunks change; shorter rows share a line of 128 bytes.
        line = row * span // 128
        to = row * span + (chunk ^ line % per_row) * 16
        result[to : to + 16] = raw[at : at + 16]
    return result


def test_a_swizzle_moves_chunks_within_a_row() -> None:
    """The picture of the 128-byte swizzle: row r begins with chunk r of it."""
    rows = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(16, axis=2).reshape(8, 128)
    placed = chunks_exchanged(rows, 128).reshape(8, 8, 16)[..., 0]
    assert placed[3].tolist() == [27, 26, 25, 24, 31, 30, 29, 28]
    assert placed[:, 0].tolist() == [0, 9, 18, 27, 36, 45, 54, 63]


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_a_tile_comes_with_zeros_outside(bench: KernelBench, swizzle: Any) -> None:
    inner = (swizzle or 48) // 2
    values = np.random.default_rng(swizzle).normal(size=(21, 72)).astype(np.float16)
    source = bench.put(values)
    described = TensorMap(
        name="x",
        dtype="float16",
        address=source.address,
        sizes=(67, 21),
        strides=(144,),
        box=(inner, 16),
        swizzle=swizzle,
    )
    for x, y in ((0, 0), (40, 9), (-5, -3), (64, 20), (200, 0), (0, -16)):
        wanted = np.zeros((16, inner), np.float16)
        for i in range(16):
            for j in range(inner):
                if 0 <= y + i < 21 and 0 <= x + j < 67:
                    wanted[i, j] = values[y + i, x + j]
        got = tile(bench, described, (x, y, 0, 0), wanted.nbytes)
        np.testing.assert_array_equal(got, chunks_exchanged(wanted, swizzle))


def tile(bench: KernelBench, described: TensorMap, at: tuple[int, ...], nbytes: int) -> Array:
    out = bench.poisoned([nbytes], np.uint8)
    launch = Launch(grid=(1, 1, 1), block=(64, 1, 1), shared_bytes=1024 + nbytes)
    encoded = bench.device.tensor_map(described)
    bench.run("probe_tile", launch, encoded, len(described.sizes), *at, 1024, nbytes, out)
    return bench.get(out, [nbytes], np.uint8)


@pytest.mark.parametrize("rank", [3, 4])
def test_a_tile_of_an_image(bench: KernelBench, rank: int) -> None:
    """NHWC with a strided row, a box that hangs over every edge."""
    values = np.random.default_rng(rank).normal(size=(2, 5, 6, 80)).astype(np.float16)
    source = bench.put(values)
    described = TensorMap(
        name="x",
        dtype="float16",
        address=source.address,
        sizes=(72, 6, 5, 2)[:rank],
        strides=(160, 960, 4800)[: rank - 1],
        box=(64, 4, 3, 1)[:rank],
    )
    for c, x, y, n in ((0, 0, 0, 0), (64, -1, -1, 1), (0, 3, 3, 1), (0, 0, 0, 2)):
        image = n if rank == 4 else 0
        wanted = np.zeros((3, 4, 64), np.float16)
        for i in range(3):
            for j in range(4):
                inside = 0 <= y + i < 5 and 0 <= x + j < 6 and image < 2
                if inside:
                    part = values[image, y + i, x + j, c : min(c + 64, 72)]
                    wanted[i, j, : len(part)] = part
        got = tile(bench, described, (c, x, y, n), wanted.nbytes)
        np.testing.assert_array_equal(got, chunks_exchanged(wanted, 128))


@pytest.mark.parametrize(
    ("change", "rank", "said"),
    [
        (None, 2, "no tensor map"),
        ({"box": (32, 8)}, 2, "do not fill their swizzle"),
        ({}, 3, "another number of dimensions"),
    ],
)
def test_a_map_that_does_not_suit_is_refused(
    bench: KernelBench, change: dict[str, Any] | None, rank: int, said: str
) -> None:
    described = TensorMap(
        name="x",
        dtype="float16",
        address=bench.poisoned([64, 64], np.float16).address,
        sizes=(64, 64),
        strides=(128,),
        box=(64, 8),
    )
    encoded = bytes(128)
    if change is not None:
        encoded = bench.device.tensor_map(replace(described, **change))
    out = bench.poisoned([1024], np.uint8)
    launch = Launch(grid=(1, 1, 1), block=(64, 1, 1), shared_bytes=2048)
    bench.run("probe_tile", launch, encoded, rank, 0, 0, 0, 0, 1024, 1024, out)
    with pytest.raises(DeviceLost, match=said):
        bench.stream.synchronize()


def descriptor(start: int, leading: int, stride: int, swizzle: int) -> int:
    return start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | SWIZZLES[swizzle] << 62


def along_k(matrix: Array, swizzle: int) -> tuple[Array, int, int]:
    """[rows, K] with neighbours along K together: bytes, leading and stride offsets.

    Swizzled: eight rows of `swizzle` bytes follow one another, K beyond that in a further tile.
    Without: 8 x 8 cores of 128 bytes, those of eight rows and all K together.
    """
    rows, depth = matrix.shape
    if swizzle:
        assert depth * 2 == swizzle
        return chunks_exchanged(matrix, swizzle), 16, 8 * swizzle
    cores = matrix.reshape(rows // 8, 8, depth // 8, 8).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(cores).view(np.uint8).reshape(-1), 128, depth // 8 * 128


def product(
    bench: KernelBench, image: Array, descriptors: list[tuple[int, int]], before: float = 0
) -> Array:
    """D [64, 64] of what the threads hold."""
    out = bench.poisoned([128, 32], np.float32)
    launch = Launch(grid=(1, 1, 1), block=(128, 1, 1), shared_bytes=image.nbytes)
    table = bench.put(np.array(descriptors, np.uint64))
    bench.run(
        "probe_product",
        launch,
        *(bench.put(image), image.nbytes, table, len(descriptors), before, out),
    )
    held = bench.get(out, [128, 32], np.float32)
    d = np.full((64, 64), np.nan, np.float32)
    for thread in range(128):
        for i in range(32):
            row = thread // 32 * 16 + thread % 32 // 4 + i % 4 // 2 * 8
            column = i // 4 * 8 + thread % 4 * 2 + i % 2
            d[row, column] = held[thread, i]
    return d


@pytest.mark.parametrize("before", [0.0, 2.5])
@pytest.mark.parametrize(("a_swizzle", "b_swizzle"), [(128, 128), (64, 32), (0, 128), (32, 0)])
def test_a_product_reads_what_its_descriptors_say(
    bench: KernelBench, a_swizzle: int, b_swizzle: int, before: float
) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(64, (a_swizzle or 64) // 2)).astype(np.float16)
    b = rng.normal(size=(64, (b_swizzle or 64) // 2)).astype(np.float16)
    (a_bytes, a_leading, a_stride), (b_bytes, b_leading, b_stride) = (
        along_k(a, a_swizzle),
        along_k(b, b_swizzle),
    )
    b_start = -(-a_bytes.size // 1024) * 1024
    image = np.zeros(b_start + b_bytes.size, np.uint8)
    image[: a_bytes.size], image[b_start:] = a_bytes, b_bytes
    steps = min(a.shape[1], b.shape[1]) // 16
    pairs = [
        (
            descriptor(step * (32 if a_swizzle else 256), a_leading, a_stride, a_swizzle),
            descriptor(b_start + step * (32 if b_swizzle else 256), b_leading, b_stride, b_swizzle),
        )
        for step in range(steps)
    ]
    got = product(bench, image, pairs, before)
    depth = steps * 16
    truth = a[:, :depth].astype(np.float64) @ b[:, :depth].astype(np.float64).T + before
    assert np.abs(got - truth).max() < 1e-5 * np.abs(truth).max()
    for wrong in (
        descriptor(0, a_leading, a_stride // 2, a_swizzle),
        descriptor(16, a_leading, a_stride, a_swizzle),
        descriptor(0, a_leading, a_stride, 64 if a_swizzle == 128 else 128),
    ):
        other = product(bench, image, [(wrong, pairs[0][1])], before)
        alone = product(bench, image, pairs[:1], before)
        assert np.abs(other - alone).max() > 0.5


@pytest.mark.parametrize(("stages", "count"), [(1, 5), (2, 7), (3, 12)])
def test_a_ring_of_barriers_keeps_its_order(bench: KernelBench, stages: int, count: int) -> None:
    out = bench.poisoned([count], np.int32)
    launch = Launch(grid=(1, 1, 1), block=(96, 1, 1), shared_bytes=64 * stages)
    bench.run("probe_ring", launch, stages, count, out)
    assert bench.get(out, [count], np.int32).tolist() == list(range(count))


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (0, "a phase that never ends"),
        (1, "never begun"),
        (2, "more arrivals in a phase"),
        (3, "before its barrier was published"),
        (4, "before wgmma.fence"),
        (5, "threads of one warpgroup in different products"),
        (6, "ended before its products"),
        (7, "bits that have no meaning"),
        (8, "outside the shared memory"),
        (9, "named barrier that too few threads reach"),
    ],
)
def test_a_broken_rule_ends_the_launch(bench: KernelBench, which: int, said: str) -> None:
    misuse(bench, which)
    with pytest.raises(DeviceLost, match=f"probe_misuse: .*{said}"):
        bench.stream.synchronize()


def misuse(bench: KernelBench, which: int) -> Any:
    source = bench.put(np.ones((64, 64), np.float16))
    described = TensorMap(
        name="x",
        dtype="float16",
        address=source.address,
        sizes=(64, 64),
        strides=(128,),
        box=(64, 64),
    )
    out = bench.poisoned([128], np.float32)
    launch = Launch(grid=(1, 1, 1), block=(128, 1, 1), shared_bytes=1024 + 8192)
    bench.run("probe_misuse", launch, which, bench.device.tensor_map(described), out)
    return out


def test_sums_are_not_there_before_the_wait(bench: KernelBench) -> None:
    assert np.isnan(bench.get(misuse(bench, 10), [128], np.float32)).all()


def test_a_copy_nobody_waits_for_is_found(
    bench: KernelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_CUDA_ORDER", "reverse")
    misuse(bench, 11)
    with pytest.raises(DeviceLost, match="ended before its copies"):
        bench.stream.synchronize()


def cluster(bench: KernelBench, which: int = 0, side: int = 2) -> tuple[Array, Any]:
    """What four blocks in clusters of two should read, and where they write it."""
    values = np.random.default_rng(9).normal(size=(16, 64)).astype(np.float16)
    described = TensorMap(
        name="x",
        dtype="float16",
        address=bench.put(values).address,
        sizes=(64, 16),
        strides=(128,),
        box=(64, 8),
    )
    out = bench.poisoned([4, 2048], np.uint8)
    launch = Launch(
        grid=(4, 1, 1), block=(32, 1, 1), shared_bytes=3072, cluster=(side, 1, 1) if side else None
    )
    bench.run("probe_cluster", launch, bench.device.tensor_map(described), which, out)
    return np.tile(chunks_exchanged(values, 128), (4, 1)), out


@pytest.fixture
def clusters(order: str) -> KernelBench:
    return KernelBench(
        [
            replace(
                variant("probe_misuse"),
                name="probe_cluster",
                kernel="probe_cluster",
                source=str(SUPPORT / "cluster_probe.cu"),
                parameters=(
                    Parameter("map", "tensor_map"),
                    Parameter("which", "int32"),
                    Parameter("out", "pointer"),
                ),
            )
        ]
    )


def test_a_tile_reaches_both_blocks_of_a_cluster(clusters: KernelBench) -> None:
    wanted, out = cluster(clusters)
    np.testing.assert_array_equal(clusters.get(out, wanted.shape, np.uint8), wanted)


@pytest.mark.parametrize(
    ("which", "side", "said"),
    [
        (1, 2, "barrier of the cluster that not all threads reach"),
        (2, 2, "never begun|before its barrier was published"),
        (3, 2, "not in its dynamic shared memory"),
        (0, 0, "not in its dynamic|before its barrier was published"),  # said to be no cluster
    ],
)
def test_a_broken_rule_of_clusters_ends_the_launch(
    clusters: KernelBench, which: int, side: int, said: str
) -> None:
    cluster(clusters, which, side)
    with pytest.raises(DeviceLost, match=said):
        clusters.stream.synchronize()
