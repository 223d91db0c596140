"""A plan: one ONNX graph at one size as a short list of fused operations over one arena.

All sizes are numbers. Activations are NHWC, [images, pixels, channels]; what NumPy calls a view (an
offset and strides into a buffer) is how an operation reads a slice of a wider buffer, packed Q, K
and V, or heads in either order, so that no transpose, split or concatenation remains as work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from numpy.typing import NDArray

from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.kernels.conv import doubles

Arithmetic = Literal["float32", "float16", "bfloat16"]
Place = Literal["input", "output", "arena"]
Layout = Literal["rows", "filters", "doubled", "geglu", "transposed"]
Activation = Literal["none", "gelu", "quick_gelu", "silu", "geglu"]
Function = Literal["add", "multiply", "sigmoid", "silu", "gelu", "quick_gelu", "clip"]

Source = ExternalTensor  # where the bytes of a stored tensor lie

ALIGNMENT = 256  # bytes, of every buffer in the arena
VECTOR = 8  # channels of an NHWC buffer are a multiple of it; zeros fill up
ITEM = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that operations read and write, contiguous; `offset` counts bytes in the arena.

    An input or output of the graph has its own memory, which the caller binds, and offset 0.
    """

    name: str
    dtype: str  # float32, float16, bfloat16, int64
    shape: tuple[int, ...]
    place: Place
    offset: int = 0

    @property
    def size(self) -> int:
        """Its bytes."""
        return prod(self.shape) * ITEM[self.dtype]


