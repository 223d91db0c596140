"""Scenes to pixels: antialiased shapes from exact distances, in NumPy alone."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.shapes.captions import Scene, Size, Thing

Pixels = NDArray[np.uint8]  # [height, width, 3]
Floats = NDArray[np.float64]
Painted = tuple[str, float, tuple[int, int, int], float, float]  # shape, radius, colour, x, y

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 220, 30),
    "green": (30, 160, 60),
    "cyan": (60, 210, 220),
    "blue": (40, 80, 230),
    "purple": (140, 50, 190),
    "pink": (255, 130, 180),
}
BACKDROP: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (15, 15, 15),
    "gray": (128, 128, 128),
    "brown": (110, 70, 40),
    "navy": (20, 25, 90),
    "beige": (225, 205, 165),
}
RADIUS = {"small": 13.0, "medium": 18.0, "large": 24.0}  # pixels
JITTER = 2.5  # pixels a centre may stray from its cell, each way
GAP = 2.0  # pixels kept free between things
FRACTION = (0.22, 0.5, 0.78)  # of the width or height: the centres of the three columns or rows


def _star(points: int, outer: float, inner: float) -> Floats:
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


# corners (x to the right, y down) for radius 1, centroid at the origin; a circle has none
OUTLINE: dict[str, Floats] = {
    "circle": np.zeros((0, 2)),
    "square": 0.89 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]),
    "triangle": 1.25 * np.array([[0.0, -1], [0.75**0.5, 0.5], [-(0.75**0.5), 0.5]]),
    "star": _star(5, 1.25, 0.55),
    "diamond": np.array([[0.0, -1.25], [0.95, 0], [0, 1.25], [-0.95, 0]]),
}


def extent(shape: str) -> float:
    """The distance from a shape's centre to its farthest point, for radius 1."""
    outline = OUTLINE[shape]
    return float(np.hypot(outline[:, 0], outline[:, 1]).max()) if len(outline) else 1.0


def unit_area(shape: str) -> float:
    """The area of a shape of radius 1."""
    outline = OUTLINE[shape]
    if not len(outline):
        return float(np.pi)
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def coverage(shape: str, radius: float, x: Floats, y: Floats) -> Floats:
    """How much of each pixel a shape at the origin covers, 0 to 1, from its signed distance."""
    outline = OUTLINE[shape] * radius
    if not len(outline):
        return np.clip(radius - np.hypot(x, y) + 0.5, 0.0, 1.0)
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey:  # a ray to the right crosses this edge: the parity of crossings is the inside
            inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
    distance = np.sqrt(nearest)
    covered: Floats = np.clip(np.where(inside, distance, -distance) + 0.5, 0.0, 1.0)
    return covered


def cell_centre(thing: Thing, size: Size) -> tuple[float, float]:
    """Where a thing's centre (x, y) stands before jitter, moved in from the edge if need be."""
    height, width = size
    margin = extent(thing.shape) * RADIUS[thing.size] + 1
    row, column = divmod(thing.cell, 3)

    def within(value: float, side: int) -> float:
        return min(max(value, margin), side - margin)

    return within(FRACTION[column] * width, width), within(FRACTION[row] * height, height)


def fits(scene: Scene, size: Size) -> bool:
    """Whether a picture of this size holds the scene, no thing over the edge or another."""
    height, width = size
    centres = [cell_centre(t, size) for t in scene.things]
    reach = [extent(t.shape) * RADIUS[t.size] for t in scene.things]
    if any(2 * (r + 1) > min(height, width) for r in reach):
        return False
    return _apart(centres, reach)


