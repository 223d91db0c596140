"""Convolutions by cuDNN's graph API, where nvidia-cudnn-frontend and the library are installed.

Dimensions are named N, C, H, W there whatever the layout; ours, pixel after pixel, is said by the
strides. A convolution and what its epilogue adds are one graph, with float32 between them.

What stays ours: float32, which cuDNN may multiply as TF32; activations; two sources; sources that
are enlarged; and a residual that the output is written over, which the API does not call safe.
"""

import importlib
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.ways import Enqueue, LibraryCall, LibraryFailed, Places, Way
from diffusion_rt.kernels import conv
from diffusion_rt.kernels.driver import Device
from diffusion_rt.kernels.driver.errors import DeviceError

MOST = 8  # plans of a convolution
WORKSPACE = 32 << 20  # bytes; how many a plan takes is known only once it is built
TYPES = {"float16": "HALF", "bfloat16": "BFLOAT16"}  # of cudnn.data_type

# Plans with these notes (of cudnn.numerical_note) are not as exact as ours, or not the same twice.
REFUSED = (
    "DOWN_CONVERT_INPUTS",
    "REDUCED_PRECISION_REDUCTION",
    "NONDETERMINISTIC",
    "FFT",
    "WINOGRAD",
)

# The numbers that a graph knows its tensors by.
SOURCE, FILTERS, BIAS, VECTOR, RESIDUAL, OUTPUT = range(1, 7)

# The library's own engines, with their settings. The frontend has engines in Python beside them,
# and a name for whatever the library prefers.
_ENGINE = re.compile(r"(^|_)eng\d+(_|$)")


@dataclass(slots=True)
class Planned:
    """A graph that knows its plans; each is built when it is first asked for."""

    graph: Any
    plans: dict[str, int]  # by name, the likely fastest first
    built: set[int] = field(default_factory=set)


class Cudnn:
    """cuDNN on one device; a `Library`."""

    def __init__(self, api: Any, device: Device) -> None:
        """`api` is cudnn."""
        self._api, self._device = api, device
        self._planned: dict[conv.Convolution, Planned | None] = {}
        device.memory()  # Its context is current now, which the library takes.
        self.version = f"cudnn-{api.backend_version()}"
        self._handle = api.create_handle()

    def ways(self, operation: p.Operation, sizes: object) -> tuple[Way, ...]:
        """One for each plan that the library recommends, those unbuilt that it may yet refuse."""
        if not isinstance(operation, p.Convolution) or not isinstance(sizes, conv.Convolution):
            return ()
        if sizes.dtype not in TYPES or sizes.epilogue.activation != "none":
            return ()
        if sizes.first_channels != sizes.channels or sizes.enlarged is not None:
            return ()
        residual = operation.epilogue.residual
        if residual is not None and residual.buffer == operation.output.buffer:
            return ()
        if sizes not in self._planned:
            self._planned[sizes] = self._plan(sizes)
        planned = self._planned[sizes]
        if planned is None:
            return ()
        return tuple(self._way(operation, planned, name) for name in planned.plans)

    def close(self) -> None:
        """Give back the handle and all graphs."""
        self._planned.clear()
        handle, self._handle = self._handle, None
        if handle is not None:
            self._api.destroy_handle(handle)

    def _way(self, operation: p.Convolution, planned: Planned, name: str) -> Way:
        def calls(places: Places) -> tuple[LibraryCall, ...]:
            return (LibraryCall(self._call(operation, planned, planned.plans[name], places)),)

        return Way(name=f"cudnn {name}", variants=(), scratch_bytes=WORKSPACE, calls=calls)

    def _plan(self, sizes: conv.Convolution) -> Planned | None:
        """None where the library has nothing for it."""
        api = self._api
        self._device.memory()  # Another thread may ask.
        try:
            graph = graph_of(api, sizes, self._handle)
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([api.heur_mode.A])
            graph.deselect_numeric_notes([getattr(api.numerical_note, name) for name in REFUSED])
            graph.deselect_workspace_greater_than(WORKSPACE)
            count = graph.get_execution_plan_count()
            named = [(graph.get_plan_name_at_index(index), index) for index in range(count)]
        except DeviceError:
            raise
        except (api.cudnnGraphNotSupportedError, RuntimeError, ValueError):
            return None
        plans: dict[str, int] = {}
        for name, index in named:
            if _ENGINE.search(name):
                plans.setdefault(name, index)
        return Planned(graph, dict(islice(plans.items(), MOST)))

    def _call(
        self, operation: p.Convolution, planned: Planned, index: int, places: Places
    ) -> Enqueue:
        api, graph, handle, has = self._api, planned.graph, self._handle, operation.epilogue
        refusals = (api.cudnnGraphNotSupportedError, RuntimeError, ValueError)
        if index not in planned.built:
            self._device.memory()
            try:
                graph.build_plan_at_index(index)
                wanted = graph.get_workspace_size_plan_at_index(index)
            except DeviceError:
                raise
            except refusals as error:
                raise self._failed(operation.name, error) from None
            if wanted > WORKSPACE:
                raise self._failed(operation.name, f"{wanted} bytes of workspace for plan {index}")
            planned.built.add(index)
        operands = {
            SOURCE: places.view(operation.sources[0]),
            FILTERS: places.weight(operation.weight),
            OUTPUT: places.view(operation.output),
        }
        if has.bias is not None:
            operands[BIAS] = places.weight(has.bias)
        if has.vector is not None:
            operands[VECTOR] = places.view(has.vector)
        if has.residual is not None:
            operands[RESIDUAL] = places.view(has.residual)
        workspace = places.scratch

        def enqueue(stream: Any) -> None:
            try:
                api.set_stream(handle=handle, stream=stream.handle)
                graph.execute_plan_at_index(operands, workspace, index, handle=handle)
            except DeviceError:
                raise
            except refusals as error:
                raise self._failed(operation.name, error) from None

        return enqueue

    def _failed(self, name: str, error: object) -> LibraryFailed:
        said = str(error).strip().split("\n")[0]
        return LibraryFailed(
            f"{name}: {self.version}: {said}; run diffusion-rt build again, without --libraries"
        )


