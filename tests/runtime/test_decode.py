import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, Fault, NoKernel, OutOfMemory
from diffusion_rt.engines.manifest import VaeRecord
from diffusion_rt.engines.protocol import Buffers, Entries
from diffusion_rt.engines.spec import Precision, TensorSpec
from diffusion_rt.kernels.pixels import reference
from diffusion_rt.runtime.decode import (
    BAND,
    Decoder,
    blend_tiles,
    tile_starts,
    to_pixels,
    unscale,
)
from support.brightness import as_image, close_to_halves, every
from support.fake_engine import FakeEngine, nan_like

Array = NDArray[np.float32]


def vae(**changes: object) -> VaeRecord:
    fields: dict[str, object] = {
        "channels": 4,
        "factor": 8,
        "scaling_factor": 0.5,
        "shift_factor": 0.0,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": False,
        "decoder_channels": (8, 8, 16, 16),
    }
    return VaeRecord(**(fields | changes))  # type: ignore[arg-type]


def enlarge(latent: Array) -> Array:
    """Each latent pixel's first three channels as 8x8 pixels: a decoder without surroundings."""
    return latent[:, :3].repeat(8, axis=2).repeat(8, axis=3)


def decoder_engine(broken: bool = False) -> FakeEngine:
    def compute(inputs: Buffers) -> dict[str, Array]:
        image = enlarge(inputs["latent"])
        return {"image": nan_like(image) if broken else image}

    return FakeEngine(
        [TensorSpec("latent", "float32", ("batch", 4, "height", "width"))],
        [TensorSpec("image", "float32", ("batch", 3, "rows", "columns"))],
        compute,
    )


