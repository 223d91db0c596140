"""Products by cuBLASLt, where nvmath-python and the library are installed.

cuBLASLt counts columns first: our Y [M, N] is its D [N, M], the transpose of the weight [N, K] as
it lies in memory (K first) times A [M, K] as it lies in memory. D = W · A + β · C, and then the
bias of each of the N rows: the residual is C.

Its GELU is the approximation by tanh, which is not the model's, and it has no GEGLU and no vector
of each image: such products stay ours, as do those of two sources.
"""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.native import plan as p
from diffusion_rt.engines.native.ways import Enqueue, LibraryCall, LibraryFailed, Places, Way
from diffusion_rt.kernels import gemm
from diffusion_rt.kernels.driver import Device

MOST = 8  # algorithms that the library's heuristics are asked for
WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper
ALIGNMENT = 16  # bytes, of every operand: a view may begin at any multiple of 8 elements

# cudaDataType, cublasComputeType_t and cublasOperation_t; library_types.h and cublas_api.h
TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
COMPUTE_FLOAT32 = 68
TRANSPOSED = 1


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One way of the library to run a product; it chose it for these sizes on this chip."""

    chosen: NDArray[np.uint8]  # a cublasLtMatmulAlgo_t
    workspace: int

    @property
    def name(self) -> str:
        """Equal bytes are equal algorithms, as long as the library's version is the same."""
        return f"cublaslt {hashlib.sha256(self.chosen.tobytes()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Described:
    """A product as the library knows it: its descriptors and algorithms."""

    product: int
    weight: int
    source: int
    added: int  # C; the output's own where there is no residual
    output: int
    algorithms: tuple[Algorithm, ...]


