"""The numbers of a stripped plan, given back to it.

TensorRT leaves out all of them: the checkpoint's, those that stand in the ONNX graph, and those
that its parser adds by itself (the scale of an attention, a size to divide by). The first two it
knows by the names of initializers. What the parser adds gets names of ours while the network is
there (`Network.added`), and its numbers stand in the plan's header.
"""

from collections.abc import Mapping

import tensorrt as trt

from diffusion_rt.engines.errors import Fault
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.weights import MappedWeight, item_size

TYPES = {
    "float32": trt.DataType.FLOAT,
    "float16": trt.DataType.HALF,
    "bfloat16": trt.DataType.BF16,
    "int64": trt.DataType.INT64,
    "int32": trt.DataType.INT32,
    "uint8": trt.DataType.UINT8,
    "int8": trt.DataType.INT8,
    "bool": trt.DataType.BOOL,
}


def complete(
    engine: trt.ICudaEngine, graph: str, numbers: Mapping[str, MappedWeight], messages: Messages
) -> frozenset[str]:
    """Give a stripped engine its numbers, by name; the names that it asked for.

    Raises OutOfMemory, and Fault where it wants numbers that are not there or refuses some.
    """
    refitter = messages.made("refitter", lambda: trt.Refitter(engine, messages))
    refitter.weights_validation = False  # they are the very ones that it was built with
    wanted = refitter.get_all_weights()
    for name in wanted:
        if name not in numbers:
            continue
        given = numbers[name]
        count = given.data.nbytes // item_size(given.dtype)
        weights = trt.Weights(TYPES[given.dtype], given.address, count)
        if not refitter.set_named_weights(name, weights):
            raise messages.failure(f"{graph}: TensorRT refuses the weight {name}")
    unknown = [name for name in wanted if name not in numbers]
    if missing := unknown or refitter.get_missing_weights():
        raise Fault(
            f"{graph}: the plan misses {len(missing)} weights that neither the checkpoint nor the "
            f"graph has, {missing[0]} among them; build it again, without --stripped"
        )
    if not refitter.refit_cuda_engine():
        raise messages.failure(f"{graph}: TensorRT does not take the weights")
    return frozenset(wanted)
