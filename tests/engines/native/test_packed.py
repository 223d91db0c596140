"""Packed files: the very bytes that arranging gives, and no file that is not what it was."""

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import packed as module
from diffusion_rt.engines.native import packing
from diffusion_rt.engines.native.arrangement import Arrangement
from diffusion_rt.engines.native.packed import (
    check_of,
    is_whole,
    key_of,
    open_packed,
    write_packed,
)
from diffusion_rt.engines.native.packing import to_bfloat16
from diffusion_rt.engines.native.plan import Source, Weight
from diffusion_rt.engines.native.weights import Weights
from diffusion_rt.kernels.driver.simulator import Simulator
from support.native_weights import FILE, Array, Case, Checkpoint, Loaded, bytes_of, cases

HASHES = {FILE: "ab" * 32}
SOME: list[Case] = [  # one of each layout, each cast
    ("rows", [(300, 20), (100, 20)], "float32", "float16"),
    ("filters", [(20, 12, 3, 3)], "float16", "float16"),
    ("doubled", [(9, 12, 3, 3)], "bfloat16", "float16"),
    ("geglu", [(64, 24)], "float32", "bfloat16"),
    ("transposed", [(30, 40)], "float16", "float32"),
    ("rows", [(77,)], "bfloat16", "bfloat16"),
]


class PackedCheckpoint:
    """Weights of a checkpoint, the file they are packed in, and the bytes that arranging gives."""

    def __init__(self, folder: Path, chosen: list[Case], constant: Array | None = None) -> None:
        self.checkpoint = Checkpoint(folder)
        weights = self.checkpoint.weights(chosen)
        constants = {}
        if constant is not None:
            weights.append(Weight("constant", (), "rows", "float16", constant.shape))
            constants["constant"] = constant
        self.arrangement = Arrangement(weights, constants)
        self.key = key_of(self.arrangement, HASHES)
        self.path = folder / "unet-float16.weights"
        self.size = write_packed(self.path, self.arrangement, self.key, folder)
        loaded = Loaded(self.checkpoint, weights, constants)
        self.arranged = loaded.whole()
        self._weights, self._constants = weights, constants

    def streamed(self, seed: int | None = None, slots: int = 6) -> NDArray[np.uint8]:
        """What lies on a device after a packed load; its memory was poisoned before."""
        device = Simulator(seed=seed)
        stream = device.stream()
        weights = Weights(device, stream, self._weights, self._constants)
        with open_packed(self.path, self.key, weights.nbytes) as packed:
            weights.stream_packed(packed, slots=slots)
        return bytes_of(device, stream, weights)


@pytest.fixture
def some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedCheckpoint:
    monkeypatch.setattr(module, "PIECE", 4 * 4096)
    return PackedCheckpoint(tmp_path, SOME, np.arange(100, dtype=np.float32))


@settings(max_examples=60, deadline=None)
@given(
    cases(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([256, 4096, 5120, 1 << 20]),
    st.sampled_from([64, 4096]),
)
def test_a_packed_load_is_the_arranged_one_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    chosen: list[Case],
    constant: bool,
    slots: int,
    piece: int,
    block: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK", block)
        patch.setattr(module, "PIECE", piece)
        values = np.linspace(-1, 1, 77, dtype=np.float32) if constant else None
        made = PackedCheckpoint(tmp_path_factory.mktemp("packed"), chosen, values)
        assert made.path.stat().st_size == made.size
        found = made.streamed(seed=slots, slots=slots)
        np.testing.assert_array_equal(found, made.arranged, strict=True)


def test_no_weights_at_all(tmp_path: Path) -> None:
    assert PackedCheckpoint(tmp_path, []).streamed().size == 0


def test_progress_counts_every_byte(some: PackedCheckpoint) -> None:
    heard: list[int] = []
    folder = some.checkpoint.folder
    write_packed(some.path, some.arrangement, some.key, folder, heard.append)
    assert len(heard) > 2
    assert sum(heard) == some.arrangement.nbytes


def test_any_byte_that_was_changed_is_noticed(some: PackedCheckpoint) -> None:
    content = some.path.read_bytes()
    draw = np.random.default_rng(5)
    head = len(content) - some.arrangement.nbytes
    places = [0, 8, 41, 72, 80, head, len(content) - 1, *draw.integers(head, len(content), 60)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(draw.integers(8))
        some.path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"unet-float16\.weights: "):
            some.streamed()
        assert not is_whole(some.path, some.key, some.arrangement.nbytes)
    some.path.write_bytes(content)
    np.testing.assert_array_equal(some.streamed(), some.arranged)


@given(st.data())
def test_the_check_differs_wherever_one_word_does(data: st.DataObject) -> None:
    words = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        0, 1 << 63, 32 * data.draw(st.integers(1, 100)), np.uint64
    )
    before = check_of(words.view(np.uint8))
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] ^= np.uint64(data.draw(st.integers(1, (1 << 64) - 1)))
    assert check_of(words.view(np.uint8)) != before