@dataclass(frozen=True, slots=True)
class View:
    """Elements of a buffer: NumPy's shape, strides and offset, all counted in elements."""

    buffer: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Bytes of the elements that it reaches; one that is repeated (stride 0) counts once."""
        reached = (n for n, stride in zip(self.shape, self.strides, strict=True) if stride)
        return prod(reached) * ITEM[self.dtype]


@dataclass(frozen=True, slots=True)
class Weight:
    """Parameters as an operation reads them: stored tensors stacked along their first axis.

    `layout` says how: `rows` as they are stored ([N, K] or a vector), `transposed` from [K, N],
    `filters` from [N, C, kh, kw] to [N, kh, kw, C], `doubled` from [N, C, 3, 3] to the [N, 16, C]
    of `doubled_filters`, `geglu` (one source of 2N rows, values before gates) with 8 values, then
    their 8 gates, and so on. Each is cast to `dtype`, a sum once it is made. Where `shape` is
    larger than what the sources give, zeros fill up at the end of the axis.
    """

    name: str
    sources: tuple[Source, ...]  # none: the array is in the plan's `constants`
    layout: Layout
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return prod(self.shape) * ITEM[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Epilogue:
    """What becomes of a sum of products before it is rounded, in this order, in float32.

    s + bias[N] + vector[image, N], then the activation, then + residual. `geglu` takes 8 values and
    their 8 gates: value · gelu(gate), which halves N; with it there is no vector.
    """

    bias: str | None = None
    vector: View | None = None  # [images, N]
    activation: Activation = "none"
    residual: View | None = None  # of the output's shape; may be the output itself

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read."""
        return tuple(view for view in (self.vector, self.residual) if view is not None)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read."""
        return () if self.bias is None else (self.bias,)


class _Operation:
    """What most operations have none of."""

    __slots__ = ()

    @property
    def flops(self) -> int:
        """None are counted where an operation takes as long as its bytes."""
        return 0

    @property
    def exponentials(self) -> int:
        """Likewise."""
        return 0

    @property
    def flops_done(self) -> int:
        """What a kernel computes, where that is less than the model's arithmetic, `flops`."""
        return self.flops

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Product(_Operation):
    """output[M, N] = epilogue(A[M, K] · weight[N, K]ᵀ), A one source or two side by side."""

    name: str
    sources: tuple[View, ...]  # [M, K], or [M, K1] and [M, K2]; columns are next to each other
    weight: str  # [N, K]; that of a 1x1 convolution [N, 1, 1, K]
    columns: int  # N, the rows of the weight
    image_rows: int  # rows of one image, for the epilogue's vector
    epilogue: Epilogue
    output: View  # [M, N], or [M, N / 2] with geglu

    @property
    def flops(self) -> int:
        """2 M N K."""
        depth = sum(source.shape[1] for source in self.sources)
        return 2 * self.output.shape[0] * self.columns * depth

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read."""
        return (*self.sources, *self.epilogue.reads)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read."""
        return (self.weight, *self.epilogue.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution(_Operation):
    """A convolution over NHWC: output[image, y, x, N] of filters [N, kh, kw, C].

    `padding` is (top, left, bottom, right) in pixels of the input. Where `upsampled` is a size, the
    input is first enlarged to it without being written: pixel (y, x) is its (y // 2, x // 2); the
    size is twice the input's, or one less where an odd size was halved before. At twice the size a
    3x3 filter is four 2x2 ones (`doubled`).
    """

    name: str
    sources: tuple[View, ...]  # [images, height, width, C], or two side by side in C
    weight: str  # [N, kh, kw, C], or [N, 16, C] where it is doubled
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int, int, int]
    upsampled: tuple[int, int] | None
    channels: int  # of the input, without what fills up to a multiple of 8
    filters: int  # N, likewise
    epilogue: Epilogue  # its residual is [images, height, width, N]
    output: View  # [images, height, width, N]

    @property
    def doubled(self) -> bool:
        """Whether each parity of the output's pixels has a 2x2 filter of its own."""
        _, height, width, _ = self.sources[0].shape
        size = height, width
        return doubles(size, self.upsampled, self.kernel, self.stride, self.padding)

    @property
    def flops(self) -> int:
        """2 per pixel, filter and weight of a filter."""
        depth = self.channels * prod(self.kernel)
        return 2 * prod(self.output.shape[:3]) * self.filters * depth

    @property
    def flops_done(self) -> int:
        """The same with the weights of a 2x2 filter, where it is doubled."""
        return self.flops * 4 // 9 if self.doubled else self.flops

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read."""
        return (*self.sources, *self.epilogue.reads)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read."""
        return (self.weight, *self.epilogue.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention(_Operation):
    """output = softmax(scale · query · keyᵀ) · value per image and head, softmax in float32.

    All views are [images, tokens, heads, head size], the last stride 1. Causal: a token sees those
    up to itself.
    """

    name: str
    query: View
    key: View
    value: View
    scale: float
    causal: bool
    output: View

    @property
    def flops(self) -> int:
        """4 per query, key and channel; what a causal mask hides is counted too."""
        images, tokens, heads, size = self.query.shape
        return 4 * images * heads * tokens * self.key.shape[1] * size

    @property
    def exponentials(self) -> int:
        """One per query and key."""
        images, tokens, heads, _ = self.query.shape
        return images * heads * tokens * self.key.shape[1]

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read."""
        return (self.query, self.key, self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupNorm(_Operation):
    """Groups of channels to mean 0 and deviation 1, times weight plus bias, then SiLU if asked."""

    name: str
    sources: tuple[View, ...]  # [images, pixels, C], or two side by side in C
    weight: str  # [C]
    bias: str  # [C]
    groups: int
    epsilon: float
    silu: bool
    output: View  # [images, pixels, C]

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read."""
        return self.sources

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read."""
        return (self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNorm(_Operation):
    """Each row to mean 0 and deviation 1, times weight plus bias."""

    name: str
    source: View  # [rows, C]
    weight: str  # [C]
    bias: str  # [C]
    epsilon: float
    output: View  # [rows, C]

    @property
    def reads(self) -> tuple[View, ...]:
        """The view that is read."""
        return (self.source,)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read."""
        return (self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(_Operation):
    """The same values in another order, another type, or a wider buffer; up to 4 dimensions.

    Where the output's last dimension is longer than the source's, zeros fill up.
    """

    name: str
    source: View
    output: View

    @property
    def reads(self) -> tuple[View, ...]:
        """The view that is read."""
        return (self.source,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise(_Operation):
    """A function of one or two views of the same shape, in float32; up to 4 dimensions.

    `clip` has the bounds in `scalars`, quick_gelu is x · sigmoid(1.702 x). A repeated element has
    stride 0.
    """

    name: str
    function: Function
    sources: tuple[View, ...]
    scalars: tuple[float, ...]
    output: View

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read."""
        return self.sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding(_Operation):
    """output[image, token] = table[ids[image, token]] + positions[token]."""

    name: str
    ids: View  # [images, tokens] int64
    table: str  # [vocabulary, C]
    positions: str  # [at least tokens, C]
    output: View  # [images, tokens, C]

    @property
    def reads(self) -> tuple[View, ...]:
        """The view that is read."""
        return (self.ids,)

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that are read, of which only some rows are."""
        return (self.table, self.positions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimestepEmbedding(_Operation):
    """output[…, :half] = sin or cos of value · frequencies, the rest the other; all in float32."""

    name: str
    source: View  # [n] or [n, m] float32
    frequencies: str  # [half] float32, one of the plan's constants
    cosine_first: bool
    output: View  # [n, 2 half] or [n, m, 2 half]

    @property
    def reads(self) -> tuple[View, ...]:
        """The view that is read."""
        return (self.source,)

    @property
    def weights(self) -> tuple[str, ...]:
        """The frequencies."""
        return (self.frequencies,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectRow(_Operation):
    """Of each image one row: that of the first id equal to `token`, or of the first largest id.

    Where no id is `token` it is row 0.
    """

    name: str
    ids: View  # [images, tokens] int64
    token: int | None
    source: View  # [images, tokens, C]
    output: View  # [images, C]

    @property
    def reads(self) -> tuple[View, ...]:
        """The views that are read; of the source one row an image."""
        return (self.ids, self.source)


Operation = (
    Product
    | Convolution
    | Attention
    | GroupNorm
    | LayerNorm
    | Copy
    | Elementwise
    | Embedding
    | TimestepEmbedding
    | SelectRow
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One graph at one size: run the operations in order."""

    graph: str  # a name of spec.GRAPHS
    dtype: Arithmetic  # of activations and weights
    sizes: Mapping[str, int]  # symbol of the graph's inputs -> its size
    inputs: tuple[str, ...]  # names of buffers, as the graph's signature orders them
    outputs: tuple[str, ...]
    buffers: Mapping[str, Buffer]
    weights: Mapping[str, Weight]
    constants: Mapping[str, NDArray[Any]] = field(repr=False)  # arrays of weights without sources
    operations: tuple[Operation, ...]
    arena_size: int  # bytes

    @property
    def flops(self) -> int:
        """The model's arithmetic, of all operations; a multiply and an add are two."""
        return sum(operation.flops for operation in self.operations)

    @property
    def weights_size(self) -> int:
        """Bytes of all weights."""
        return sum(weight.size for weight in self.weights.values())

    @property
    def unshared_size(self) -> int:
        """Bytes the arena would take if no two buffers shared memory."""
        arena = (buffer for buffer in self.buffers.values() if buffer.place == "arena")
        return sum(-(-buffer.size // ALIGNMENT) * ALIGNMENT for buffer in arena)

    def bytes_moved(self, operation: Operation) -> int:
        """Bytes that an operation's kernels must at least read and write, weights included.

        A group norm's sources twice: for the statistics, then to be normalised. Of a table of
        embeddings, and of rows to select from, only the rows that are taken.
        """
        output = operation.output.size
        if isinstance(operation, Embedding):
            return operation.ids.size + 3 * output
        if isinstance(operation, SelectRow):
            return operation.ids.size + 2 * output
        read = sum(view.size for view in operation.reads)
        if isinstance(operation, GroupNorm):
            read *= 2
        return read + output + sum(self.weights[name].size for name in operation.weights)


def launches(operation: Operation) -> int:
    """Kernels that an operation takes where its tactic says nothing else: two for a group norm."""
    return 2 if isinstance(operation, GroupNorm) else 1
