"""`attention` on sm_90a against its reference, on the host."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels.attention import (
    Attention,
    Dtype,
    Strides,
    head_major,
    reference,
    sequence_major,
)
from diffusion_rt.kernels.attention_sm90 import TACTICS, Sm90Attention
from diffusion_rt.kernels.attention_tactics import tactics
from diffusion_rt.kernels.catalogue import SOURCES
from diffusion_rt.kernels.driver import DeviceLost, Misuse, limits_of
from support.kernel_bench import KernelBench
from support.sparse_memory import SparseMemory

Array = NDArray[Any]
NUMPY: dict[Dtype, Any] = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
EPSILON: dict[Dtype, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
CHIP = limits_of(90)
SMALL, LARGE = TACTICS[:2]
BENCHES: dict[str, KernelBench] = {}


def packed(queries: int, keys: int, head: int = 64, **changes: Any) -> Attention:
    """Queries, keys and values as one product leaves them, side by side; two heads."""
    heads = changes.pop("heads", 2)
    rows = max(queries, keys)
    wide = sequence_major(rows, heads, head, 3 * heads * head)
    sizes: dict[str, Any] = {
        "batch": 1,
        "heads": heads,
        "queries": queries,
        "keys": keys,
        "head_size": head,
        "q": wide,
        "k": wide,
        "v": wide,
        "out": sequence_major(queries, heads, head, heads * head + 8),
    }
    return Attention(**{**sizes, **changes})


def places(count: int, tokens: int, a: Attention, steps: Strides) -> Array:
    """Where the elements of [batch, tokens, heads, head_size] lie."""
    axes = np.ix_(range(count), range(tokens), range(a.heads), range(a.head_size))
    ways = (steps.batch, steps.token, steps.head, 1)
    return np.asarray(sum(axis * way for axis, way in zip(axes, ways, strict=True)))


def check(a: Attention, tactic: Sm90Attention, *, seed: int = 0, spread: float = 1.0) -> None:
    """Random numbers: the reference, within twice the error of plain code of the same type."""
    assert tactic.takes(a, CHIP)
    rng, dtype = np.random.default_rng(seed), NUMPY[a.dtype]
    if tactic.variant.name not in BENCHES:
        BENCHES[tactic.variant.name] = KernelBench([tactic.variant])
    bench = BENCHES[tactic.variant.name]

    def put(tokens: int, steps: Strides) -> tuple[Array, int]:
        values = rng.normal(size=(a.batch, tokens, a.heads, a.head_size)) * spread
        where = places(a.batch, tokens, a, steps)
        flat = np.full(where.max() + 1, np.nan, dtype)
        flat[where] = values.astype(dtype)
        return values.astype(dtype), bench.put(flat).address

    (q, q_at), (k, k_at), (v, v_at) = put(a.queries, a.q), put(a.keys, a.k), put(a.keys, a.v)
    where = places(a.batch, a.queries, a, a.out)
    extent = int(where.max()) + 17
    out = bench.poisoned([extent], dtype)
    launch = tactic.launch(a)
    CHIP.check(launch, tactic.variant.name)
    arguments = tactic.arguments(a, q_at, k_at, v_at, out.address, bench.device.tensor_map)
    bench.run("attention_sm90", launch, *arguments)
    flat = bench.get(out, [extent], dtype)
    bench.clear()
    got = flat[where].astype(np.float64)
    flat[where] = 0
    assert np.isnan(np.delete(flat, where.reshape(-1)).astype("f4")).all()
    scale = a.head_size**-0.5 if a.scale is None else a.scale
    truth = reference(q, k, v, scale)
    error = max(plain_error(a, scale, draw, spread) for draw in range(seed, seed + 4))
    assert np.abs(got - truth).max() <= 2 * error


def plain_error(a: Attention, scale: float, seed: int, spread: float) -> float:
    """The largest error of three steps, each rounded to the type; never under one rounding."""
    rng, dtype = np.random.default_rng(seed), NUMPY[a.dtype]
    q, k, v = (
        (rng.normal(size=(a.batch, tokens, a.heads, a.head_size)) * spread).astype(dtype)
        for tokens in (a.queries, a.keys, a.keys)
    )
    truth = reference(q, k, v, scale)
    queries, keys, values = (x.astype("f4").transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = (queries @ keys.swapaxes(-1, -2)).astype(dtype).astype("f4") * np.float32(scale)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(dtype).astype("f4")
    plain = (weights @ values).astype(dtype).transpose(0, 2, 1, 3).astype("f8")
    least = np.abs(truth).max() * EPSILON[a.dtype] / 2
    return float(max(np.abs(plain - truth).max(), least))


def test_rows_lie_further_apart_than_an_int32_counts() -> None:
    """Gigabytes between neighbours: what multiplies a stride in 32 bits ends up elsewhere."""
    far = Strides(batch=2**31 - 64, token=2**26 + 64, head=2**25)
    sizes: dict[str, Any] = {"batch": 2, "heads": 2, "queries": 64, "keys": 64, "head_size": 16}
    a = Attention(**sizes, q=far, k=far, v=far, out=far, dtype=SMALL.dtype)
    rng, dtype = np.random.default_rng(0), NUMPY[a.dtype]
    q, k, v = (rng.normal(size=(2, 64, 2, 16)).astype(dtype) for _ in range(3))
    bench = KernelBench([SMALL.variant])
    memory = SparseMemory(bench)
    where = places(2, 64, a, far) * dtype().itemsize
    q_at, k_at, v_at, out = (memory.base + n * 16 * dtype().itemsize for n in range(4))
    for values, address in ((q, q_at), (k, k_at), (v, v_at)):
        memory.write(where + address, values)
    arguments = SMALL.arguments(a, q_at, k_at, v_at, out, bench.device.tensor_map)
    bench.run("attention_sm90", SMALL.launch(a), *arguments)
    bench.stream.synchronize()
    got = memory.read(where + out, dtype).astype(np.float64)
    memory.close()
    error = max(plain_error(a, 0.25, draw, 1.0) for draw in range(4))
    assert np.abs(got - reference(q, k, v, 0.25)).max() <= 2 * error


@pytest.fixture(params=["forward", "reverse"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies at once and products late, or the other way round."""
    monkeypatch.setenv("HOST_CUDA_ORDER", request.param)


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        (64, 1),
        (64, 127),
        (128, 128),
        (129, 129),
        (70, 400),  # more blocks of keys than stages
        (200, 640),
        (65, 1025),  # three times round the ring: each barrier's parity comes back
    ],
)
def test_tokens_of_any_number(queries: int, keys: int, order: None) -> None:
    check(packed(queries, keys), SMALL)


