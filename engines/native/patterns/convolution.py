"""Convolutions over NHWC, with the padding and enlarging before them and what follows."""

from collections.abc import Callable
from dataclasses import replace

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.patterns.epilogue import Chain, epilogue, follow
from diffusion_rt.engines.native.plan import VECTOR, Convolution, Product, View
from diffusion_rt.engines.native.values import Parameter, Tensor
from diffusion_rt.engines.native.views import contiguous, narrowed, permuted, pixels, rows
from diffusion_rt.kernels.conv import TAPS


def convolution(builder: Builder, index: int, node: Node) -> None:
    """Conv, at the end of the chain that it takes in."""
    weight = builder.parameter(node.inputs[1])
    biased = len(node.inputs) > 2 and node.inputs[2] != ""
    bias = builder.parameter(node.inputs[2]) if biased else None
    if weight is None or weight.transposed or (biased and bias is None):
        builder.refuse(node, "filters or a bias that are no parameters")
    if node.whole("group", 1) != 1 or set(node.wholes("dilations", (1, 1))) != {1}:
        builder.refuse(node, "groups or dilations")
    if len(set(node.wholes("strides", (1, 1)))) != 1:
        builder.refuse(node, f"strides {list(node.wholes('strides', (1, 1)))}")
    images, filters, height, width = builder.shape(node.outputs[0])
    wide = _filled(filters)
    memory = (images, height, width, wide)
    result = permuted(View("", builder.dtype, memory, contiguous(memory)), (0, 3, 1, 2))
    # What fills up has no bias or residual to read.
    chain = follow(builder, index, 1, result, False) if wide == filters else Chain(node.outputs[0])
    last = chain.nodes[-1] if chain.nodes else index
    builder.when(last, index, lambda: _emit(builder, node, weight, bias, chain))


def _filled(channels: int) -> int:
    return -(-channels // VECTOR) * VECTOR


def _emit(
    builder: Builder, node: Node, weight: Parameter, bias: Parameter | None, chain: Chain
) -> None:
    tensor = builder.values.get(node.inputs[0])
    if not isinstance(tensor, Tensor):
        builder.refuse(node, "an input that is no tensor of numbers")
    filters, channels, *kernel = weight.source.shape
    views = [tensor.view] if tensor.beside is None else [tensor.view, tensor.beside]
    sources = tuple(builder.padded(view) for view in views)
    filled, depth = _filled(filters), sum(source.shape[3] for source in sources)
    images, _, height, width = builder.shape(node.outputs[0])

    def fit(view: View) -> View | None:
        found = pixels(view)
        if found is None or view.shape[1] == filled:
            return found
        return None

    output = builder.target(chain.value, (images, height, width, filled), chain.steps, fit)
    result = narrowed(permuted(output, (0, 3, 1, 2)), 1, 0, filters)
    named = weight.source.name.removesuffix(".weight")
    vector = None if bias is None else builder.weight([bias], "rows", (filled,))
    top, left, bottom, right = node.wholes("pads", (0, 0, 0, 0))
    before = tensor.padding
    padding = (top + before[0], left + before[1], bottom + before[2], right + before[3])
    stride = node.wholes("strides", (1, 1))[0]
    exact = filled == filters and depth == channels
    plain = kernel == [1, 1] and stride == 1 and tensor.enlarged is None and not any(padding)
    if plain and exact:
        flat = tuple(_rows(source) for source in sources)
        builder.emit(
            Product(
                name=named,
                sources=flat,
                weight=builder.weight([weight], "filters", (filters, 1, 1, channels)),
                columns=filters,
                image_rows=height * width,
                epilogue=epilogue(builder, chain, vector, result, _flat(fit)),
                output=_rows(output),
            )
        )
    else:
        made = Convolution(
            name=named,
            sources=sources,
            weight=builder.weight([weight], "filters", (filled, *kernel, depth)),
            kernel=(kernel[0], kernel[1]),
            stride=stride,
            padding=padding,
            upsampled=tensor.enlarged,
            channels=channels,
            filters=filters,
            epilogue=epilogue(builder, chain, vector, result, fit),
            output=output,
        )
        builder.emit(_doubled(builder, made, weight))
    builder.keep(chain.value, result, chain.steps)


def _doubled(builder: Builder, made: Convolution, weight: Parameter) -> Convolution:
    """The same with summed filters, where it may read them.

    Weights do not depend on sizes, so both kinds are there whichever this size reads.
    """
    usual = (made.kernel, made.stride, made.padding) == ((3, 3), 1, (1, 1, 1, 1))
    if made.upsampled is None or not usual:
        return made
    filters, *_, channels = builder.weights[made.weight].shape
    summed = builder.weight([weight], "doubled", (filters, TAPS, channels))
    return replace(made, weight=summed) if made.doubled else made


def _rows(view: View) -> View:
    found = rows(view)
    assert found is not None, "pixels lie one after the other"
    return found


def _flat(fit: Callable[[View], View | None]) -> Callable[[View], View | None]:
    def flat(view: View) -> View | None:
        found = fit(view)
        return None if found is None else rows(found)

    return flat


def pad(builder: Builder, index: int, node: Node) -> None:
    """Pad with zeros at the edges of pictures: the convolution that follows does it."""
    view = builder.tensor(node, node.inputs[0])
    pads = builder.array(node.inputs[1])
    fill = builder.array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    zero = fill is None or (fill.size == 1 and float(fill.item()) == 0.0)
    if pads is None or len(view.shape) != 4 or node.word("mode", "constant") != "constant":
        builder.refuse(node, "another mode than zeros around pictures")
    sizes = [int(size) for size in pads.reshape(-1)]
    images, channels, top, left = sizes[:4]
    if not zero or any((images, channels, *sizes[4:6])) or min(sizes) < 0:
        builder.refuse(node, "another padding than zeros around pictures")
    builder.values[node.outputs[0]] = Tensor(view, padding=(top, left, sizes[6], sizes[7]))


def resize(builder: Builder, index: int, node: Node) -> None:
    """Resize by repeating pixels twice each way: the convolution that follows does it.

    Pixel y of `size` reads pixel floor(y · n / size), which is y // 2 for a size of 2 n and of
    2 n - 1, the sizes that a skip connection can have.
    """
    view = builder.tensor(node, node.inputs[0])
    words = (
        node.word("mode", "nearest"),
        node.word("coordinate_transformation_mode", "half_pixel"),
        node.word("nearest_mode", "round_prefer_floor"),
    )
    if words != ("nearest", "asymmetric", "floor") or len(view.shape) != 4:
        builder.refuse(node, f"{', '.join(words)}; wants nearest, asymmetric, floor")
    images, channels, height, width = builder.shape(node.outputs[0])
    doubled = all(
        size in (2 * n, 2 * n - 1) for size, n in zip((height, width), view.shape[2:], strict=True)
    )
    if view.shape[:2] != (images, channels) or not doubled:
        builder.refuse(node, f"{list(view.shape)} to {[images, channels, height, width]}")
    builder.values[node.outputs[0]] = Tensor(view, enlarged=(height, width))


RULES = {"Conv": convolution, "Pad": pad, "Resize": resize}
