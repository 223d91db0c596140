"""Names of sizes: short, and still the whole of them."""

from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.engines.native.size_names import size_name
from diffusion_rt.kernels.attention import Attention, Strides, head_major
from diffusion_rt.kernels.conv import Convolution
from diffusion_rt.kernels.epilogue import Epilogue
from diffusion_rt.kernels.gemm import Product

MADE = {kind.__name__: kind for kind in (Attention, Convolution, Epilogue, Product, Strides)}


def test_what_it_would_have_anyway_is_left_out() -> None:
    product = Product(dtype="float16", rows=2, columns=16, depth=8, first_stride=8, image_rows=2)
    assert size_name(product) == "Product(dtype='float16', rows=2, columns=16, depth=8)"
    a = head_major(3, 1, 8)
    attention = Attention(batch=1, heads=1, queries=3, keys=3, head_size=8, q=a, k=a, v=a, out=a)
    assert "q=Strides(24, 8, 24)" in size_name(attention)
    assert "scale" not in size_name(attention)


eights = st.integers(1, 64).map(lambda n: 8 * n)


@st.composite
def products(draw: st.DrawFn) -> Product:
    depth, columns = draw(eights), 2 * draw(eights)
    first = draw(st.sampled_from((0, 8, depth)))
    return Product(
        dtype=draw(st.sampled_from(("float16", "float32"))),
        rows=draw(st.integers(1, 99)),
        columns=columns,
        depth=depth,
        first_depth=first,
        image_rows=draw(st.integers(0, 99)),
        first_stride=(first or depth) + draw(eights),
        output_stride=draw(st.sampled_from((0, columns, columns + 8))),
        epilogue=Epilogue(bias=draw(st.booleans()), residual=draw(st.booleans())),
    )


@given(products())
def test_a_name_is_the_call_that_makes_the_same(product: Product) -> None:
    """So different sizes never share one."""
    assert eval(size_name(product), {"__builtins__": {}}, dict(MADE)) == product