class CublasLt:
    """cuBLASLt on one device; a `Library`."""

    def __init__(self, api: Any, device: Device) -> None:
        """`api` is nvmath.bindings.cublasLt."""
        self._api, self._device = api, device
        self._made: list[Callable[[], None]] = []
        self._described: dict[gemm.Product, Described] = {}
        self._one = np.ones(1, np.float32)
        self._zero = np.zeros(1, np.float32)
        device.memory()  # Its context is current now, which the library takes.
        self.version = f"cublaslt-{api.get_version()}"
        self._handle = self._kept(api.create(), api.destroy)

    def ways(self, operation: p.Operation, sizes: object) -> tuple[Way, ...]:
        """One for each algorithm that the library recommends."""
        if not isinstance(operation, p.Product) or not isinstance(sizes, gemm.Product):
            return ()
        has = sizes.epilogue
        if has.activation != "none" or has.vector or sizes.first_depth != sizes.depth:
            return ()
        if sizes not in self._described:
            self._described[sizes] = self._describe(sizes)
        described = self._described[sizes]
        return tuple(self._way(operation, described, a) for a in described.algorithms)

    def close(self) -> None:
        """Give back the handle and all descriptors."""
        while self._made:
            self._made.pop()()
        self._described.clear()

    def _way(self, operation: p.Product, described: Described, algorithm: Algorithm) -> Way:
        def calls(places: Places) -> tuple[LibraryCall, ...]:
            return (LibraryCall(self._call(operation, described, algorithm, places)),)

        return Way(name=algorithm.name, variants=(), scratch_bytes=algorithm.workspace, calls=calls)

    def _call(
        self, operation: p.Product, described: Described, algorithm: Algorithm, places: Places
    ) -> Enqueue:
        api, attribute, epilogue = self._api, self._api.MatmulDescAttribute, operation.epilogue
        bias = 0 if epilogue.bias is None else places.weight(epilogue.bias)
        output = places.view(operation.output)
        beta, added = self._zero, output
        if epilogue.residual is not None:
            beta, added = self._one, places.view(epilogue.residual)
        operands = (
            *(described.product, self._one.ctypes.data),
            *(places.weight(operation.weight), described.weight),
            *(places.view(operation.sources[0]), described.source),
            *(beta.ctypes.data, added, described.added),
            *(output, described.output),
            *(algorithm.chosen.ctypes.data, places.scratch, algorithm.workspace),
        )

        def enqueue(stream: Any) -> None:
            try:
                if bias:  # Products of equal sizes share the descriptor.
                    setter = api.matmul_desc_set_attribute
                    self._set(setter, described.product, attribute.BIAS_POINTER, bias, np.uint64)
                api.matmul(self._handle, *operands, stream.handle)
            except api.cuBLASLtError as error:
                raise self._failed(operation.name, error) from None

        return enqueue

    def _describe(self, sizes: gemm.Product) -> Described:
        api, kind, has = self._api, TYPES[sizes.dtype], sizes.epilogue
        self._device.memory()  # Another thread may ask.

        def layout(rows: int, columns: int, stride: int) -> int:
            made = api.matrix_layout_create(kind, rows, columns, stride)
            return self._kept(made, api.matrix_layout_destroy)

        attribute, epilogue = api.MatmulDescAttribute, api.Epilogue
        made = api.matmul_desc_create(COMPUTE_FLOAT32, TYPES["float32"])
        product = self._kept(made, api.matmul_desc_destroy)
        fused = epilogue.BIAS if has.bias else epilogue.DEFAULT
        for which, value in ((attribute.TRANSA, TRANSPOSED), (attribute.EPILOGUE, fused)):
            self._set(api.matmul_desc_set_attribute, product, which, value, np.int32)
        output = layout(sizes.columns, sizes.rows, sizes.output_stride)
        described = (
            product,
            layout(sizes.depth, sizes.columns, sizes.depth),
            layout(sizes.depth, sizes.rows, sizes.first_stride),
            layout(sizes.columns, sizes.rows, sizes.residual_stride) if has.residual else output,
            output,
        )
        return Described(*described, algorithms=self._recommended(described))

    def _recommended(self, described: tuple[int, ...]) -> tuple[Algorithm, ...]:
        api, wants = self._api, self._api.MatmulPreferenceAttribute
        preference = api.matmul_preference_create()
        results = np.zeros(MOST, api.matmul_heuristic_result_dtype)
        count = np.zeros(1, np.int32)
        try:
            limits: list[tuple[int, int, type[np.generic]]] = [
                (wants.MAX_WORKSPACE_BYTES, WORKSPACE, np.uint64)
            ]
            for operand in "ABCD":
                which = getattr(wants, f"MIN_ALIGNMENT_{operand}_BYTES")
                limits.append((which, ALIGNMENT, np.uint32))
            for which, value, number in limits:
                setter = api.matmul_preference_set_attribute
                self._set(setter, preference, which, value, number)
            places = preference, MOST, results.ctypes.data, count.ctypes.data
            api.matmul_algo_get_heuristic(self._handle, *described, *places)
        except api.cuBLASLtError:
            return ()  # It has nothing for these types and strides.
        finally:
            api.matmul_preference_destroy(preference)
        found = (
            Algorithm(
                np.frombuffer(one["algo"].tobytes(), np.uint8).copy(), int(one["workspace_size"])
            )
            for one in results[: count[0]]
            if one["state"] == 0
        )
        return tuple({algorithm.name: algorithm for algorithm in found}.values())

    def _set(
        self,
        setter: Callable[..., None],
        descriptor: int,
        which: int,
        value: int,
        kind: type[np.generic],
    ) -> None:
        number: NDArray[Any] = np.array([value], kind)
        setter(descriptor, int(which), number.ctypes.data, number.nbytes)

    def _kept(self, made: int, destroy: Callable[[int], None]) -> int:
        self._made.append(lambda: destroy(made))
        return made

    def _failed(self, name: str, error: Exception) -> LibraryFailed:
        return LibraryFailed(
            f"{name}: {self.version}: {error}; run diffusion-rt build again, without --libraries"
        )


def load(device: Device) -> CublasLt:
    """Open it on a device. Raises whatever the import or the library does."""
    return CublasLt(importlib.import_module("nvmath.bindings.cublasLt"), device)