@dataclass(frozen=True, slots=True)
class View:
    """How a picture was taken, in the words of SDXL's micro-conditioning.

    `size` is the picture's (height, width); the scene is laid out on a canvas of `canvas`, of which
    the picture shows the part from `crop` (top, left); a `shrink` above 1 means the canvas was only
    that much smaller when drawn, then enlarged, so that the picture is soft.
    """

    size: Size
    canvas: Size
    crop: tuple[int, int] = (0, 0)
    shrink: int = 1

    @property
    def time_ids(self) -> tuple[int, int, int, int, int, int]:
        """Original size, crop and target size as `StableDiffusionXLPipeline` orders them."""
        height, width = self.canvas
        return (height // self.shrink, width // self.shrink, *self.crop, *self.size)


def plain_view(size: Size) -> View:
    """A sharp picture of the whole canvas: what the pipeline asks for by default."""
    return View(size, size)


def jittered_centres(
    scene: Scene, size: Size, rng: np.random.Generator | None
) -> list[tuple[float, float]]:
    """The centres of all things, each moved a little when `rng` is given, never onto another."""
    cells = [cell_centre(t, size) for t in scene.things]
    if rng is None:
        return cells
    reach = [extent(t.shape) * RADIUS[t.size] for t in scene.things]
    for _ in range(20):
        centres = []
        for (x, y), r in zip(cells, reach, strict=True):
            dx, dy = rng.uniform(-JITTER, JITTER, 2)
            moved_x = min(max(x + dx, r + 1), size[1] - r - 1)
            centres.append((moved_x, min(max(y + dy, r + 1), size[0] - r - 1)))
        if _apart(centres, reach):
            return centres
    return cells


def _apart(centres: list[tuple[float, float]], reach: list[float]) -> bool:
    """Whether the things keep their gap."""
    return all(
        max(abs(x - centres[j][0]), abs(y - centres[j][1])) >= reach[i] + reach[j] + GAP
        for i, (x, y) in enumerate(centres)
        for j in range(i)
    )


def paint(
    background: tuple[int, int, int],
    things: list[Painted],
    size: Size,
) -> NDArray[np.float32]:
    """Shapes over a flat background: [height, width, 3] in 0..255."""
    height, width = size
    image = np.empty((height, width, 3), dtype=np.float32)
    image[:] = background
    for shape, radius, colour, x, y in things:
        reach = extent(shape) * radius + 1
        left, right = max(int(x - reach), 0), min(int(x + reach) + 2, width)
        top, bottom = max(int(y - reach), 0), min(int(y + reach) + 2, height)
        if left >= right or top >= bottom:
            continue
        columns, rows = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        alpha = coverage(shape, radius, columns - x, rows - y)[..., None]
        patch = image[top:bottom, left:right]
        patch += (alpha * (np.asarray(colour) - patch)).astype(np.float32)
    return image


def _resize(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Box-average by `factor`, then enlarge back by linear interpolation."""
    height, width, _ = image.shape
    small: NDArray[np.float32] = image.reshape(
        height // factor, factor, width // factor, factor, 3
    ).mean((1, 3))
    for axis, side in ((0, height), (1, width)):
        count = side // factor
        at = np.clip((np.arange(side) + 0.5) / factor - 0.5, 0, count - 1)
        low = np.minimum(at.astype(int), max(count - 2, 0))
        share = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        lower = small.take(low, axis)
        small = lower + share * (small.take(np.minimum(low + 1, count - 1), axis) - lower)
    return small


def draw(scene: Scene, view: View, rng: np.random.Generator | None = None) -> Pixels:
    """The picture of a scene; `rng` moves each thing a little off its cell's centre."""
    centres = jittered_centres(scene, view.canvas, rng)
    things = [
        (t.shape, RADIUS[t.size], PALETTE[t.colour], x, y)
        for t, (x, y) in zip(scene.things, centres, strict=True)
    ]
    image = paint(BACKDROP[scene.background], things, view.canvas)
    if view.shrink > 1:
        image = _resize(image, view.shrink)
    (top, left), (height, width) = view.crop, view.size
    return np.rint(image[top : top + height, left : left + width]).astype(np.uint8)
