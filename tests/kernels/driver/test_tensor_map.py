"""Tensor maps: the driver's rules, and that every device encodes them."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.kernels.driver import Device, Launch, Misuse, Parameter, TensorMap
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.tensor_map import plain, plain_address

GOOD = TensorMap(
    name="x", dtype="float16", address=4096, sizes=(80, 9), strides=(160,), box=(64, 128)
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"address": 4104}, "address 0x1008 is no multiple of 16"),
        ({"address": 0}, "address 0x0"),
        ({"sizes": (80, 0)}, "a dimension of 0"),
        ({"sizes": (80, 2**32 + 1)}, "a dimension of 4294967297"),
        ({"strides": (168,)}, "a stride of 168 bytes"),
        ({"strides": (0,)}, "a stride of 0 bytes"),
        ({"strides": (2**40,)}, "under 2\\*\\*40"),
        ({"strides": ()}, "0 strides and a box of 2 for 2 dimensions"),
        ({"box": (64,)}, "1 strides and a box of 1 for 2 dimensions"),
        ({"box": (64, 257)}, "a box side of 257"),
        ({"box": (4, 128)}, "box rows of 8 bytes, multiples of 16"),
        ({"box": (72, 128)}, "box rows of 144 bytes are longer than the swizzle of 128"),
        ({"swizzle": 64}, "longer than the swizzle of 64"),
        ({"dtype": "float32"}, "box rows of 256 bytes are longer"),
        ({"sizes": (), "strides": (), "box": ()}, "0 dimensions"),
        ({"sizes": (8,) * 6, "strides": (16,) * 5, "box": (8,) * 6}, "6 dimensions"),
    ],
)
def test_the_drivers_rules_are_kept(change: dict[str, object], said: str) -> None:
    with pytest.raises(Misuse, match=f"tensor map of x: .*{said}"):
        replace(GOOD, **change)  # type: ignore[arg-type]


def test_its_bytes_end_with_the_last_element() -> None:
    assert GOOD.nbytes == 8 * 160 + 80 * 2
    image = replace(GOOD, sizes=(8, 5, 4, 2), strides=(16, 96, 400), box=(8, 4, 4, 1))
    assert image.nbytes == 400 + 3 * 96 + 4 * 16 + 16


@given(st.integers(1, 5), st.data())
def test_a_plain_map_says_it_all(rank: int, data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.integers(1, 2**32)) for _ in range(rank))
    strides = tuple(16 * data.draw(st.integers(1, 2**36 - 1)) for _ in range(rank - 1))
    box = (64, *(data.draw(st.integers(1, 256)) for _ in range(rank - 1)))
    packed = plain(replace(GOOD, sizes=sizes, strides=strides, box=box))
    assert plain_address(packed) == 4096
    found = struct.unpack("<8sIIQ5Q4Q5II8x", packed)
    assert found[1:3] == (rank, 2)
    assert found[4 : 4 + rank] == sizes
    assert found[9 : 9 + rank - 1] == strides
    assert found[13 : 13 + rank] == box
    assert found[18] == 128


def test_a_device_encodes_128_bytes(device: Device) -> None:
    buffer = device.allocate(GOOD.nbytes)
    assert len(device.tensor_map(replace(GOOD, address=buffer.address))) == 128


def test_a_tensor_that_leaves_its_buffer_is_found() -> None:
    with Simulator() as device:
        buffer = device.allocate(GOOD.nbytes - 2)
        with pytest.raises(Misuse, match=r"tensor map of x.*lies in no buffer"):
            device.tensor_map(replace(GOOD, address=buffer.address))


def test_an_older_chip_has_none() -> None:
    with (
        Simulator(arch=89) as device,
        pytest.raises(Misuse, match="tensor maps need sm_90, this is sm_89"),
    ):
        device.tensor_map(GOOD)


def test_a_launch_holds_on_to_what_its_maps_show() -> None:
    """Freed memory behind a map is found, as it is behind a pointer."""
    with Simulator(open_image=lambda _: lambda _name: lambda _launch, _packed: None) as device:
        buffer, stream = device.allocate(GOOD.nbytes), device.stream()
        kernel = device.load(b"any").kernel("any", (Parameter("map", "tensor_map"),))
        encoded = device.tensor_map(replace(GOOD, address=buffer.address))
        launch = Launch(grid=(1, 1, 1), block=(32, 1, 1))
        stream.launch(kernel, launch, [encoded])
        with pytest.raises(Misuse, match="freed while any"):
            buffer.close()
        stream.synchronize()
        buffer.close()
        with pytest.raises(Misuse, match="was freed"):
            stream.launch(kernel, launch, [encoded])
