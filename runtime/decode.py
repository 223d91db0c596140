"""Latents to pixels: one VAE pass, or overlapping tiles where one pass needs too much memory."""

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, Fault, NoKernel, OutOfMemory
from diffusion_rt.engines.manifest import VaeRecord
from diffusion_rt.engines.protocol import FLOAT, Engine, PixelDecoder
from diffusion_rt.engines.spec import Precision
from diffusion_rt.runtime.signature import check_names

Array = NDArray[np.float32]
Pixels = NDArray[np.uint8]

SMALLEST_TILE = 16  # latent pixels a side
BAND = 64  # rows of a picture that become bytes together: few enough to stay in the cache


def unscale(latent: Array, vae: VaeRecord) -> Array:
    """Latents of the UNet [b, c, h, w] as the VAE knows them, as diffusers' pipeline does."""
    if vae.latents_mean is not None and vae.latents_std is not None:
        mean = np.array(vae.latents_mean, np.float32).reshape(1, -1, 1, 1)
        std = np.array(vae.latents_std, np.float32).reshape(1, -1, 1, 1)
        return latent * std / np.float32(vae.scaling_factor) + mean
    return latent / np.float32(vae.scaling_factor) + np.float32(vae.shift_factor)


def to_pixels(image: NDArray[np.floating]) -> Pixels | None:
    """Pictures [b, 3, h, w] around -1 to 1 as bytes [b, h, w, 3]; None where one is not finite.

    Computed in float32, and rounded as diffusers does.
    """
    images, colours, height, width = image.shape
    pixels = np.empty((images, height, width, colours), np.uint8)
    for picture, top in product(range(images), range(0, height, BAND)):
        rows = slice(top, top + BAND)
        band = np.multiply(image[picture, :, rows], np.float32(0.5), dtype=np.float32)
        if not np.isfinite(band).all():
            return None
        band += np.float32(0.5)
        np.clip(band, 0, 1, out=band)
        band *= np.float32(255)
        planes = np.rint(band, out=band).astype(np.uint8)
        for colour in range(colours):  # four times as fast as a transpose
            pixels[picture, rows, :, colour] = planes[colour]
    return pixels


