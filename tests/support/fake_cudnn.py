"""cuDNN on the simulated device: the surface of the module cudnn, NumPy's arithmetic.

It keeps the graph API's own view, dimensions N, C, H, W with strides, and its rules: a graph is
planned once and in order, a plan runs only when it is built, every tensor has an address in memory,
nothing but `set_stream` and `execute_plan_at_index` may be called while a stream is captured, and
these only put work on the stream. No output may lie over an input.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.kernels import conv
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.memory import Allocation
from diffusion_rt.kernels.driver.simulator.queue import Work

VERSION = 92600


class DataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    BFLOAT16 = "bfloat16"


class HeurMode(enum.Enum):
    A = 0


class NumericalNote(enum.Enum):
    TENSOR_CORE = 0
    DOWN_CONVERT_INPUTS = 1
    REDUCED_PRECISION_REDUCTION = 2
    FFT = 3
    NONDETERMINISTIC = 4
    WINOGRAD = 5


class cudnnGraphNotSupportedError(Exception):
    pass


@dataclass(frozen=True)
class Plan:
    """What the heuristics recommend."""

    name: str
    notes: tuple[NumericalNote, ...] = ()
    workspace: int = 0
    supported: bool = True


PLANS = (
    Plan("backend_heuristics"),
    Plan("eng34_k2=19_k13=3", workspace=4096),
    Plan("frost_conv[TILE_M=128]"),
    Plan("eng7_k5=2", notes=(NumericalNote.WINOGRAD,)),
    Plan("eng4_k24=0", supported=False),
    Plan("eng34_k2=19_k13=3", workspace=8192),  # a name that was there
    Plan("eng9_k2=7", workspace=1 << 40),
    Plan("ConvFwd_eng0_k27=1", notes=(NumericalNote.TENSOR_CORE,)),
)
RUNNING = ("eng34_k2=19_k13=3", "ConvFwd_eng0_k27=1")
REFUSING = ("eng7_k5=2", "eng4_k24=0", "eng9_k2=7")


@dataclass(eq=False)
class Tensor:
    """A tensor of a graph; virtual until it is made an output."""

    dim: list[int] = field(default_factory=list)
    stride: list[int] = field(default_factory=list)
    data_type: DataType | None = None
    uid: int = 0
    is_output: bool = False

    def set_output(self, value: bool) -> "Tensor":
        self.is_output = value
        return self

    def set_data_type(self, dtype: DataType) -> "Tensor":
        self.data_type = dtype
        return self

    def set_dim(self, dim: list[int]) -> "Tensor":
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> "Tensor":
        self.stride = stride
        return self

    def set_uid(self, uid: int) -> "Tensor":
        self.uid = uid
        return self


class Graph:
    """pygraph, as far as one convolution with what is added to it."""

    def __init__(self, module: "FakeCudnn", kind: DataType, handle: int) -> None:
        self.stage = "described"
        self._module, self._kind, self._handle = module, kind, handle
        self._tensors: dict[int, Tensor] = {}
        self._convolution: dict[str, Any] = {}
        self._added: list[Tensor] = []
        self._last: Tensor | None = None
        self._refused: set[NumericalNote] = set()
        self._limit = 1 << 60
        self._built: set[int] = set()

    def tensor(
        self, dim: list[int], stride: list[int], data_type: DataType, name: str, uid: int
    ) -> Tensor:
        assert data_type is self._kind
        assert uid not in self._tensors
        assert len(dim) == len(stride) == 4
        assert min(dim) > 0
        self._tensors[uid] = Tensor(dim, stride, data_type, uid)
        return self._tensors[uid]

    def conv_fprop(
        self,
        image: Tensor,
        weight: Tensor,
        pre_padding: list[int],
        post_padding: list[int],
        stride: list[int],
        dilation: list[int],
        compute_data_type: DataType,
    ) -> Tensor:
        assert compute_data_type is DataType.FLOAT
        assert dilation == [1, 1]
        assert stride[0] == stride[1]
        assert image.dim[1] == weight.dim[1]
        self._convolution = {
            "image": image,
            "weight": weight,
            "stride": stride[0],
            "padding": (*pre_padding, *post_padding),
        }
        self._last = Tensor()
        return self._last

    def add(self, a: Tensor, b: Tensor, compute_data_type: DataType) -> Tensor:
        assert compute_data_type is DataType.FLOAT
        assert a is self._last, "sums follow one another"
        self._added.append(b)
        self._last = Tensor()
        return self._last

    def validate(self) -> None:
        output = self._output
        assert output.is_output
        assert output.data_type is self._kind
        for one in self._added:
            pairs = zip(one.dim, output.dim, strict=True)
            assert all(size in (1, wanted) for size, wanted in pairs), "it can be spread"
        self._step("described", "validated")

    def build_operation_graph(self) -> None:
        self._step("validated", "lowered")

    def create_execution_plans(self, heuristics: Sequence[HeurMode]) -> None:
        assert list(heuristics) == [HeurMode.A]
        if self._output.dim[1] % 16:
            raise cudnnGraphNotSupportedError("No valid engine configs for ConvFwd")
        self._step("lowered", "planned")

    def deselect_numeric_notes(self, notes: Sequence[NumericalNote]) -> "Graph":
        assert self.stage == "planned"
        self._refused.update(notes)
        return self

    def deselect_workspace_greater_than(self, workspace_limit: int) -> "Graph":
        assert self.stage == "planned"
        self._limit = workspace_limit
        return self

    def get_execution_plan_count(self) -> int:
        assert self.stage == "planned"
        return len(PLANS)

    def get_plan_name_at_index(self, index: int) -> str:
        assert self.stage == "planned"
        return PLANS[index].name

    def build_plan_at_index(self, index: int) -> "Graph":
        self._module.device.forbid_in_capture("build a plan of cuDNN")
        plan = PLANS[index]
        if self._refused.intersection(plan.notes):
            raise ValueError(f"plan {index} is excluded by a note filter")
        if not plan.supported or plan.workspace > self._limit:
            raise cudnnGraphNotSupportedError(f"plan {index}")
        self._built.add(index)
        return self

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self._built
        return PLANS[index].workspace

    def execute_plan_at_index(
        self, tensor_dict: Mapping[int, int], workspace: int, index: int, handle: int
    ) -> None:
        module, output = self._module, self._output
        if module.failing:
            raise RuntimeError("CUDNN_STATUS_EXECUTION_FAILED")
        assert index in self._built
        assert handle == self._handle
        assert set(tensor_dict) == {*self._tensors, output.uid}
        space, plan = module.device.space, PLANS[index]
        touches = [space.find(tensor_dict[output.uid], _nbytes(output), "cuDNN")]
        arrays: dict[int, NDArray[Any]] = {output.uid: self._array(output, tensor_dict)}
        for uid, tensor in self._tensors.items():
            arrays[uid] = self._array(tensor, tensor_dict)
            touches.append(space.find(tensor_dict[uid], _nbytes(tensor), "cuDNN"))
            assert not np.shares_memory(arrays[uid], arrays[output.uid])
        if plan.workspace:
            assert workspace % 256 == 0
            touches.append(space.find(workspace, plan.workspace, "its workspace"))
        kind = self._kind.value

        def run() -> None:
            sums = conv.reference(
                _rows(arrays[self._convolution["image"].uid], kind),
                _rows(arrays[self._convolution["weight"].uid], kind),
                stride=self._convolution["stride"],
                padding=self._convolution["padding"],
            )
            for one in self._added:
                sums = sums + _rows(arrays[one.uid], kind)
            stored = to_bfloat16(sums) if kind == "bfloat16" else sums.astype(kind)
            arrays[output.uid][:] = stored.transpose(0, 3, 1, 2)

        module.put(Work("cudnn", "library", run, tuple[Allocation, ...](touches)), handle, plan)

    @property
    def _output(self) -> Tensor:
        assert self._last is not None
        return self._last

    def _step(self, before: str, after: str) -> None:
        self._module.device.forbid_in_capture("plan a graph of cuDNN")
        assert self.stage == before
        self.stage = after

    def _array(self, tensor: Tensor, addresses: Mapping[int, int]) -> NDArray[Any]:
        """[N, C, H, W] of the device's memory."""
        address = addresses[tensor.uid]
        assert type(address) is int
        assert address % 16 == 0
        memory = self._module.device.space.view(address, _nbytes(tensor))
        item = np.dtype(np.uint16 if self._kind is DataType.BFLOAT16 else self._kind.value)
        strides = [item.itemsize * stride for stride in tensor.stride]
        return np.lib.stride_tricks.as_strided(memory.view(item), tensor.dim, strides)


