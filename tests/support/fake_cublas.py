"""cuBLASLt on the simulated device: the surface of nvmath.bindings.cublasLt, NumPy's arithmetic.

It keeps the library's own view, columns first, and its rules: what was not made by it, was chosen
for another product, or lies outside of memory is refused; nothing but `matmul` may be called while
a stream is captured, and `matmul` only puts work on the stream.
"""

import ctypes
import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.native.packing import to_bfloat16, widened
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.queue import Work

VERSION = 130300
ITEM: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    2: np.dtype(np.float16),
    14: np.dtype(np.uint16),
}  # cudaDataType
NOT_SUPPORTED = 15


class MatmulDescAttribute(enum.IntEnum):
    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8


class MatmulPreferenceAttribute(enum.IntEnum):
    MAX_WORKSPACE_BYTES = 1
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


class Epilogue(enum.IntEnum):
    DEFAULT = 1
    BIAS = 4


class cuBLASLtError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")


matmul_heuristic_result_dtype = np.dtype(
    [
        ("algo", [("data_", "<u8", (8,))]),
        ("workspace_size", "<u8"),
        ("state", "<i4"),
        ("waves_count", "<f4"),
        ("reserved", "<i4", (4,)),
    ]
)

SIZES: dict[str, dict[int, int]] = {  # bytes of each attribute
    "product": {
        MatmulDescAttribute.TRANSA: 4,
        MatmulDescAttribute.TRANSB: 4,
        MatmulDescAttribute.EPILOGUE: 4,
        MatmulDescAttribute.BIAS_POINTER: 8,
    },
    "preference": {
        MatmulPreferenceAttribute.MAX_WORKSPACE_BYTES: 8,
        **{MatmulPreferenceAttribute[f"MIN_ALIGNMENT_{o}_BYTES"]: 4 for o in "ABCD"},
    },
}


@dataclass
class Made:
    """A descriptor."""

    kind: str
    numbers: tuple[int, ...] = ()
    attributes: dict[int, int] = field(default_factory=dict)