@pytest.mark.parametrize(
    ("queries", "keys"), [(64, 1), (192, 128), (193, 129), (140, 400), (300, 640)]
)
def test_three_warpgroups_take_turns(queries: int, keys: int, order: None) -> None:
    check(packed(queries, keys), LARGE)


@pytest.mark.parametrize("tactic", TACTICS, ids=lambda tactic: tactic.variant.name)
def test_every_variant_is_its_reference(tactic: Sm90Attention) -> None:
    """The largest head, and one that does not fill its columns."""
    for head in (tactic.head, tactic.head - 24):
        check(packed(130, 300, head, dtype=tactic.dtype, heads=1), tactic)


def test_batches_and_heads_apart_in_any_layout(order: None) -> None:
    apart = head_major(80, 3, 40)
    of_out = sequence_major(80, 3, 40)
    check(
        packed(80, 72, 40, batch=2, heads=3, q=apart, k=apart, v=of_out, out=of_out, scale=0.3),
        SMALL,
    )


@pytest.mark.parametrize("spread", [0.01, 5.0])
def test_flat_and_sharp_weights(spread: float) -> None:
    """All keys nearly alike; and one that outweighs all others, so that sums shrink to nothing."""
    check(packed(64, 300), SMALL, spread=spread)


@given(
    queries=st.integers(64, 300),
    keys=st.integers(1, 300),
    head=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_any_size(queries: int, keys: int, head: int, seed: int) -> None:
    check(packed(queries, keys, 8 * head, heads=1), SMALL, seed=seed)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # Scores taken before they are there; weights made while the last ones are still read; the
        # surplus of keys not masked; a turn too many; keys for values.
        ("            wgmma_wait<1>();\n", ""),
        ("            barrier_wait(query_there, 0);\n            wgmma_wait<0>();",
         "            to_fragments(scores, weights);\n            wgmma_wait<0>();"),
        ("if (key >= there)", "if (key > there)"),
        ("if (group < GROUPS || step + 1 < steps)", "if (true)"),
        ("columns_of_128(window_address(value_tiles)", "columns_of_128(window_address(key_tiles)"),
    ],
)  # fmt: skip
def test_a_planted_mistake_shows(
    right: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (SOURCES / "attention_sm90.cu").read_text()
    assert text.count(right) == 1
    (tmp_path / "attention_sm90.cu").write_text(text.replace(right, wrong))
    source = str(tmp_path / "attention_sm90.cu")
    bench = KernelBench([replace(SMALL.variant, source=source)])
    found = []
    for way in ("forward", "reverse"):
        monkeypatch.setenv("HOST_CUDA_ORDER", way)
        monkeypatch.setitem(BENCHES, SMALL.variant.name, bench)
        try:
            for keys in (500, 3):
                check(packed(64, keys, heads=1), SMALL)
        except (AssertionError, DeviceLost) as error:
            found.append(error)
            bench = KernelBench([replace(SMALL.variant, source=source)])
    assert found


def test_the_fewest_rounds_come_first() -> None:
    """1,024 tokens of 40 heads: three rounds of 128 queries, or two of 192; 128 tokens: one."""
    chip = limits_of(90)
    many = packed(1024, 1024, heads=40)
    assert (chip.multiprocessors, many.batch) == (132, 1)
    assert tactics(many, chip)[:2] == (LARGE, SMALL)
    assert tactics(packed(128, 1024, heads=40), chip)[:2] == (SMALL, LARGE)


def test_only_what_suits_is_taken() -> None:
    a = packed(1024, 1024)
    assert SMALL.takes(a, CHIP)
    assert not SMALL.takes(a, limits_of(100))
    assert not SMALL.takes(replace(a, causal=True), CHIP)
    assert not SMALL.takes(packed(63, 1024), CHIP)
    assert not SMALL.takes(packed(1024, 1024, 72), CHIP)
    assert not SMALL.takes(replace(a, dtype="bfloat16"), CHIP)
    assert not SMALL.takes(replace(a, k=Strides(0, 384, 64)), CHIP)
    with pytest.raises(Misuse, match="wants tensor maps and nothing makes them"):
        SMALL.arguments(a, 16, 16, 16, 16)