class FakeCudnn:
    """The module, over one simulated device."""

    data_type = DataType
    heur_mode = HeurMode
    numerical_note = NumericalNote
    cudnnGraphNotSupportedError = cudnnGraphNotSupportedError

    def __init__(self, device: Simulator, *, failing: bool = False) -> None:
        """With `failing` everything is promised and nothing is done."""
        self.device, self.failing = device, failing
        self.handles: dict[int, int] = {}  # and the stream of each
        self.ran: list[str] = []  # the name of each plan that was put on a stream
        self.asked = 0  # graphs that were made

    def backend_version(self) -> int:
        return VERSION

    def create_handle(self) -> int:
        self.device.forbid_in_capture("make a handle of cuDNN")
        self.handles[7] = 0
        return 7

    def destroy_handle(self, handle: int) -> None:
        del self.handles[handle]

    def set_stream(self, handle: int, stream: int) -> None:
        assert handle in self.handles
        self.handles[handle] = stream

    def pygraph(
        self,
        io_data_type: DataType,
        intermediate_data_type: DataType,
        compute_data_type: DataType,
        handle: int,
    ) -> Graph:
        assert intermediate_data_type is compute_data_type is DataType.FLOAT
        assert handle in self.handles
        self.asked += 1
        return Graph(self, io_data_type, handle)

    def put(self, work: Work, handle: int, plan: Plan) -> None:
        """Work on the handle's stream."""
        self.ran.append(plan.name)
        self.device.stream_of(self.handles[handle]).submit(work)


def _nbytes(tensor: Tensor) -> int:
    """From the first element to the end of the last, of two bytes each."""
    steps = zip(tensor.dim, tensor.stride, strict=True)
    return 2 * (1 + sum((size - 1) * stride for size, stride in steps))


def _rows(array: NDArray[Any], kind: str) -> NDArray[np.float64]:
    """[N, H, W, C] in float64."""
    real: NDArray[np.float64] = widened(array.transpose(0, 2, 3, 1), kind).astype(np.float64)
    return real