def graph_of(api: Any, sizes: conv.Convolution, handle: Any = None) -> Any:
    """A convolution as a graph of cuDNN, not yet validated; needs the frontend alone.

    Its tensors are known by SOURCE, FILTERS, BIAS, VECTOR, RESIDUAL and OUTPUT.
    """
    kind, real = getattr(api.data_type, TYPES[sizes.dtype]), api.data_type.FLOAT
    graph = api.pygraph(
        io_data_type=kind, intermediate_data_type=real, compute_data_type=real, handle=handle
    )

    def tensor(uid: int, name: str, layout: tuple[list[int], list[int]]) -> Any:
        return graph.tensor(dim=layout[0], stride=layout[1], data_type=kind, name=name, uid=uid)

    def added(total: Any, uid: int, name: str, layout: tuple[list[int], list[int]]) -> Any:
        return graph.add(a=total, b=tensor(uid, name, layout), compute_data_type=real)

    images, filters, has = sizes.images, sizes.filters, sizes.epilogue
    top, left, bottom, right = sizes.padding
    source = _pixels(images, sizes.channels, (sizes.height, sizes.width), sizes.first_stride)
    result = graph.conv_fprop(
        image=tensor(SOURCE, "source", source),
        weight=tensor(
            FILTERS, "filters", _pixels(filters, sizes.channels, sizes.kernel, sizes.channels)
        ),
        pre_padding=[top, left],
        post_padding=[bottom, right],
        stride=[sizes.stride, sizes.stride],
        dilation=[1, 1],
        compute_data_type=real,
    )
    if has.bias:
        result = added(result, BIAS, "bias", _pixels(1, filters, (1, 1), filters))
    if has.vector:
        vector = _pixels(images, filters, (1, 1), sizes.vector_stride)
        result = added(result, VECTOR, "vector", vector)
    if has.residual:
        residual = _pixels(images, filters, sizes.output_size, sizes.residual_stride)
        result = added(result, RESIDUAL, "residual", residual)
    dim, stride = _pixels(images, filters, sizes.output_size, sizes.output_stride)
    result.set_output(True).set_data_type(kind).set_dim(dim).set_stride(stride).set_uid(OUTPUT)
    return graph


def _pixels(
    images: int, channels: int, size: tuple[int, int], stride: int
) -> tuple[list[int], list[int]]:
    """Dimensions N, C, H, W and their strides, of pixels that are `stride` elements apart."""
    height, width = size
    return [images, channels, height, width], [height * width * stride, 1, width * stride, stride]


def load(device: Device) -> Cudnn:
    """Open it on a device. Raises whatever the import or the library does."""
    return Cudnn(importlib.import_module("cudnn"), device)
