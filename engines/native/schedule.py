"""In which order operations run, where the graph leaves a choice."""

from collections.abc import Sequence

from diffusion_rt.engines.native.plan import Convolution, GroupNorm, Operation, Product


def shortcuts_first(operations: Sequence[Operation]) -> list[Operation]:
    """The shortcut of a resnet before the norm that reads the same pictures, not after all else.

    The norm is then the last to read them, and may write over them: the VAE's decoder needs a fifth
    less memory for a picture of 1024x1024 (1.07 GB instead of 1.34).
    """
    ordered = list(operations)
    for operation in operations:
        if not isinstance(operation, (Product, Convolution)) or operation.epilogue.reads:
            continue
        sources = {view.buffer for view in operation.sources}
        place = ordered.index(operation)
        for norm in range(place):
            reader = ordered[norm]
            if isinstance(reader, GroupNorm) and sources == {v.buffer for v in reader.sources}:
                writers = [n for n in range(place) if ordered[n].output.buffer in sources]
                if max(writers, default=-1) < norm:
                    ordered.insert(norm, ordered.pop(place))
                break
    return ordered
