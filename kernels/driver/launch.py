"""How a kernel is started: grid, block, shared memory; and what each chip allows."""

from dataclasses import dataclass

from diffusion_rt.kernels.driver.errors import Misuse

Size = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Blocks, threads and dynamic shared memory of one launch.

    `cluster` groups blocks (sm_90 and newer; it divides the grid). `overlap` lets the kernel start
    before the one ahead of it in the stream ends (programmatic dependent launch): only for a kernel
    that itself waits for its predecessor before it touches what that one writes.
    """

    grid: Size
    block: Size
    shared_bytes: int = 0
    cluster: Size | None = None
    overlap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one chip takes of a launch."""

    arch: int
    shared_bytes: int  # dynamic and static together, with the opt-in above 48 KiB
    block_threads: int = 1024
    block: Size = (1024, 1024, 64)
    grid: Size = (2**31 - 1, 65535, 65535)
    multiprocessors: int = 132  # of one chip; an H200's where nobody asked a device
    cluster_blocks: int = 8  # what every chip with clusters takes without an opt-in

    def check(self, launch: Launch, name: str, static_shared_bytes: int = 0) -> None:
        """Raise Misuse, naming the kernel and the number, where the chip would refuse."""
        for what, got, most in (
            ("grid", launch.grid, self.grid),
            ("block", launch.block, self.block),
        ):
            for axis, size, limit in zip("xyz", got, most, strict=True):
                if not 1 <= size <= limit:
                    raise Misuse(f"{name}: {what}.{axis}={size} is not within 1 to {limit}")
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        if threads > self.block_threads:
            raise Misuse(f"{name}: {threads} threads a block, at most {self.block_threads}")
        shared = launch.shared_bytes + static_shared_bytes
        if launch.shared_bytes < 0 or shared > self.shared_bytes:
            raise Misuse(
                f"{name}: {shared} bytes of shared memory a block, "
                f"sm_{self.arch} has {self.shared_bytes}"
            )
        if launch.cluster is not None:
            self._check_cluster(launch.cluster, launch.grid, name)
        if launch.overlap and self.arch < 90:
            raise Misuse(f"{name}: overlapping launches need sm_90, this is sm_{self.arch}")

    def check_tensor_maps(self, name: str) -> None:
        """Raise Misuse where the chip has no tensor maps."""
        if self.arch < 90:
            raise Misuse(f"tensor map of {name}: tensor maps need sm_90, this is sm_{self.arch}")

    def _check_cluster(self, cluster: Size, grid: Size, name: str) -> None:
        if self.arch < 90:
            raise Misuse(f"{name}: clusters need sm_90, this is sm_{self.arch}")
        blocks = cluster[0] * cluster[1] * cluster[2]
        if min(cluster) < 1 or blocks > self.cluster_blocks:
            raise Misuse(
                f"{name}: a cluster of {cluster} blocks, 1 to {self.cluster_blocks} are allowed"
            )
        for axis, size, whole in zip("xyz", cluster, grid, strict=True):
            if whole % size:
                raise Misuse(f"{name}: grid.{axis}={whole} is no multiple of cluster.{axis}={size}")


# CUDA C++ Programming Guide, technical specifications per compute capability: the most shared
# memory of one block.
SHARED_BYTES = {
    80: 163 * 1024,
    86: 99 * 1024,
    87: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    110: 227 * 1024,
    120: 99 * 1024,
    121: 99 * 1024,
}


def limits_of(arch: int) -> Limits:
    """What chips of an architecture (such as 90) take; KeyError where the catalogue has none."""
    return Limits(arch=arch, shared_bytes=SHARED_BYTES[arch])
