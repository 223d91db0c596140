"""`attention` on sm_90a: warpgroups that take turns, keys and values by TMA, weights in registers.

The same operation as `attention`, for float16 and bfloat16, heads up to 128, not causal. Proved on
the host by fibres (`sources/hopper_host.h`) and by the images, as `gemm_sm90` is; its speed is not
measured.
"""

import math
from dataclasses import dataclass

from diffusion_rt.kernels.attention import Attention, Dtype, Strides
from diffusion_rt.kernels.driver.arguments import Parameter, Value
from diffusion_rt.kernels.driver.errors import Misuse
from diffusion_rt.kernels.driver.launch import Launch, Limits
from diffusion_rt.kernels.driver.tensor_map import TensorMap
from diffusion_rt.kernels.tactic import Encode
from diffusion_rt.kernels.tiles_sm90 import ARCH, ELEMENTS, WARPGROUP
from diffusion_rt.kernels.variant import Variant

ITEM = 2  # bytes of an element
KEYS = 128  # of a stage
ROWS = 64  # queries of a warpgroup
PART = 64  # columns of a head in one tile of shared memory
LEAST_QUERIES = 64
# Of a block for KEYS keys, by the stall counts in the machine code for heads of 64. Not measured.
CYCLES = {2: 1464, 3: 1650}
MOST_STRIDE = 2**40  # bytes, of a tensor map

PARAMETERS = (
    Parameter("q", "tensor_map"),
    Parameter("k", "tensor_map"),
    Parameter("v", "tensor_map"),
    Parameter("out", "pointer", alignment=16),  # [batch, queries, heads, head_size] by its strides
    Parameter("queries", "int32"),
    Parameter("keys", "int32"),
    Parameter("head_size", "int32"),
    Parameter("out_batch", "int32"),
    Parameter("out_token", "int32"),
    Parameter("out_head", "int32"),
    Parameter("scale", "float32"),  # times log2(e)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sm90Attention:
    """The kernel for heads up to `head`, with so many blocks of keys and values under way."""

    dtype: Dtype
    head: int  # the largest head it takes
    stages: int
    groups: int = 2  # warpgroups, of 64 queries each

    @property
    def rows(self) -> int:
        """Queries of a block."""
        return self.groups * ROWS

    @property
    def threads(self) -> int:
        """Of a block: one more warpgroup brings keys and values."""
        return (self.groups + 1) * WARPGROUP

    @property
    def variant(self) -> Variant:
        """The kernel's row in the catalogue."""
        return Variant(
            name=f"attention_sm90_{self.head}_rows{self.rows}.{self.dtype}",
            kernel="attention_sm90",
            source="attention_sm90.cu",
            constants=(
                ("ELEMENT", ELEMENTS[self.dtype]),
                ("HEAD", str(self.head)),
                ("STAGES", str(self.stages)),
                ("GROUPS", str(self.groups)),
            ),
            parameters=PARAMETERS,
            registers=65536 // self.threads // 8 * 8,  # at the start, before they are shared out
            threads=self.threads,
            instructions=(
                f"HGMMA.64x{KEYS}x16.F32",
                f"HGMMA.64x{self.head}x16.F32",
                "UTMALDG.4D",
                "USETMAXREG",
            ),
            archs=(ARCH,),
            suffix="a",
            overlaps=True,
        )

    @property
    def shared_bytes(self) -> int:
        """Queries, a ring of keys and one of values, and the barriers."""
        rows = self.rows + 2 * self.stages * KEYS
        return rows * self.head * ITEM + 8 * (4 * self.stages + 1)

    def takes(self, attention: Attention, limits: Limits) -> bool:
        """Whether this runs that attention on a chip with these limits."""
        a = attention
        steps = [step for each in (a.q, a.k, a.v) for step in (each.batch, each.token, each.head)]
        return (
            limits.arch == ARCH
            and self.shared_bytes <= limits.shared_bytes
            and a.dtype == self.dtype
            and a.head_size <= self.head
            and a.queries >= LEAST_QUERIES
            and not a.causal
            and all(0 < step * ITEM < MOST_STRIDE for step in steps)
        )

    def cycles(self, attention: Attention, limits: Limits) -> int:
        """How long all blocks take one stage of keys; one block runs on a multiprocessor."""
        blocks = math.prod(self.launch(attention).grid)
        return -(-blocks // limits.multiprocessors) * CYCLES[self.groups]

    def launch(self, attention: Attention) -> Launch:
        """A block for so many queries of a head."""
        return Launch(
            grid=(-(-attention.queries // self.rows), attention.heads, attention.batch),
            block=(self.threads, 1, 1),
            shared_bytes=self.shared_bytes,
        )

    def arguments(
        self, attention: Attention, q: int, k: int, v: int, out: int, encode: Encode | None = None
    ) -> tuple[Value, ...]:
        """What PARAMETERS want, for tensors at these addresses."""
        if encode is None:
            raise Misuse(f"{self.variant.name} wants tensor maps and nothing makes them")
        a = attention
        *_, scale = a.arguments(q, k, v, out)
        maps = (
            _map(a, "q", q, a.queries, a.q, self.rows),
            _map(a, "k", k, a.keys, a.k, KEYS),
            _map(a, "v", v, a.keys, a.v, KEYS),
        )
        return (
            *(encode(each) for each in maps),
            out,
            a.queries,
            a.keys,
            a.head_size,
            a.out.batch,
            a.out.token,
            a.out.head,
            scale,
        )


def _map(
    attention: Attention, name: str, address: int, tokens: int, steps: Strides, rows: int
) -> TensorMap:
    return TensorMap(
        name=name,
        dtype=attention.dtype,
        address=address,
        sizes=(attention.head_size, tokens, attention.heads, attention.batch),
        strides=(steps.token * ITEM, steps.head * ITEM, steps.batch * ITEM),
        box=(PART, rows, 1, 1),
    )


_DTYPES: tuple[Dtype, ...] = ("float16", "bfloat16")
TACTICS = tuple(
    Sm90Attention(dtype=dtype, head=head, stages=stages, groups=groups)
    for dtype in _DTYPES
    for head, stages, groups in ((64, 3, 2), (64, 3, 3), (128, 2, 2))
)
VARIANTS = tuple(tactic.variant for tactic in TACTICS)
