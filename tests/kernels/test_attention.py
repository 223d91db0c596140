"""Attention kernels against their reference, on the host."""

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.kernels.attention import (
    MOST_TOKENS,
    Attention,
    Dtype,
    Strides,
    head_major,
    reference,
    sequence_major,
)
from diffusion_rt.kernels.attention_tactics import TILED, VARIANTS, Tactic, Tiled, tactics
from diffusion_rt.kernels.compile import CompileError, find_compiler
from diffusion_rt.kernels.driver import Misuse, limits_of
from diffusion_rt.kernels.driver.arguments import Packed
from diffusion_rt.kernels.driver.tensor_map import plain as plain_map
from diffusion_rt.kernels.variant import Variant
from support.kernel_bench import KernelBench
from support.sparse_memory import SparseMemory

DTYPES: dict[Dtype, Any] = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float32": np.float32,
}
EPSILON: dict[Dtype, float] = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}


def plain(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    scale: float,
    causal: bool,
    in_turn: bool = False,
) -> NDArray[np.float64]:
    """The same in three steps, each rounded to the dtype of the inputs; sums in float32.

    `in_turn`: one key is added after the other, where a library adds sums of some.
    """
    dtype = q.dtype
    queries, keys, values = (x.astype(np.float32).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = (queries @ keys.swapaxes(-1, -2)).astype(dtype).astype(np.float32) * np.float32(scale)
    if causal:
        scores = np.where(np.tri(q.shape[1], k.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = (weights / weights.sum(-1, keepdims=True)).astype(dtype).astype(np.float32)
    if in_turn:
        parts = weights[..., None] * values[:, :, None]
        result: NDArray[Any] = np.cumsum(parts, axis=-2)[..., -1, :].astype(dtype)
    else:
        result = (weights @ values).astype(dtype)
    return result.transpose(0, 2, 1, 3).astype(np.float64)


class Case:
    """Numbers of one attention, run by a tactic."""

    def __init__(
        self, seed: int, attention: Attention, spread: float = 1.0, in_turn: bool = False
    ) -> None:
        self.attention = a = attention
        self.spread = spread
        self.in_turn = in_turn
        rng = np.random.default_rng(seed)
        dtype = DTYPES[a.dtype]
        size = (a.batch, a.queries, a.heads, a.head_size)
        other = (a.batch, a.keys, a.heads, a.head_size)
        self.q, self.k, self.v = (
            (rng.normal(size=s) * spread).astype(dtype) for s in (size, other, other)
        )
        self.scale = a.head_size**-0.5 if a.scale is None else a.scale

    def run(self, bench: KernelBench, tactic: Tactic) -> NDArray[np.float64]:
        """What the kernel writes; checks that it writes nothing else."""
        a = self.attention
        launch = tactic.launch(a)
        limits_of(90).check(launch, tactic.variant.name, tactic.variant.shared_bytes)
        q, k, v = (
            bench.put(spread_out(x, s)) for x, s in ((self.q, a.q), (self.k, a.k), (self.v, a.v))
        )
        extent = a.out.batch * a.batch + COLUMNS_BETWEEN
        dtype = DTYPES[a.dtype]
        out = bench.poisoned([extent], dtype)
        arguments = tactic.arguments(a, q.address, k.address, v.address, out.address)
        bench.run(tactic.variant.kernel, launch, *arguments)
        flat = bench.get(out, [extent], dtype)
        bench.clear()
        places = indices(self.q.shape, a.out)
        result = flat[places].astype(np.float64)
        flat[places] = 0
        untouched = np.delete(flat.view(f"u{flat.itemsize}"), places.reshape(-1))
        assert (untouched == np.iinfo(untouched.dtype).max).all(), "written outside of the output"
        return result

    def check(self, got: NDArray[np.float64]) -> None:
        truth = reference(self.q, self.k, self.v, self.scale, self.attention.causal)
        # A handful of numbers has no typical error: more draws of the same sizes have.
        a = self.attention
        draws = min(max(2**16 // (a.batch * a.heads * a.queries * a.keys), 8), 128)
        others = [Case(seed, a, self.spread, self.in_turn) for seed in range(draws)]
        error = max(case.plain_error() for case in (self, *others))
        assert np.abs(got - truth).max() <= 2 * error

    def plain_error(self) -> float:
        """The largest error of plain code, and never under the rounding of one result."""
        arguments = (self.q, self.k, self.v, self.scale, self.attention.causal)
        truth = reference(*arguments)
        epsilon = EPSILON[self.attention.dtype]
        error = np.abs(plain(*arguments, self.in_turn) - truth).max()
        return float(max(error, np.abs(truth).max() * epsilon / 2))


COLUMNS_BETWEEN = 16
"""Elements behind a tensor that nobody may touch."""


def indices(shape: tuple[int, ...], strides: Strides) -> NDArray[np.int64]:
    """Where the elements of [batch, tokens, heads, head_size] lie."""
    steps = (strides.batch, strides.token, strides.head, 1)
    return np.asarray(
        sum(
            np.arange(count).reshape(-1, *(1,) * (3 - axis)) * step
            for axis, (count, step) in enumerate(zip(shape, steps, strict=True))
        )
    )


def spread_out(values: NDArray[Any], strides: Strides) -> NDArray[Any]:
    """The values at their places, NaN between and behind."""
    flat = np.full(strides.batch * values.shape[0] + COLUMNS_BETWEEN, np.nan, values.dtype)
    flat[indices(values.shape, strides)] = values
    return flat


def contiguous(
    dtype: Dtype, batch: int, heads: int, queries: int, keys: int, head_size: int, **more: Any
) -> Attention:
    of_queries = sequence_major(queries, heads, head_size)
    of_keys = sequence_major(keys, heads, head_size)
    return Attention(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        head_size=head_size,
        q=of_queries,
        k=of_keys,
        v=of_keys,
        out=of_queries,
        dtype=dtype,
        **more,
    )


@pytest.fixture(scope="module", params=TILED, ids=lambda tactic: tactic.variant.name)
def runs(request: pytest.FixtureRequest) -> Iterator[tuple[KernelBench, Tiled]]:
    bench = KernelBench([request.param.variant])
    yield bench, request.param
    bench.clear()


@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_any_sizes_and_layouts(runs: tuple[KernelBench, Tiled], data: st.DataObject) -> None:
    bench, tactic = runs
    draw = data.draw
    head_size = draw(st.integers(1, tactic.head // 8)) * 8
    heads, batch = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    queries, keys = draw(st.integers(1, 2 * tactic.rows + 1)), draw(st.integers(1, 320))
    width = 3 * heads * head_size + 8 * draw(st.integers(0, 2))
    layouts = {
        "sequence": lambda tokens: sequence_major(tokens, heads, head_size),
        "packed": lambda tokens: sequence_major(tokens, heads, head_size, width),
        "heads": lambda tokens: head_major(tokens, heads, head_size),
    }
    chosen = [layouts[draw(st.sampled_from(sorted(layouts)))] for _ in range(4)]
    attention = Attention(
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        head_size=head_size,
        q=chosen[0](queries),
        k=chosen[1](keys),
        v=chosen[2](keys),
        out=chosen[3](queries),
        dtype=tactic.dtype,
        scale=draw(st.sampled_from([None, 0.05, 1.0])),
        causal=draw(st.booleans()),
    )
    case = Case(draw(st.integers(0, 2**32 - 1)), attention)
    case.check(case.run(bench, tactic))


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_the_order_of_threads_does_not_show(
    runs: tuple[KernelBench, Tiled], monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    bench, tactic = runs
    monkeypatch.setenv("HOST_CUDA_ORDER", order)
    case = Case(1, contiguous(tactic.dtype, 1, 1, tactic.rows + 3, 131, tactic.head))
    case.check(case.run(bench, tactic))


def test_one_key_is_its_value(runs: tuple[KernelBench, Tiled]) -> None:
    bench, tactic = runs
    case = Case(2, contiguous(tactic.dtype, 2, 2, 3, 1, 8))
    wanted = np.broadcast_to(case.v.astype(np.float64), case.q.shape)
    np.testing.assert_array_equal(case.run(bench, tactic), wanted)


def test_scores_far_apart_do_not_overflow(runs: tuple[KernelBench, Tiled]) -> None:
    """Scores of some thousands: without the running maximum, exp would leave float32."""
    bench, tactic = runs
    case = Case(3, contiguous(tactic.dtype, 1, 1, 5, 140, 32, scale=1.0), spread=30)
    case.check(case.run(bench, tactic))


def test_nan_comes_through(runs: tuple[KernelBench, Tiled]) -> None:
    """A NaN is not lost in a maximum: every query that sees it, and no other, is NaN."""
    bench, tactic = runs
    case = Case(4, contiguous(tactic.dtype, 1, 2, 5, 80, 16, causal=True))
    case.k[0, 3, 1, 7] = np.nan
    got = np.isnan(case.run(bench, tactic))
    wanted = np.zeros_like(got)
    wanted[0, 3:, 1] = True
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "name", ["attention_64.float16", "attention_512_rows32.bfloat16", "attention_512.float32"]
)
def test_the_keys_of_a_picture_of_1280x1024(name: str) -> None:
    """Each source over the 20,480 latent pixels of the VAE's attention, and one more."""
    (tactic,) = (tactic for tactic in TILED if tactic.variant.name == name)
    bench = KernelBench([tactic.variant])
    case = Case(7, contiguous(tactic.dtype, 1, 1, 2, 160 * 128 + 1, 64), in_turn=True)
    case.check(case.run(bench, tactic))


def test_rows_lie_further_apart_than_an_int32_counts(runs: tuple[KernelBench, Tiled]) -> None:
    """Gigabytes between neighbours: what multiplies a stride in 32 bits ends up elsewhere."""
    bench, tactic = runs
    far = Strides(batch=2**31 - 64, token=2**30 + 64, head=2**29)
    sizes: dict[str, Any] = {"batch": 2, "heads": 2, "queries": 3, "keys": 3, "head_size": 16}
    case = Case(8, Attention(**sizes, q=far, k=far, v=far, out=far, dtype=tactic.dtype))
    dtype = case.q.dtype
    memory = SparseMemory(bench)
    where = indices(case.q.shape, far) * dtype.itemsize
    q, k, v, out = (memory.base + n * 16 * dtype.itemsize for n in range(4))
    for values, address in ((case.q, q), (case.k, k), (case.v, v)):
        memory.write(where + address, values)
    arguments = tactic.arguments(case.attention, q, k, v, out)
    bench.run(tactic.variant.kernel, tactic.launch(case.attention), *arguments)
    bench.stream.synchronize()
    case.check(memory.read(where + out, dtype).astype(np.float64))
    memory.close()


@pytest.mark.parametrize("arch", [80, 87, 90, 120])
def test_the_most_tokens_can_be_launched(arch: int) -> None:
    """Self attention of each width that a model has, packed, and with heads before tokens."""
    tokens, limits = MOST_TOKENS, limits_of(arch)
    models: tuple[tuple[Dtype, int, int], ...] = (
        ("float16", 10, 64),
        ("float32", 10, 64),
        ("bfloat16", 1, 512),
        ("float32", 1, 512),
    )
    for dtype, heads, head_size in models:
        packed = sequence_major(tokens, heads, head_size, 3 * heads * head_size)
        by_head = head_major(tokens, heads, head_size)
        attention = Attention(
            batch=2,
            heads=heads,
            queries=tokens,
            keys=tokens,
            head_size=head_size,
            q=packed,
            k=packed,
            v=by_head,
            out=by_head,
            dtype=dtype,
        )
        for tactic in tactics(attention, limits):
            variant = tactic.variant
            limits.check(tactic.launch(attention), variant.name, variant.shared_bytes)
            arguments = tactic.arguments(attention, *(256,) * 4, encode=plain_map)
            Packed(variant.name, variant.parameters, arguments)


def test_the_reference_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(5, contiguous("float32", 2, 3, 11, 7, 8, causal=True))
    whole = reference(case.q, case.k, case.v, 0.3, True)
    monkeypatch.setattr("diffusion_rt.kernels.attention._REFERENCE_SCORES", 2 * 3 * 7 * 2)
    np.testing.assert_allclose(reference(case.q, case.k, case.v, 0.3, True), whole, rtol=1e-12)


def test_the_reference_is_torchs_attention() -> None:
    torch = pytest.importorskip("torch")
    case = Case(6, contiguous("float32", 2, 2, 9, 9, 16))
    q, k, v = (torch.from_numpy(x.transpose(0, 2, 1, 3)).double() for x in (case.q, case.k, case.v))
    for causal in (False, True):
        theirs = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=0.2
        )
        ours = reference(case.q, case.k, case.v, 0.2, causal).transpose(0, 2, 1, 3)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"queries": 0}, "queries=0, 1 to 1048576"),
        ({"keys": 2**20 + 1}, "keys=1048577"),
        ({"batch": 65536}, "batch=65536, 1 to 65535"),
        (
            {"v": Strides(2**31, 80, 40)},
            "v's batch stride 2147483648 is not within 0 to 2147483647",
        ),
        ({"out": Strides(0, -80, 40)}, "out's token stride -80 is not within"),
        ({"head_size": 44}, "head_size=44 is no multiple of 8"),
        ({"heads": 0}, "heads=0"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"k": Strides(640, 36, 8)}, "k's token stride 36 is no multiple of 8"),
    ],
)
def test_what_no_kernel_takes_is_refused(changed: dict[str, Any], said: str) -> None:
    row = sequence_major(16, 2, 40)
    whole = {"batch": 1, "heads": 2, "queries": 16, "keys": 16, "head_size": 40}
    with pytest.raises(Misuse, match=said):
        Attention(**{**whole, "q": row, "k": row, "v": row, "out": row, **changed})


@pytest.mark.parametrize("arch", [80, 90, 120])
def test_every_head_size_has_a_tactic_on_every_chip(arch: int) -> None:
    for dtype in {tactic.dtype for tactic in TILED}:
        for head_size in (*range(8, 161, 8), 512):
            attention = contiguous(dtype, 1, 1, 64, 77, head_size)
            for tactic in tactics(attention, limits_of(arch)):
                limits = limits_of(arch)
                launch = tactic.launch(attention)
                limits.check(launch, tactic.variant.name, tactic.variant.shared_bytes)
    with pytest.raises(Misuse, match=r"heads of 520 in float32 on sm_80; up to 512"):
        tactics(contiguous("float32", 1, 1, 4, 4, 520), limits_of(80))


@pytest.mark.parametrize(
    ("arch", "sizes", "first"),
    [
        (80, ("float16", 2, 10, 4096, 4096, 64), "attention_64.float16"),
        (80, ("float16", 1, 20, 400, 400, 64), "attention_64_rows64.float16"),
        (120, ("float16", 2, 20, 1024, 308, 64), "attention_64_resident.float16"),
        (86, ("float16", 2, 8, 4096, 4096, 40), "attention_48.float16"),
        (80, ("bfloat16", 1, 1, 16384, 16384, 512), "attention_512_rows64.bfloat16"),
        (80, ("bfloat16", 1, 1, 1024, 1024, 512), "attention_512_rows32.bfloat16"),
        (89, ("float16", 1, 1, 16384, 16384, 512), "attention_512_rows32.float16"),
        (90, ("float32", 1, 1, 16384, 16384, 512), "attention_512.float32"),
    ],
)
def test_what_runs_where_nothing_was_measured(
    arch: int, sizes: tuple[Any, ...], first: str
) -> None:
    found = tactics(contiguous(*sizes), limits_of(arch))
    assert found[0].variant.name == first


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.instructions], ids=lambda variant: variant.name
)
def test_no_matrix_instruction_is_lost_or_doubled(variant: Variant) -> None:
    """The products of a warp over one step of keys, each an instruction of 16 x 8 x 16."""
    try:
        text = find_compiler().ptx(variant).decode()
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    sizes = {name: int(value) for name, value in variant.constants if name != "ELEMENT"}
    if variant.source == "attention_wide.cu":  # A slice of 64 columns, and one of 16 keys.
        scores, results = 2 * (128 // 4 // 8) * (64 // 16), 2 * (512 // 4 // 8)
    else:
        tiles, head, keys = sizes.get("TILES", 1), sizes["HEAD"], sizes["KEYS"]
        scores = results = tiles * (keys // 8) * (head // 16)
    assert text.count(variant.instructions[0]) == text.count("mma.sync") == scores + results