class Decoder:
    """The VAE decoder, one latent at a time, as its memory need is the largest of all stages."""

    def __init__(
        self,
        load: Callable[[bool], Engine],
        vae: VaeRecord,
        make_room: Callable[[], bool] = lambda: False,
        device: PixelDecoder | None = None,
    ) -> None:
        """`load` opens the decoder's engine; True asks for float32 arithmetic.

        `make_room` gives back memory that others hold, and says whether there was any. `device`
        makes the pixels of pictures that are decoded in one pass.
        """
        self._load = load
        self._vae = vae
        self._make_room = make_room
        self._device = device
        self._guarded = False
        self._engine: Engine | None = None
        self._bound: tuple[int, int] | None = None
        self._cuts: dict[tuple[int, int], int] = {}  # of pictures that did not fit in one pass
        self._input: NDArray[np.floating] = np.zeros(0, np.float32)
        self._output: NDArray[np.floating] = np.zeros(0, np.float32)
        self.tile: int | None = None
        """The side of the last picture's tiles in latent pixels, None where it was one pass."""

    def prepare(self, size: tuple[int, int], tile: int | None) -> bool:
        """Bind the engine for a latent [height, width] that is to come; whether memory sufficed.

        So a size that it cannot decode, in tiles either, is an error before anything is denoised,
        and what it takes of the memory that engines share is there before it matters that none of
        it moves. What has no memory now may get some when it is decoded.
        """
        tile = self._cuts.get(size, tile)
        while True:
            try:
                if self._device is not None and _whole(size, tile):
                    latent = (1, self._vae.channels, *size)
                    self._device.prepare(latent, self._pixels(1, size), self._precision)
                else:
                    self._bind(*(min(side, tile or side) for side in size))
            except OutOfMemory:
                self.close()
                return False
            except NoKernel:
                self.close()
                side = min(max(size), tile or max(size))
                if side <= SMALLEST_TILE:
                    raise
                tile = self._cuts[size] = _half(side)
            else:
                return True

    def decode(self, latent: Array, tile: int | None) -> Pixels:
        """One latent [c, h, w] of the UNet to a picture [H, W, 3].

        `tile` is the side of a tile in latent pixels, None for one pass; an engine that runs out of
        memory, or has no kernel for so many pixels, gets tiles, or smaller ones, and so do later
        pictures of that size. A picture that is not finite is decoded again in float32; if it still
        is not, Fault.
        """
        z = unscale(latent[None], self._vae)
        pixels = self._fitting(z, tile)
        if pixels is None and not self._guarded:
            self.close()
            self._guarded = True
            pixels = self._fitting(z, tile)
        if pixels is None:
            raise Fault(
                "the VAE made pixels that are not finite, in float32 too; "
                "the checkpoint's weights are damaged: try another seed or checkpoint"
            )
        picture: Pixels = pixels[0]
        return picture

    def close(self) -> None:
        """Give back the engine and its buffers, and what the device holds."""
        if self._device is not None:
            self._device.close()
        if self._engine is not None:
            self._engine.close()
        self._engine, self._bound = None, None
        self._input = self._output = np.zeros(0, np.float32)

    def _fitting(self, z: Array, tile: int | None) -> Pixels | None:
        """Decode in tiles of `tile`, or of half that as often as the engine cannot take them.

        An engine that is built for some sizes alone refuses other tiles: those are passed over, and
        where it takes none, what is said is why it wanted tiles. Only tiles that it took are kept.
        """
        height, width = z.shape[2:]
        tile = self._cuts.get((height, width), tile)
        short: BadInput | None = None
        while True:
            side = max(height, width) if tile is None else min(tile, max(height, width))
            try:
                pixels = self._decode(z, tile)
            except (OutOfMemory, NoKernel) as error:
                self.close()
                if isinstance(error, OutOfMemory) and self._make_room():
                    continue
                short = error
            except BadInput:
                if short is None:  # not a tile of ours
                    raise
            else:
                if short is not None and tile is not None:
                    self._cuts[height, width] = tile
                self.tile = tile if side < max(height, width) else None
                return pixels
            if side <= SMALLEST_TILE:
                self.close()
                raise short
            tile = _half(side)

    def _decode(self, z: Array, tile: int | None) -> Pixels | None:
        size = z.shape[2], z.shape[3]
        if not _whole(size, tile):
            return to_pixels(blend_tiles(z, tile or 0, self._vae.factor, self._run)[None])
        if self._device is None:
            return to_pixels(self._run(z))
        pixels = np.empty(self._pixels(len(z), size), np.uint8)
        finite = self._device(z, pixels, self._precision)
        return pixels if finite else None

    @property
    def _precision(self) -> Precision | None:
        return "float32" if self._guarded else None

    def _pixels(self, images: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        height, width = size
        factor = self._vae.factor
        return images, height * factor, width * factor, 3

    def _run(self, z: Array) -> NDArray[np.floating]:
        engine = self._bind(*z.shape[2:])
        self._input[...] = z
        engine.enqueue()
        return self._output

    def _bind(self, height: int, width: int) -> Engine:
        """The engine, with arrays for latents of this size."""
        if self._engine is None:
            self._engine = self._load(self._guarded)
            check_names("vae_decoder", self._engine, inputs={"latent"}, outputs={"image"})
        engine, factor = self._engine, self._vae.factor
        if self._bound != (height, width):
            self._bound = None
            shape = (1, self._vae.channels, height, width)
            self._input = np.zeros(shape, FLOAT[engine.inputs["latent"].dtype])
            self._output = np.zeros(
                (1, 3, height * factor, width * factor), FLOAT[engine.outputs["image"].dtype]
            )
            engine.bind({"latent": self._input, "image": self._output})
            self._bound = (height, width)
        return engine


def _whole(size: tuple[int, int], tile: int | None) -> bool:
    """Whether a latent is decoded in one pass."""
    return tile is None or max(size) <= tile


def _half(side: int) -> int:
    return max(-(-side // 2), SMALLEST_TILE)


def blend_tiles(
    z: Array,
    tile: int,
    factor: int,
    run: Callable[[Array], NDArray[np.floating]],
) -> Array:
    """Decode [1, c, h, w] in overlapping tiles and cross-fade them: a picture [3, H, W].

    Tiles overlap by a quarter at least. Each carries a weight that falls linearly to its edges, and
    a pixel is the weighted mean of the tiles over it, so no seam shows. Normalisation and attention
    see one tile at a time: the picture differs a little from that of one pass.
    """
    height, width = z.shape[2:]
    tops, lefts = tile_starts(height, tile), tile_starts(width, tile)
    total = np.zeros((3, height * factor, width * factor), np.float32)
    weight = np.zeros(total.shape[1:], np.float32)
    for top, left in product(tops, lefts):
        part = np.ascontiguousarray(z[:, :, top : top + tile, left : left + tile])
        share = np.outer(_ramp(part.shape[2] * factor), _ramp(part.shape[3] * factor))
        rows = slice(top * factor, top * factor + share.shape[0])
        columns = slice(left * factor, left * factor + share.shape[1])
        total[:, rows, columns] += run(part)[0] * share
        weight[rows, columns] += share
    total /= weight
    return total


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along one side: evenly, a quarter of overlap at least, covering it all."""
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // (tile - tile // 4))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int) -> Array:
    """Up from one edge and down to the other, never zero."""
    up = np.arange(1, length + 1, dtype=np.float32)
    return np.minimum(up, up[::-1])