def test_pages_that_changed_places_are_noticed() -> None:
    pages = np.random.default_rng(0).integers(0, 256, (8, 4096), np.uint8)
    before = check_of(pages.reshape(-1))
    pages[[2, 5]] = pages[[5, 2]]
    assert check_of(pages.reshape(-1)) != before


def test_what_is_cut_short_lengthened_or_something_else(some: PackedCheckpoint) -> None:
    content = some.path.read_bytes()
    half = len(content) // 2
    for other in (b"", b"x", content[:100], content[:half], content[:-1], content + b"\0" * 4096):
        some.path.write_bytes(other)
        with pytest.raises(BadInput, match=r"no packed weights|bytes long, wants"):
            some.streamed()
    some.path.unlink()
    some.path.symlink_to(some.checkpoint.folder / FILE)
    with pytest.raises(BadInput, match="symbolic link"):
        some.streamed()


def test_a_file_that_is_cut_short_while_it_is_read(some: PackedCheckpoint) -> None:
    room = np.zeros(module.PIECE, np.uint8)
    with open_packed(some.path, some.key, some.arrangement.nbytes) as packed:
        os.truncate(some.path, some.size - module.PIECE // 2)
        packed.read(0, room)
        number = len(packed.pieces) - 1
        with pytest.raises(BadInput, match="bytes early"):
            packed.read(number, room[: packed.pieces[number][1]])


def test_the_key_has_all_that_the_bytes_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(tmp_path)
    source = checkpoint.tensor("w", (16, 16), "float32")
    other = checkpoint.tensor("v", (16, 16), "float32")
    weight = Weight("made", (source,), "rows", "float16", (16, 16))
    constant = Weight("constant", (), "rows", "float16", (4,))

    def key(*weights: Weight, value: float = 1, hashes: dict[str, str] = HASHES) -> bytes:
        constants = {"constant": np.full(4, value, np.float32)}
        return key_of(Arrangement(weights, constants), hashes)

    keys = [
        key(weight, constant),
        key(weight),
        key(weight, constant, value=2),
        key(weight, constant, hashes={FILE: "cd" * 32}),
        key(Weight("made", (other,), "rows", "float16", (16, 16)), constant),
        key(Weight("made", (source,), "transposed", "float16", (16, 16)), constant),
        key(Weight("made", (source,), "rows", "float32", (16, 16)), constant),
        key(Weight("made", (source,), "rows", "float16", (24, 16)), constant),
        key(Weight("name", (source,), "rows", "float16", (16, 16)), constant),
    ]
    for where, name in ((module, "VERSION"), (packing, "VERSION")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, 99)
            keys.append(key(weight, constant))
    assert len(set(keys)) == len(keys) == 11
    assert key(weight, constant) == keys[0]


def test_the_file_of_other_weights_is_not_used(some: PackedCheckpoint) -> None:
    with (
        pytest.raises(BadInput, match="of another checkpoint, export or diffusion-rt"),
        open_packed(some.path, b"\0" * 32, some.arrangement.nbytes),
    ):
        pass


def test_a_full_disk_leaves_what_was_there(
    some: PackedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        assert length == some.size
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    folder = some.checkpoint.folder
    before = sorted(folder.iterdir())
    with pytest.raises(BadInput, match=r"\.weights cannot be written: the disk is full; make room"):
        write_packed(some.path, some.arrangement, some.key, folder)
    assert sorted(folder.iterdir()) == before
    np.testing.assert_array_equal(some.streamed(), some.arranged)


def test_a_checkpoint_that_is_not_finite_is_not_packed(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    source = checkpoint.put("bad", np.full((4, 4), np.nan, np.float32), "float32")
    arrangement = Arrangement([Weight("w", (source,), "rows", "float16", (4, 4))], {})
    with pytest.raises(BadInput, match='"bad" has NaN'):
        write_packed(tmp_path / "x.weights", arrangement, bytes(32), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unet"]


def test_bytes_that_change_want_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails, arranging gives other bytes: `packing.VERSION` must be one more."""

    def tensor(self: Checkpoint, name: str, shape: tuple[int, ...], dtype: str) -> Source:
        count = np.arange(np.prod(shape), dtype=np.float32)
        values = ((count * 7 % 1021 - 510) / 96).reshape(shape)
        stored = to_bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
        return self.put(name, stored, dtype)

    monkeypatch.setattr(Checkpoint, "tensor", tensor)
    made = PackedCheckpoint(tmp_path, SOME)
    assert packing.VERSION == 1
    assert hashlib.sha256(made.arranged.tobytes()).hexdigest()[:16] == "c76189b0e43ecc3b"
