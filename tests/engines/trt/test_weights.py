"""Weights: casts held to ml_dtypes, mapped bytes held to the file, little memory taken."""

import ctypes
import errno
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.onnx_file import ExternalTensor
from diffusion_rt.engines.trt import weights as module
from diffusion_rt.engines.trt.weights import MappedWeight, Weight, cast, map_weights

TRUTH: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
BITS = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0x7F80_0000, 0xFF80_0000, 0x7F7F_FFFF, 0x8000])
)


@given(arrays(np.uint32, st.integers(1, 50), elements=BITS), st.sampled_from(sorted(TRUTH)))
def test_casts_round_as_ml_dtypes_does(bits: NDArray[np.uint32], dtype: str) -> None:
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        wanted = values.astype(TRUTH[dtype])
    found = cast(values, "float32", dtype).view(TRUTH[dtype])
    np.testing.assert_array_equal(found.astype(np.float64), wanted.astype(np.float64))
    back = cast(cast(values, "float32", dtype), dtype, "float32")
    np.testing.assert_array_equal(back, wanted.astype(np.float32))


def weight_of(name: str, stored: str, dtype: str, shape: tuple[int, ...], offset: int) -> Weight:
    length = int(np.prod(shape)) * np.dtype(module.held(stored)).itemsize
    source = ExternalTensor(name, stored, shape, "w.bin", offset, length)
    return Weight(name, dtype, source, "unet/w.bin")


def values_of(weight: MappedWeight) -> NDArray[Any]:
    """What lies at the weight's address."""
    raw = (ctypes.c_uint8 * weight.data.nbytes).from_address(weight.address)
    return np.frombuffer(bytes(raw), TRUTH[weight.dtype]).reshape(weight.shape)


@pytest.mark.parametrize("stored", sorted(TRUTH))
@pytest.mark.parametrize("dtype", sorted(TRUTH))
@pytest.mark.parametrize("gap", [0, 3])
def test_mapped_weights(stored: str, dtype: str, gap: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    arrays_ = [draw.normal(size=s).astype(TRUTH[stored]) for s in ((7, 255), (1000,), (1,))]
    content, wanted = bytearray(gap), []
    for index, array in enumerate(arrays_):
        wanted.append(weight_of(f"w{index}", stored, dtype, array.shape, len(content)))
        content += array.tobytes()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.bin").write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    found = map_weights(tmp_path, wanted, tmp_path)
    assert found.keys() == {"w0", "w1", "w2"}
    for weight, array in zip(wanted, arrays_, strict=True):
        here = found[weight.name]
        assert here.data.nbytes == weight.nbytes
        assert weight.nbytes == array.size * np.dtype(TRUTH[dtype]).itemsize
        assert here.address % np.dtype(TRUTH[dtype]).itemsize == 0
        expected = array.astype(np.float32).astype(TRUTH[dtype])
        np.testing.assert_array_equal(
            values_of(here).astype(np.float64), expected.astype(np.float64)
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_casts_take_little_memory(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    elements = 24 << 20
    with (tmp_path / "unet" / "w.bin").open("wb") as file:
        file.truncate(2 * elements)
    weights = [weight_of("w", "float16", "float32", (elements,), 0)]
    tracemalloc.start()
    try:
        found = map_weights(tmp_path, weights, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["w"].data.nbytes == 96 << 20
    assert peak < 32 << 20


def test_weights_of_the_files_own_type_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.bin").write_bytes(bytes(range(64)))
    weights = [weight_of("a", "float16", "float16", (8,), 0)]
    weights.append(weight_of("b", "float16", "float16", (8,), 32))
    found = map_weights(tmp_path, weights, tmp_path)
    assert found["b"].address - found["a"].address == 32
    assert found["a"].address % 4096 == 0
    assert not found["a"].data.flags.writeable


def test_a_file_that_ends_within_a_weight(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    for content in (b"", bytes(15)):
        (tmp_path / "unet" / "w.bin").write_bytes(content)
        weights = [weight_of("deep.weight", "float16", "float16", (8,), 0)]
        with pytest.raises(BadInput, match=r"ends within deep\.weight"):
            map_weights(tmp_path, weights, tmp_path)


def test_a_number_out_of_float16(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.bin").write_bytes(np.array([1, 1e6], np.float32).tobytes())
    weights = [weight_of("big", "float32", "float16", (2,), 0)]
    with pytest.raises(BadInput, match=r"big: a number of it is out of float16's range"):
        map_weights(tmp_path, weights, tmp_path)


def test_no_room_for_casts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "w.bin").write_bytes(bytes(64))

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    weights = [weight_of("w", "float32", "float16", (16,), 0)]
    for kept in ("", "x.weights"):
        with pytest.raises(BadInput, match=r"no space left on device\); make room there"):
            map_weights(tmp_path, weights, tmp_path, kept=kept)
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def test_casts_that_are_kept_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet").mkdir()
    values = np.random.default_rng(2).normal(size=1001).astype(np.float32)
    (tmp_path / "unet" / "w.bin").write_bytes(values.tobytes())
    weights = [weight_of("a", "float32", "float16", (501,), 0)]
    weights.append(weight_of("b", "float32", "float16", (500,), 4 * 501))
    name = module.digest_of(weights, {"unet/w.bin": "0" * 64})
    names = {
        name,
        module.digest_of(weights, {"unet/w.bin": "1" * 64}),
        module.digest_of(weights[:1], {"unet/w.bin": "0" * 64}),
        module.digest_of([weight_of("a", "float32", "bfloat16", (501,), 0)], {"unet/w.bin": ""}),
    }
    assert len(names) == 4
    made: list[str] = []
    plain = module.cast

    def counted(values: NDArray[Any], stored: str, dtype: str) -> NDArray[Any]:
        made.append(dtype)
        return plain(values, stored, dtype)

    monkeypatch.setattr(module, "cast", counted)
    name += ".weights"
    kept = tmp_path / name

    def check(*, anew: bool) -> None:
        made.clear()
        found = map_weights(tmp_path, weights, tmp_path, kept=name)
        assert bool(made) == anew
        both = np.concatenate([values_of(found["a"]), values_of(found["b"])])
        np.testing.assert_array_equal(both, values.astype(np.float16))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "unet"])

    check(anew=True)
    check(anew=False)
    content = bytearray(kept.read_bytes())
    for damaged in (content[:-1], content[:100], bytes([content[0] ^ 1]) + content[1:], b""):
        kept.write_bytes(damaged)
        check(anew=True)
        assert kept.read_bytes() == content