class FakeCublasLt:
    """The module, over one simulated device."""

    MatmulDescAttribute = MatmulDescAttribute
    MatmulPreferenceAttribute = MatmulPreferenceAttribute
    Epilogue = Epilogue
    cuBLASLtError = cuBLASLtError
    matmul_heuristic_result_dtype = matmul_heuristic_result_dtype

    def __init__(self, device: Simulator, *, algorithms: int = 3, failing: bool = False) -> None:
        """With `failing` everything is promised and nothing is done."""
        self.made: dict[int, Made] = {}
        self.ran: list[int] = []  # the number of each algorithm that was put on a stream
        self._device, self._algorithms, self._failing = device, algorithms, failing
        self._next = 1000

    def get_version(self) -> int:
        return VERSION

    def create(self) -> int:
        return self._new("handle")

    def destroy(self, light_handle: int) -> None:
        self._drop("handle", light_handle)

    def matmul_desc_create(self, compute_type: int, scale_type: int) -> int:
        assert (compute_type, scale_type) == (68, 0), "float32 sums, float32 scale"
        return self._new("product")

    def matmul_desc_destroy(self, matmul_desc: int) -> None:
        self._drop("product", matmul_desc)

    def matmul_desc_set_attribute(
        self, matmul_desc: int, attr: int, buf: int, size_in_bytes: int
    ) -> None:
        self._set("product", matmul_desc, MatmulDescAttribute(attr), buf, size_in_bytes)

    def matmul_preference_create(self) -> int:
        return self._new("preference")

    def matmul_preference_destroy(self, pref: int) -> None:
        self._drop("preference", pref)

    def matmul_preference_set_attribute(
        self, pref: int, attr: int, buf: int, size_in_bytes: int
    ) -> None:
        self._set("preference", pref, MatmulPreferenceAttribute(attr), buf, size_in_bytes)

    def matrix_layout_create(self, type: int, rows: int, cols: int, ld: int) -> int:
        assert type in ITEM
        assert ld >= rows > 0 < cols
        return self._new("layout", type, rows, cols, ld)

    def matrix_layout_destroy(self, mat_layout: int) -> None:
        self._drop("layout", mat_layout)

    def matmul_algo_get_heuristic(
        self,
        light_handle: int,
        operation_desc: int,
        adesc: int,
        bdesc: int,
        cdesc: int,
        ddesc: int,
        preference: int,
        requested_algo_count: int,
        heuristic_results_array: int,
        return_algo_count: int,
    ) -> None:
        self._device.forbid_in_capture("ask cuBLASLt's heuristics")
        self._find("handle", light_handle)
        wants = self._find("preference", preference).attributes
        assert set(wants) == set(MatmulPreferenceAttribute)
        problem = self._problem(operation_desc, adesc, bdesc, cdesc, ddesc)
        if problem[2][1] % 16:  # N, as some kernels of the library want it
            raise cuBLASLtError(NOT_SUPPORTED)
        results = np.zeros(
            min(requested_algo_count, self._algorithms), self.matmul_heuristic_result_dtype
        )
        for number, result in enumerate(results):
            result["algo"]["data_"][:3] = number, abs(hash(problem)) >> 1, 7
            result["workspace_size"] = number * 1024
        results[-1:]["state"] = NOT_SUPPORTED if len(results) > 2 else 0
        ctypes.memmove(heuristic_results_array, results.ctypes.data, results.nbytes)
        ctypes.c_int32.from_address(return_algo_count).value = len(results)

    def matmul(
        self,
        light_handle: int,
        compute_desc: int,
        alpha: int,
        a: int,
        adesc: int,
        b: int,
        bdesc: int,
        beta: int,
        c: int,
        cdesc: int,
        d: int,
        ddesc: int,
        algo: int,
        workspace: int,
        workspace_size_in_bytes: int,
        stream: int,
    ) -> None:
        if self._failing:
            raise cuBLASLtError(13)
        self._find("handle", light_handle)
        product = self._find("product", compute_desc)
        problem = self._problem(compute_desc, adesc, bdesc, cdesc, ddesc)
        chosen = np.frombuffer(ctypes.string_at(algo, 64), np.uint64)
        assert chosen[1] == abs(hash(problem)) >> 1, "an algorithm chosen for another product"
        assert workspace_size_in_bytes >= chosen[0] * 1024
        assert workspace % 256 == 0
        assert c != d or self._find("layout", cdesc) == self._find("layout", ddesc)
        scale = ctypes.c_float.from_address(alpha).value
        keep = ctypes.c_float.from_address(beta).value
        matrices = [self._matrix(*one) for one in ((a, adesc), (b, bdesc), (d, ddesc))]
        first, second, output = matrices
        added = self._matrix(c, cdesc) if keep else None
        bias, touches = None, []
        if product.attributes[MatmulDescAttribute.EPILOGUE] == Epilogue.BIAS:
            bias = self._vector(product.attributes[MatmulDescAttribute.BIAS_POINTER], output)
        space, dtype = self._device.space, output.dtype
        for address in (a, b, d, *((c,) if keep else ())):
            touches.append(space.find(address, 1, "cublasLtMatmul"))
        if workspace_size_in_bytes:
            touches.append(space.find(workspace, workspace_size_in_bytes, "its workspace"))

        def run() -> None:
            sums = scale * (_real(first).T @ _real(second))
            if added is not None:
                sums += keep * _real(added)
            if bias is not None:
                sums += _real(bias)[:, None]
            output[:] = to_bfloat16(sums) if dtype == np.uint16 else sums.astype(dtype)

        self.ran.append(int(chosen[0]))
        self._device.stream_of(stream).submit(Work("cublasLt", "library", run, tuple(touches)))

    def _problem(self, product: int, *layouts: int) -> tuple[Any, ...]:
        """What is asked, once it is a product: D [m, n] of A [k, m] transposed and B [k, n]."""
        attributes = self._find("product", product).attributes
        assert attributes[MatmulDescAttribute.TRANSA] == 1
        a, b, c, d = (self._find("layout", layout).numbers for layout in layouts)
        assert len({one[0] for one in (a, b, c, d)}) == 1, "one type"
        assert a[1] == b[1], "the depth"
        assert (a[2], b[2]) == d[1:3] == c[1:3], "the output"
        return attributes[MatmulDescAttribute.EPILOGUE], a, d, b, c

    def _matrix(self, address: int, layout: int) -> NDArray[Any]:
        """[rows, columns] of what lies columns first in the device's memory."""
        kind, rows, columns, stride = self._find("layout", layout).numbers
        item = ITEM[kind].itemsize
        assert address % 16 == 0
        memory = self._device.space.view(address, ((columns - 1) * stride + rows) * item)
        return np.lib.stride_tricks.as_strided(
            memory.view(ITEM[kind]), (rows, columns), (item, stride * item)
        )

    def _vector(self, address: int, output: NDArray[Any]) -> NDArray[Any]:
        nbytes = output.shape[0] * output.dtype.itemsize
        return self._device.space.view(address, nbytes).view(output.dtype)

    def _new(self, kind: str, *numbers: int) -> int:
        self._device.forbid_in_capture(f"make a {kind} of cuBLASLt")
        self._next += 1
        self.made[self._next] = Made(kind, numbers)
        return self._next

    def _find(self, kind: str, number: int) -> Made:
        made = self.made[number]
        assert made.kind == kind
        return made

    def _drop(self, kind: str, number: int) -> None:
        self._find(kind, number)
        del self.made[number]

    def _set(self, kind: str, number: int, attribute: int, address: int, nbytes: int) -> None:
        assert nbytes == SIZES[kind][attribute]
        value = int.from_bytes((ctypes.c_ubyte * nbytes).from_address(address), "little")
        self._find(kind, number).attributes[attribute] = value


def _real(values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype == np.uint16:
        return widened(values, "bfloat16").astype(np.float64)
    return values.astype(np.float64)
