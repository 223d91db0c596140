"""Weights on the simulator: every layout and cast, the ring, replacing one tensor, bad files."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import packing
from diffusion_rt.engines.native.packing import finite, to_bfloat16, widened
from diffusion_rt.engines.native.plan import Weight
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.kernels.driver import OutOfMemory, Part
from diffusion_rt.kernels.driver.simulator import Simulator
from support.native_weights import FILE, Case, Checkpoint, Loaded, cases, laid_out

Array = NDArray[Any]


def expected(checkpoint: Checkpoint, weight: Weight) -> Array:
    """The layouts in plain NumPy, one whole tensor at a time."""
    parts = []
    for source in weight.sources:
        values = widened(*checkpoint.stored[source.name])
        if weight.layout == "filters":
            values = values.transpose(0, 2, 3, 1)
        elif weight.layout == "doubled":
            values = doubled(values.astype(np.float32))
        elif weight.layout == "geglu":
            half = len(values) // 2
            order = [
                g * 8 + i + gate for g in range(half // 8) for gate in (0, half) for i in range(8)
            ]
            values = values[order]
        elif weight.layout == "transposed":
            values = values.T
        parts.append(values)
    whole = np.concatenate(parts)
    spare = [(0, wanted - size) for wanted, size in zip(weight.shape, whole.shape, strict=True)]
    whole = np.pad(whole, spare)
    return to_bfloat16(whole) if weight.dtype == "bfloat16" else whole.astype(weight.dtype)


def doubled(values: Array) -> Array:
    """For each parity and each of its taps: the sum of the weights that meet the same pixel."""
    place = np.zeros((len(values), 4, 4, values.shape[1]), np.float32)
    meets = [(0, 1, 1), (0, 0, 1)]  # of an even and of an odd line: where three taps lie
    for (p, q), (t, u) in product(product((0, 1), repeat=2), repeat=2):
        lines = [i for i in range(3) if meets[p][i] == t]
        columns = [i for i in range(3) if meets[q][i] == u]
        taps = values[:, :, lines][:, :, :, columns]
        place[:, 2 * p + q, 2 * t + u] = taps.sum(axis=2).sum(axis=2)
    return place.reshape(len(values), 16, -1)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(1, 3), st.sampled_from([1, 300, 1 << 20]), st.sampled_from([64, 4096]))
def test_every_layout_and_cast(
    tmp_path_factory: pytest.TempPathFactory,
    chosen: list[Case],
    slots: int,
    slot_bytes: int,
    block: int,
) -> None:
    checkpoint = Checkpoint(tmp_path_factory.mktemp("weights"))
    weights = checkpoint.weights(chosen)
    patch = pytest.MonkeyPatch()
    patch.setattr(packing, "BLOCK", block)
    try:
        loaded = Loaded(checkpoint, weights, seed=slots, slots=slots, slot_bytes=slot_bytes)
        for weight in weights:
            assert loaded.weights.address(weight.name) % 256 == 0
            np.testing.assert_array_equal(
                loaded.read(weight), expected(checkpoint, weight), strict=True
            )
    finally:
        patch.undo()


def test_the_bytes_reported_are_the_bytes_there_are(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    weights = [rows(checkpoint, str(n), (300 + n, 7)) for n in range(5)]
    heard: list[int] = []
    loaded = Loaded(checkpoint, weights, slot_bytes=5000, progress=heard.append)
    assert len(heard) > 1
    assert sum(heard) == sum(weight.size for weight in weights)
    assert loaded.weights.seconds > 0


def test_pinned_memory_is_bounded_and_given_back(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    weights = [rows(checkpoint, str(n), (64, 100)) for n in range(40)]
    device = Counting()
    stream = device.stream()
    Weights(device, stream, weights, {}).stream_from(tmp_path, slots=2, slot_bytes=60_000)
    assert 0 < device.most_pinned <= 2 * 60_000
    assert device.pinned_now == 0


def test_merged_projections_are_stacked_and_replaced_one_by_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    parts = tuple(checkpoint.tensor(name, (24, 16), "float32") for name in ("q", "k", "v"))
    merged = Weight("qkv", parts, "rows", "float16", (72, 16))
    other = rows(checkpoint, "other", (5, 3))
    loaded = Loaded(checkpoint, [merged, other])
    address = loaded.weights.address("qkv")
    new = checkpoint.rng.normal(size=(24, 16)).astype(np.float32)
    loaded.weights.write("k", new)
    checkpoint.stored["k"] = new, "float32"
    np.testing.assert_array_equal(loaded.read(merged), expected(checkpoint, merged))
    np.testing.assert_array_equal(loaded.read(other), expected(checkpoint, other))
    assert loaded.weights.address("qkv") == address


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("filters", (5, 3, 3, 3)),
        ("doubled", (5, 3, 3, 3)),
        ("geglu", (48, 9)),
        ("transposed", (6, 11)),
        ("rows", (700, 3)),
    ],
)
@pytest.mark.parametrize("given_as", ["float32", "float16"])
def test_a_tensor_is_replaced_in_its_layout(
    tmp_path: Path, layout: Any, shape: tuple[int, ...], given_as: str
) -> None:
    checkpoint = Checkpoint(tmp_path)
    source = checkpoint.tensor("w", shape, "bfloat16")
    weight = Weight("made", (source,), layout, "float16", laid_out(layout, [shape], 1))
    loaded = Loaded(checkpoint, [weight])
    new = checkpoint.rng.normal(size=shape).astype(given_as)
    loaded.weights.write("w", new)
    checkpoint.stored["w"] = new, given_as
    np.testing.assert_array_equal(loaded.read(weight), expected(checkpoint, weight))


def test_what_lies_in_the_onnx_file_is_given_as_arrays(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    values = checkpoint.rng.normal(size=(5, 3)).astype(np.float32)
    weight = Weight("frequencies", (), "rows", "float16", (8, 3))
    loaded = Loaded(checkpoint, [rows(checkpoint, "w", (4, 4)), weight], {"frequencies": values})
    found = loaded.read(weight)
    np.testing.assert_array_equal(found[:5], values.astype(np.float16))
    np.testing.assert_array_equal(found[5:], 0)


def test_a_replay_sees_the_new_values(tmp_path: Path) -> None:
    """A LoRA is poured in while what was captured stays valid."""
    checkpoint = Checkpoint(tmp_path)
    weight = rows(checkpoint, "w", (4, 4))
    loaded = Loaded(checkpoint, [weight])
    seen = loaded.device.pinned(64)
    source = Part(loaded.weights.address("w"), 64)
    graph = loaded.stream.capture(lambda: loaded.stream.copy(seen, source))
    new = np.full((4, 4), 7, np.float32)
    loaded.weights.write("w", new)
    graph.replay(loaded.stream)
    loaded.stream.synchronize()
    np.testing.assert_array_equal(seen.array.view(np.float32), 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 4), np.float32), r'weight "w": float32 \[3, 4\], wants .* \[4, 4\]'),
        (np.zeros((4, 4), np.float64), "float64"),
        (np.full((4, 4), np.nan, np.float32), "has NaN"),
    ],
)
def test_what_cannot_be_written_changes_nothing(
    tmp_path: Path, values: Array, message: str
) -> None:
    checkpoint = Checkpoint(tmp_path)
    weight = rows(checkpoint, "w", (4, 4))
    loaded = Loaded(checkpoint, [weight])
    with pytest.raises(BadInput, match=message):
        loaded.weights.write("w", values)
    np.testing.assert_array_equal(loaded.read(weight), expected(checkpoint, weight))


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    loaded = Loaded(checkpoint, [rows(checkpoint, "w", (4, 4))])
    with pytest.raises(BadInput, match='"nowhere"'):
        loaded.weights.write("nowhere", np.zeros((4, 4), np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named(tmp_path: Path, dtype: str, bad: float) -> None:
    checkpoint = Checkpoint(tmp_path)
    values = np.zeros((100, 7), np.float32)
    values[93, 2] = bad
    stored = to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
    source = checkpoint.put("mid_block.bad", stored, dtype)
    good = rows(checkpoint, "good", (3, 3))
    weight = Weight("made", (source,), "rows", "float32", (100, 7))
    with pytest.raises(BadInput, match=r'"mid_block\.bad" has NaN or infinity'):
        Loaded(checkpoint, [good, weight])


def test_a_number_too_large_for_the_dtype_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    values = np.full((4, 4), 70_000, np.float32)
    source = checkpoint.put("large", values, "float32")
    with pytest.raises(BadInput, match='"large" has numbers too large for float16'):
        Loaded(checkpoint, [Weight("w", (source,), "rows", "float16", (4, 4))])


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    weight = rows(checkpoint, "w", (40, 40))
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"weights\.safetensors: ends 1 bytes early"):
        Loaded(checkpoint, [weight])


def test_a_file_that_is_a_link_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    weight = rows(checkpoint, "w", (4, 4))
    (tmp_path / FILE).rename(tmp_path / "moved")
    (tmp_path / FILE).symlink_to(tmp_path / "moved")
    with pytest.raises(BadInput, match="symbolic link"):
        Loaded(checkpoint, [weight])


@pytest.mark.parametrize(
    ("layout", "stored", "shape"),
    [
        ("rows", (4, 4), (3, 4)),
        ("rows", (4, 6), (4, 5)),
        ("filters", (4, 3, 3, 3), (4, 3, 3, 2)),
        ("doubled", (4, 3, 3, 3), (4, 16, 2)),
        ("doubled", (4, 3, 1, 3), (4, 16, 3)),
        ("geglu", (20, 4), (20, 4)),
        ("transposed", (3, 4), (4, 2)),
    ],
)
def test_tensors_that_do_not_make_up_the_weight(
    tmp_path: Path, layout: Any, stored: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    checkpoint = Checkpoint(tmp_path)
    source = checkpoint.tensor("w", stored, "float32")
    with pytest.raises(BadInput, match=r"weight made: .* does not fit"):
        Loaded(checkpoint, [Weight("made", (source,), layout, "float32", shape)])


def test_weights_that_do_not_fit_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    weight = rows(checkpoint, "w", (1000, 1000))
    device = Simulator(memory_bytes=1 << 20)
    with pytest.raises(OutOfMemory, match="4000000 bytes"):
        Weights(device, device.stream(), [weight], {})


@settings(max_examples=200, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_is_the_nearest(value: float) -> None:
    bits = int(to_bfloat16(np.array([value], np.float32))[0])
    if bits & 0x7FFF == 0x7F80:  # rounded up to infinity, from half a step below it
        assert abs(value) >= (2 - 2**-8) * 2.0**127
        return
    near = [n for n in (bits - 1, bits, bits + 1) if 0 <= n <= 0xFFFF]
    found = [float(widened(np.array([n], np.uint16), "bfloat16")[0]) for n in near]
    mine = float(widened(np.array([bits], np.uint16), "bfloat16")[0])
    apart = [abs(f - value) for f in found if np.isfinite(f)]
    assert abs(mine - value) <= min(apart)
    if apart.count(abs(mine - value)) == 2:  # a tie
        assert bits % 2 == 0


def test_not_a_number_stays_one_as_bfloat16() -> None:
    bits = np.array([0x7F80_0001, 0xFFFF_FFFF], np.uint32)
    made = to_bfloat16(bits.view(np.float32))
    assert np.isnan(widened(made, "bfloat16")).all()
    assert not finite(made, "bfloat16", np.zeros(64, np.uint8))


def rows(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Weight:
    source = checkpoint.tensor(name, shape, "float32")
    return Weight(name, (source,), "rows", "float32", shape)


class Counting(Simulator):
    """Knows how much pinned memory there is and was."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned_now = self.most_pinned = 0

    def pinned(self, nbytes: int) -> Any:
        buffer = super().pinned(nbytes)
        self.pinned_now += nbytes
        self.most_pinned = max(self.most_pinned, self.pinned_now)
        close = buffer.close

        def counted() -> None:
            self.pinned_now -= nbytes
            close()

        buffer.close = counted  # type: ignore[method-assign]
        return buffer
