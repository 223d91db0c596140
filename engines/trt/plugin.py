"""Our attention as a plugin of TensorRT, made ahead of time: the plan needs no Python to run.

TensorRT asks three functions while it builds: what comes out, in which types and ways it can be
computed (it measures them), and for one way the kernel's PTX with the numbers of its launch, as
expressions over the sizes of the tensors. What is asked, and in which order the arguments come, is
that of `tensorrt.plugin` in TensorRT 11; it calls that module experimental.
"""

import tensorrt.plugin as trtp

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.trt.plugin_edit import NAME, NAMESPACE
from diffusion_rt.kernels import attention_plugin as kernel
from diffusion_rt.kernels.compile import CompileError

ID = f"{NAMESPACE}::{NAME}"


def register() -> None:
    """Make the plugin known to TensorRT, before a graph that uses it is parsed.

    Once in a process; raises BadInput where its kernel cannot be compiled.
    """
    sha256()
    if not hasattr(getattr(trtp.op, NAMESPACE, None), NAME):
        trtp.register(ID)(described)
        trtp.autotune(ID)(ways)
        trtp.aot_impl(ID)(launched)


def sha256() -> str:
    """The hash of the kernels, for a plan's key; raises BadInput where they cannot be compiled."""
    try:
        return kernel.sha256()
    except CompileError as error:
        raise BadInput(f"attention plugin: {error}") from None


def described(
    q: trtp.TensorDesc,
    k: trtp.TensorDesc,
    v: trtp.TensorDesc,
    heads: int,
    head_size: int,
    scale_bits: int,
    query_by_head: int,
    key_by_head: int,
) -> trtp.TensorDesc:
    """The output: as the queries."""
    return q.like()


def ways(
    q: trtp.TensorDesc,
    k: trtp.TensorDesc,
    v: trtp.TensorDesc,
    head_size: int,
    outputs: tuple[trtp.TensorDesc],
) -> list[trtp.AutoTuneCombination]:
    """float16 without gaps, by as many kernels as there are for the heads' size."""
    tactics = list(range(1, len(kernel.streams(head_size)) + 1))
    return [trtp.AutoTuneCombination("FP16, FP16, FP16, FP16", "LINEAR", tactics)]


def launched(
    q: trtp.TensorDesc,
    k: trtp.TensorDesc,
    v: trtp.TensorDesc,
    heads: int,
    head_size: int,
    scale_bits: int,
    query_by_head: int,
    key_by_head: int,
    outputs: tuple[trtp.TensorDesc],
    tactic: int,
) -> tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymExprs]:
    """A kernel's name and PTX, its launch, and the integers between inputs and output."""
    layout = kernel.Layout(
        heads=heads,
        head_size=head_size,
        scale_bits=scale_bits,
        query_by_head=bool(query_by_head),
        key_by_head=bool(key_by_head),
    )
    stream = kernel.streams(head_size)[tactic - 1]
    queries = q.shape_expr[2 if query_by_head else 1]
    keys = k.shape_expr[2 if key_by_head else 1]
    launch = trtp.KernelLaunchParams(
        grid_x=trtp.cdiv(queries, stream.rows),
        grid_y=heads,
        grid_z=q.shape_expr[0],
        block_x=stream.warps * 32,
    )
    integers = layout.integers(queries, keys)
    arguments = trtp.SymExprs(len(integers))
    for place, number in enumerate(integers):
        arguments[place] = trtp.SymInt32(number)
    return kernel.KERNEL, kernel.ptx(kernel.variant(stream)), launch, arguments
