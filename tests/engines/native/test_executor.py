"""Plans as real launches on the simulator, against the kernels' float64 references."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.executor import Program
from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.kernels import attention, gemm, group_norm, layer_norm
from diffusion_rt.kernels.epilogue import interleaved
from support.device_graphs import simulated_gpu
from support.native_run import Runner, chip_of, normal
from support.plan_maker import PlanMaker, heads, reshaped, rounded

Array = NDArray[Any]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_norms_one_after_the_other(dtype: p.Arithmetic) -> None:
    make = PlanMaker(dtype)
    images, pixels, channels = 2, 15, 16
    x = make.buffer("x", (images, pixels, channels), "input")
    middle = make.buffer("middle", x.shape)
    y = make.buffer("y", x.shape, "output")
    weights = {name: normal(n, channels) for n, name in enumerate(("gw", "gb", "lw", "lb"))}
    for name, values in weights.items():
        make.weight(name, values)
    make.operations = [
        p.GroupNorm(
            name="group",
            sources=(x,),
            weight="gw",
            bias="gb",
            groups=4,
            epsilon=1e-5,
            silu=True,
            output=middle,
        ),
        p.LayerNorm(
            name="layer",
            source=reshaped(middle, images * pixels, channels),
            weight="lw",
            bias="lb",
            epsilon=1e-6,
            output=reshaped(y, images * pixels, channels),
        ),
    ]
    values = normal(9, *x.shape).astype(dtype)
    gw, gb, lw, lb = (w.astype(dtype) for w in weights.values())
    between = group_norm.reference(values, gw, gb, 4, 1e-5, True).astype(dtype)
    truth = layer_norm.reference(between, lw, lb, 1e-6)
    runner = Runner(make.plan())
    for _ in range(2):  # counters are zero again
        found = runner(x=values)["y"]
        assert np.abs(found - truth).max() < 4 * np.finfo(dtype).eps * np.abs(truth).max()


def test_heads_of_packed_rows() -> None:
    make = PlanMaker()
    images, tokens, width, count = 2, 9, 32, 4
    packed = make.buffer("qkv", (images, tokens, 3 * width), "input")
    y = make.buffer("y", (images, tokens, width), "output")
    q, k, v = (
        heads(p.View("qkv", "float32", y.shape, packed.strides, place * width), count)
        for place in range(3)
    )
    make.operations = [
        p.Attention(
            name="attend", query=q, key=k, value=v, scale=0.3, causal=False, output=heads(y, count)
        )
    ]
    values = normal(1, *packed.shape)
    split = values.reshape(images, tokens, 3, count, width // count)
    truth = attention.reference(split[:, :, 0], split[:, :, 1], split[:, :, 2], 0.3)
    found = Runner(make.plan())(qkv=values)["y"]
    assert np.abs(found.reshape(truth.shape) - truth).max() < 1e-6


@pytest.mark.parametrize("arch", [89, 90])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_products_read_slices_and_write_them(dtype: p.Arithmetic, arch: int) -> None:
    """Two sources, one of them columns of a wider buffer; vector, SiLU, a residual in place."""
    make = PlanMaker(dtype)
    images, tokens, columns = 2, 6, 16
    rows = images * tokens
    first = make.buffer("first", (rows, 8), "input")
    wide = make.buffer("wide", (rows, 24), "input")
    vector = make.buffer("vector", (images, columns), "input")
    y = make.buffer("y", (rows, columns), "output")
    second = p.View("wide", dtype, (rows, 16), wide.strides, offset=8)
    weight, bias = normal(1, columns, 24), normal(2, columns)
    make.weight("w", weight)
    make.weight("b", bias)
    make.weight("g", normal(3, 32, columns), "geglu")
    middle, kept = (make.buffer(name, (rows, columns)) for name in ("middle", "kept"))
    make.operations = [
        *(
            p.Product(
                name=f"sum in {output.buffer}",
                sources=(first, second),
                weight="w",
                columns=columns,
                image_rows=tokens,
                epilogue=p.Epilogue(bias="b", vector=vector, activation="silu"),
                output=output,
            )
            for output in (middle, kept)
        ),
        p.Product(
            name="gated",
            sources=(middle,),
            weight="g",
            columns=32,
            image_rows=rows,
            epilogue=p.Epilogue(activation="geglu", residual=kept),
            output=kept,
        ),
        p.Product(
            name="out",
            sources=(kept,),
            weight="o",
            columns=columns,
            image_rows=rows,
            epilogue=p.Epilogue(),
            output=y,
        ),
    ]
    make.weight("o", normal(4, columns, columns), "transposed")
    inputs = {
        name: stored(normal(n, *make.buffers[name].shape), dtype)
        for n, name in enumerate(("first", "wide", "vector"), 5)
    }
    exact = {name: rounded(make.constants[name], dtype) for name in ("w", "b", "g", "o")}
    exact |= {name: plain(values, dtype) for name, values in inputs.items()}
    truth = chain(exact, np.float64, "float64")
    usual = chain(exact, np.float32, dtype)
    runner = Runner(make.plan(), simulated_gpu(arch=arch))
    found = plain(runner(**inputs)["y"], dtype)
    assert np.abs(found - truth).max() <= 2 * np.abs(usual - truth).max()


def chain(exact: dict[str, Array], sums: Any, kept: str) -> NDArray[np.float64]:
    """The products of the test above: sums of one type, every result kept in another."""

    def product(a: Array, weight: Array, **epilogue: Any) -> Array:
        total = np.matmul(a.astype(sums), weight.T.astype(sums))
        y = gemm.reference(total, np.eye(total.shape[1]), **epilogue)
        return y if kept == "float64" else rounded(y, kept)

    a = np.concatenate([exact["first"], exact["wide"][:, 8:]], axis=1)
    x = product(a, exact["w"], bias=exact["b"], vector=exact["vector"], activation="silu")
    x = product(x, interleaved(exact["g"]), activation="geglu", residual=x)
    return product(x, exact["o"].T)


def stored(values: Array, dtype: str) -> Array:
    """As it lies in memory; bfloat16 is its bits."""
    return to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)


def plain(values: Array, dtype: str) -> NDArray[np.float64]:
    return widened(values, dtype).astype(np.float64)


def test_what_no_kernel_takes_is_named() -> None:
    make = PlanMaker()
    x = make.buffer("x", (3, 12), "input")
    y = make.buffer("y", (3, 12), "output")
    make.weight("w", normal(0, 12))
    make.operations = [
        p.LayerNorm(name="odd", source=x, weight="w", bias="w", epsilon=1e-5, output=y)
    ]
    with pytest.raises(BadInput, match=r"unet_step: odd: no kernel .* 12 columns.*--engine ort"):
        Program(make.plan(), chip_of(simulated_gpu()))