def latent(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((4, height, width), np.float32)


def test_unscale_divides_or_restores_mean_and_deviation() -> None:
    z = latent(3, 5)[None]
    np.testing.assert_array_equal(unscale(z, vae()), z * 2)
    mean, std = (0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)
    wanted = z * np.array(std, np.float32).reshape(1, 4, 1, 1) * 2 + np.array(
        mean, np.float32
    ).reshape(1, 4, 1, 1)
    given_both = unscale(z, vae(latents_mean=mean, latents_std=std))
    np.testing.assert_allclose(given_both, wanted, rtol=1e-6)


def test_pixels_are_clipped_and_rounded_to_even() -> None:
    image = np.array([-9, -1, 0, 1, 9, 2 * 2.5 / 255 - 1], np.float32)
    pixels = to_pixels(image.reshape(1, 1, 1, 6).repeat(3, axis=1))
    assert pixels is not None
    assert pixels.shape == (1, 1, 6, 3)
    assert pixels[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 2]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("height", [1, BAND, 2 * BAND + 1])
def test_pixels_are_those_that_diffusers_makes_of_the_same_numbers(
    dtype: type[np.floating], height: int
) -> None:
    """Of every float16, and of what float32 has close to a half: as many rows as fit, or more."""
    values = close_to_halves() if dtype is np.float32 else every(np.float16)
    values = values[np.isfinite(values)]
    values = np.resize(values, -(-len(values) // height) * height)
    image = as_image(values).reshape(1, 3, height, -1)
    unit = (image.astype(np.float32) / 2 + 0.5).clip(0, 1)
    wanted = (unit * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = to_pixels(image)
    assert pixels is not None
    np.testing.assert_array_equal(pixels, wanted)
    # And so does the kernel, whose reference this is.
    flat = image.reshape(1, 3, -1)
    np.testing.assert_array_equal(pixels.reshape(1, -1, 3), reference(flat))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_with_a_number_that_is_not_finite_has_no_pixels(value: float) -> None:
    for place in ((0, 0, 0, 0), (1, 1, BAND, 3), (1, 2, BAND + 1, 6)):
        image = np.zeros((2, 3, BAND + 2, 7), np.float32)
        assert to_pixels(image) is not None
        image[place] = value
        assert to_pixels(image) is None


def test_one_pass_and_tiles_agree_where_a_pixel_has_no_surroundings() -> None:
    z = latent(19, 45)
    whole = Decoder(lambda _: decoder_engine(), vae()).decode(z, None)
    tiled = Decoder(lambda _: decoder_engine(), vae()).decode(z, 16)
    assert whole.shape == (152, 360, 3)
    assert whole.std() > 50
    assert apart(tiled, whole) <= 1


def apart(found: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> int:
    return int(np.abs(found.astype(int) - wanted).max())


def test_a_decoder_binds_once_for_pictures_of_one_size() -> None:
    engine = decoder_engine()
    decoder = Decoder(lambda _: engine, vae())
    for seed in range(3):
        decoder.decode(latent(4, 4, seed), None)
    assert engine.binds == 1
    decoder.decode(latent(4, 6), None)
    assert engine.binds == 2
    decoder.close()
    assert engine.closed


def test_a_picture_that_is_not_finite_is_decoded_again_in_float32() -> None:
    asked: list[bool] = []

    def load(guarded: bool) -> FakeEngine:
        asked.append(guarded)
        return decoder_engine(broken=not guarded)

    decoder = Decoder(load, vae())
    whole = Decoder(lambda _: decoder_engine(), vae()).decode(latent(4, 4), None)
    np.testing.assert_array_equal(decoder.decode(latent(4, 4), None), whole)
    decoder.decode(latent(4, 4), None)
    assert asked == [False, True]  # and float32 stays


@pytest.mark.parametrize("upcast", [False, True])
def test_a_black_picture_is_never_given_back(upcast: bool) -> None:
    decoder = Decoder(lambda _: decoder_engine(broken=True), vae(force_upcast=upcast))
    with pytest.raises(Fault, match="not finite"):
        decoder.decode(latent(4, 4), None)


class FakePixels:
    """A device's decoder of pixels: notes what it is asked for, and may fail."""

    def __init__(self, most: int = 10_000, broken: bool = False) -> None:
        self.most, self.broken = most, broken
        self.asked: list[Precision | None] = []
        self.prepared: list[tuple[int, ...]] = []
        self.open = False

    def prepare(
        self, latent: tuple[int, ...], pixels: tuple[int, ...], precision: Precision | None = None
    ) -> None:
        self.open = True
        if latent[2] * latent[3] > self.most:
            raise NoKernel(f"{latent} has no kernel")
        self.prepared.append(pixels)

    def __call__(
        self, latent: Array, pixels: NDArray[np.uint8], precision: Precision | None = None
    ) -> bool:
        self.asked.append(precision)
        self.open = True
        if latent[0, 0].size > self.most:
            raise OutOfMemory(f"{latent.shape} does not fit")
        found = to_pixels(enlarge(latent))
        assert found is not None
        pixels[...] = found
        return not self.broken or precision == "float32"

    def close(self) -> None:
        self.open = False


def test_pixels_come_from_the_device_where_it_makes_them() -> None:
    device = FakePixels(broken=True)
    decoder = Decoder(lambda _: decoder_engine(), vae(), device=device)
    plain = Decoder(lambda _: decoder_engine(), vae())
    for seed in range(2):
        z = latent(5, 6, seed)
        np.testing.assert_array_equal(decoder.decode(z, None), plain.decode(z, None))
    assert device.asked == [None, "float32", "float32"]  # and float32 stays
    decoder.close()
    assert not device.open


def test_tiles_are_blended_by_the_host() -> None:
    device = FakePixels(most=32 * 32)
    decoder = Decoder(lambda _: decoder_engine(), vae(), device=device)
    plain = Decoder(lambda _: decoder_engine(), vae())
    z = latent(40, 64)
    for tile in (None, 32):  # too large for one pass, and then asked for
        np.testing.assert_array_equal(decoder.decode(z, tile), plain.decode(z, 32))
        assert decoder.tile == 32
    assert device.asked == [None]
    assert not device.open, "the memory of one pass is kept beside the tiles'"
    small = latent(16, 32)
    np.testing.assert_array_equal(decoder.decode(small, 32), plain.decode(small, None))
    assert device.asked == [None, None]


class SmallEngine(FakeEngine):
    """Has memory, or kernels, for so many latent pixels."""

    most = 0
    error: type[BadInput] = OutOfMemory

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        height, width = buffers["latent"].shape[2:]
        if height * width > self.most:
            raise self.error(f"{height}x{width} does not fit")
        super().bind(buffers, only)


def small(most: int, error: type[BadInput] = OutOfMemory) -> tuple[Decoder, list[SmallEngine]]:
    opened: list[SmallEngine] = []

    def load(guarded: bool) -> FakeEngine:
        whole = decoder_engine()
        specs = list(whole.inputs.values()), list(whole.outputs.values())
        engine = SmallEngine(*specs, lambda inputs: {"image": enlarge(inputs["latent"])})
        engine.most, engine.error = most, error
        opened.append(engine)
        return engine

    return Decoder(load, vae()), opened


@pytest.mark.parametrize("error", [OutOfMemory, NoKernel])
@pytest.mark.parametrize(("most", "tile"), [(10_000, None), (1024, 32), (500, 20), (256, 16)])
def test_a_picture_that_does_not_fit_is_decoded_in_tiles(
    most: int, tile: int | None, error: type[BadInput]
) -> None:
    decoder, opened = small(most, error)
    z = latent(40, 64) if tile != 20 else latent(39, 39)
    whole = Decoder(lambda _: decoder_engine(), vae()).decode(z, None)
    assert apart(decoder.decode(z, None), whole) <= 1
    assert decoder.tile == tile
    count = len(opened)
    decoder.decode(z, None)  # the same cut at once
    assert len(opened) == count
    assert all(engine.closed for engine in opened[:-1])


def test_tiles_asked_for_that_do_not_fit_are_cut_again() -> None:
    decoder, _ = small(400)
    decoder.decode(latent(64, 64), 32)
    assert decoder.tile == 16
    decoder.decode(latent(12, 12), 32)
    assert decoder.tile is None


def test_a_memory_too_small_for_any_tile_is_said() -> None:
    decoder, opened = small(100)
    with pytest.raises(OutOfMemory, match="16x16 does not fit"):
        decoder.decode(latent(64, 64), None)
    assert all(engine.closed for engine in opened)


def test_a_decoder_is_bound_before_there_is_a_picture() -> None:
    engine = decoder_engine()
    decoder = Decoder(lambda _: engine, vae())
    for tile in (None, 32):
        assert decoder.prepare((40, 24), tile)
        binds = engine.binds
        decoder.decode(latent(40, 24), tile)
        assert engine.binds == binds


def test_a_decoder_on_a_device_is_prepared_for_one_pass_and_the_engine_for_tiles() -> None:
    device, engine = FakePixels(most=1024), decoder_engine()
    decoder = Decoder(lambda _: engine, vae(), device=device)
    assert decoder.prepare((32, 24), None)
    assert (device.prepared, engine.binds) == (
        [decoder.decode(latent(32, 24), None)[None].shape],
        0,
    )
    assert decoder.prepare((40, 64), None)  # in tiles, as no kernel takes it whole
    assert (len(device.prepared), engine.binds) == (1, 1)
    assert not device.open


def test_a_size_that_is_refused_leaves_the_one_before_it_usable() -> None:
    decoder, _ = small(1024, BadInput)
    before = decoder.decode(latent(16, 16), None)
    with pytest.raises(BadInput, match="40x64 does not fit"):
        decoder.prepare((40, 64), None)
    np.testing.assert_array_equal(decoder.decode(latent(16, 16), None), before)


def test_what_has_no_memory_yet_is_given_back_and_cut_when_it_is_decoded() -> None:
    decoder, opened = small(1024)
    assert not decoder.prepare((40, 64), None)
    assert [engine.closed for engine in opened] == [True]
    decoder.decode(latent(40, 64), None)
    assert decoder.tile == 32
    assert decoder.prepare((40, 64), None)  # as it was cut


def test_what_no_kernel_takes_is_cut_before_there_is_a_picture() -> None:
    decoder, opened = small(1024, NoKernel)
    assert decoder.prepare((40, 64), None)
    count = len(opened)
    decoder.decode(latent(40, 64), None)
    assert (decoder.tile, len(opened)) == (32, count)
    decoder, opened = small(100, NoKernel)
    with pytest.raises(NoKernel, match="16x16 does not fit"):
        decoder.prepare((40, 64), None)
    assert all(engine.closed for engine in opened)


class BuiltEngine(FakeEngine):
    """Takes the sizes it was built for alone, and has memory for so many latent pixels."""

    built: tuple[tuple[int, int], ...] = ()
    most = 0

    def bind(self, buffers: Buffers, only: Entries | None = None) -> None:
        height, width = buffers["latent"].shape[2:]
        if (height, width) not in self.built:
            raise BadInput(f"{height}x{width}: no engine is built for it")
        if height * width > self.most:
            raise OutOfMemory(f"{height}x{width} does not fit")
        super().bind(buffers, only)


def test_memory_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine of fixed sizes takes no other tiles: what is said, and what is tried next time."""
    whole = decoder_engine()
    specs = list(whole.inputs.values()), list(whole.outputs.values())
    opened: list[BuiltEngine] = []

    def load(guarded: bool) -> FakeEngine:
        opened.append(BuiltEngine(*specs, lambda inputs: {"image": enlarge(inputs["latent"])}))
        return opened[-1]

    monkeypatch.setattr(BuiltEngine, "built", ((40, 64), (40, 40)))
    decoder = Decoder(load, vae())
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="40x64 does not fit"):
            decoder.decode(latent(40, 64), None)
        assert all(engine.closed for engine in opened)
    with pytest.raises(BadInput, match="17x17: no engine is built for it"):
        decoder.decode(latent(17, 17), None)
    monkeypatch.setattr(BuiltEngine, "most", 10_000)
    z, wanted = (
        latent(40, 64),
        Decoder(lambda _: decoder_engine(), vae()).decode(latent(40, 64), None),
    )
    np.testing.assert_array_equal(decoder.decode(z, None), wanted)
    assert decoder.tile is None
    decoder.close()
    # The first tile that is built for and fits is kept.
    monkeypatch.setattr(BuiltEngine, "built", ((40, 64), (16, 16)))
    monkeypatch.setattr(BuiltEngine, "most", 256)
    counts = []
    for _ in range(2):
        np.testing.assert_allclose(decoder.decode(z, None), wanted, atol=1e-5)
        counts.append(len(opened))
    assert decoder.tile == 16
    assert counts[0] == counts[1]


@given(st.integers(1, 400), st.integers(8, 128))
def test_tiles_cover_a_side_with_a_quarter_of_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    assert starts[0] == 0
    if length <= tile:
        assert starts == [0]
        return
    assert starts[-1] + tile == length
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (tile - gaps >= tile // 4 - 1).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(8, 24))
def test_blending_leaves_a_flat_picture_flat(height: int, width: int, tile: int) -> None:
    z = np.full((1, 4, height, width), 0.25, np.float32)
    picture = blend_tiles(z, tile, 8, enlarge)
    assert picture.shape == (3, height * 8, width * 8)
    np.testing.assert_allclose(picture, 0.25, atol=1e-6)
