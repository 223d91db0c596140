"""Attention over heads, wherever query, key and value lie."""

from math import sqrt

from diffusion_rt.engines.native.builder import Builder
from diffusion_rt.engines.native.graph import Node
from diffusion_rt.engines.native.plan import Attention, View
from diffusion_rt.engines.native.views import permuted

BY_TOKEN = (0, 2, 1, 3)  # [images, heads, tokens, size] to [images, tokens, heads, size], and back


def attention(builder: Builder, index: int, node: Node) -> None:
    """Attention of four dimensions without a mask; refused where it does more than that."""
    if len(node.outputs) > 1 or any(node.inputs[3:]):
        builder.refuse(node, "a mask or a cache; wants query, key and value alone")
    if node.number("softcap", 0.0) or node.whole("softmax_precision", 1) not in (0, 1):
        builder.refuse(node, "a soft cap or another softmax than float32")
    query, key, value = (_by_token(builder, node, name) for name in node.inputs[:3])
    size = query.shape[3]
    if query.shape[2] != key.shape[2] or value.shape[3] != size:
        builder.refuse(node, "values of another size than queries, or shared heads")
    output = builder.target(node.outputs[0], query.shape, fit=_writable)
    builder.emit(
        Attention(
            name=node.outputs[0],
            query=query,
            key=key,
            value=value,
            scale=node.number("scale", 1 / sqrt(size)),
            causal=bool(node.whole("is_causal", 0)),
            output=output,
        )
    )
    builder.keep(node.outputs[0], permuted(output, BY_TOKEN))


def _by_token(builder: Builder, node: Node, name: str) -> View:
    view = permuted(builder.arithmetic(node, name), BY_TOKEN)
    return view if view.strides[3] == 1 else builder.copied(name, view)


def _writable(view: View) -> View | None:
    turned = permuted(view, BY_TOKEN)
    return turned if turned.strides[3] == 1 else None


RULES = {"Attention": attention}
