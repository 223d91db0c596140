"""The memory that contexts share grows, says when it moved, and outlives too large a wish."""

import pytest

from diffusion_rt.engines.errors import OutOfMemory
from diffusion_rt.engines.trt.scratch import Scratch
from diffusion_rt.kernels.driver.simulator import Simulator


def test_it_grows_to_the_largest_wish_and_counts_its_moves() -> None:
    with Simulator(memory_bytes=1 << 20) as device:
        scratch = Scratch(device)
        assert (scratch.address, scratch.nbytes, scratch.generation) == (0, 0, 0)
        places, generations = [], []
        for wish in (1000, 500, 1000, 3000, 0):
            scratch.reserve(wish, "x")
            assert scratch.address % 256 == 0
            places.append((scratch.address, scratch.nbytes))
            generations.append(scratch.generation)
        assert [size for _, size in places] == [1000, 1000, 1000, 3000, 3000]
        assert len(set(places)) == len(set(generations)) == 2
        assert device.memory().free == device.memory().total - 3000
        scratch.close()
        scratch.close()
        assert device.memory().free == device.memory().total
        assert scratch.address == 0
        assert scratch.generation not in generations


def test_a_wish_too_large_leaves_as_much_as_there_was() -> None:
    with Simulator(memory_bytes=1 << 20) as device:
        scratch = Scratch(device)
        scratch.reserve(4096, "text_encoder")
        before = scratch.generation
        with pytest.raises(
            OutOfMemory, match=r"unet_step: scratch: 0\.002 GB .* needed, 0\.001 GB"
        ):
            scratch.reserve(2 << 20, "unet_step")
        assert scratch.nbytes == 4096
        assert scratch.generation > before, "captured work knows the old address"
        scratch.close()
