"""What a picture shows, measured from its pixels in NumPy: the judge of `shapes-xl`."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from diffusion_rt.bench.shapes.captions import RELATIONS, SHAPES, SIZES, Scene, Size, Thing
from diffusion_rt.bench.shapes.draw import (
    BACKDROP,
    PALETTE,
    RADIUS,
    Pixels,
    cell_centre,
    coverage,
    unit_area,
)

NEAR = 45.0  # distance in 0..255 RGB within which a colour still has its name
STRAY = 40.0  # square pixels a nameless spot may cover
LIKENESS = 0.75  # least overlap (intersection over union) with the ideal outline
RADII = (10.5, 29.0)  # pixels; beyond them a size has no name


@dataclass(frozen=True, slots=True)
class Seen:
    """One blob: names are "" where nothing known is near enough."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    likeness: float


@dataclass(frozen=True, slots=True)
class View:
    """All that is seen in a picture; `stray` is the area of spots too small to be things."""

    background: str
    things: tuple[Seen, ...]
    stray: float
    size: Size


def blobs(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The 4-connected parts of a mask, by spreading the highest label until nothing changes."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.maximum.reduce(
            [labels, padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        spread = np.where(mask, spread, 0)
        spread = np.where(mask, spread.ravel()[np.maximum(spread, 1) - 1], 0)
        if np.array_equal(spread, labels):
            break
        labels = spread
    return [labels == label for label in np.unique(labels[mask])]


def nearest(colour: NDArray[np.float64], names: dict[str, tuple[int, int, int]]) -> str:
    """The name of the nearest colour, "" if none is near."""
    distance = {n: float(np.linalg.norm(colour - np.asarray(c))) for n, c in names.items()}
    best = min(distance, key=lambda name: distance[name])
    return best if distance[best] <= NEAR else ""


def likeness(alpha: NDArray[np.float64], shape: str) -> float:
    """Overlap of a blob with the ideal shape of the same area and centre, 0 to 1."""
    area = float(alpha.sum())
    rows, columns = np.mgrid[: alpha.shape[0], : alpha.shape[1]] + 0.5
    x, y = (alpha * columns).sum() / area, (alpha * rows).sum() / area
    radius = (area / unit_area(shape)) ** 0.5
    ideal = coverage(shape, radius, columns - x, rows - y)
    return float(np.minimum(alpha, ideal).sum() / np.maximum(alpha, ideal).sum())


def see(picture: Pixels) -> View:
    """Find the background, then each blob's colour, shape, size and centre."""
    image = picture.astype(np.float64)
    size = (picture.shape[0], picture.shape[1])
    close = {
        name: np.linalg.norm(image - np.asarray(colour), axis=2) <= NEAR
        for name, colour in BACKDROP.items()
    }
    background = max(close, key=lambda name: int(close[name].sum()))
    if close[background].mean() < 0.3:
        return View("", (), 0.0, size)
    ground = np.median(image[close[background]], axis=0)
    far = np.linalg.norm(image - ground, axis=2) > NEAR - 5
    things, stray = [], 0.0
    for blob in blobs(far):
        if blob.sum() < 60:
            stray += float(blob.sum())
            continue
        things.append(_thing(image, blob, ground))
    return View(background, tuple(things), stray, size)


def _thing(
    image: NDArray[np.float64], blob: NDArray[np.bool_], ground: NDArray[np.float64]
) -> Seen:
    """Name one blob. Its colour is the median of its inside; edges count by their mixture."""
    inside = blob.copy()
    for axis in (0, 1):
        for by in (-1, 1):
            inside &= np.roll(blob, by, axis)
    colour = np.median(image[inside if inside.any() else blob], axis=0)
    wide = blob.copy()  # and the faint outermost pixels
    for axis in (0, 1):
        wide |= np.roll(wide, 1, axis) | np.roll(wide, -1, axis)
    toward = colour - ground
    alpha = np.clip((image - ground) @ toward / (toward @ toward), 0, 1) * wide
    scores = {shape: likeness(alpha, shape) for shape in SHAPES}
    shape = max(scores, key=lambda name: scores[name])
    area = float(alpha.sum())
    rows, columns = np.mgrid[: alpha.shape[0], : alpha.shape[1]] + 0.5
    radius = (area / unit_area(shape)) ** 0.5
    nearest_size = min(SIZES, key=lambda name: abs(np.log(RADIUS[name] / radius)))
    return Seen(
        colour=nearest(colour, PALETTE),
        shape=shape if scores[shape] >= LIKENESS else "",
        size=nearest_size if RADII[0] <= radius <= RADII[1] else "",
        x=float((alpha * columns).sum() / area),
        y=float((alpha * rows).sum() / area),
        radius=radius,
        likeness=scores[shape],
    )


PARTS = ("count", "background", "colour", "shape", "size", "place")


def judge(scene: Scene, view: View) -> dict[str, bool]:
    """Which parts of a fully worded scene a picture shows; "all" if every one, and nothing else."""
    right = dict.fromkeys(PARTS, False)
    right["background"] = view.background == scene.background
    right["count"] = len(view.things) == len(scene.things) and view.stray <= STRAY
    if right["count"]:
        pairs = list(zip(scene.things, _matched(scene, view), strict=True))
        for part in ("colour", "shape", "size"):
            right[part] = all(getattr(said, part) == getattr(seen, part) for said, seen in pairs)
        right["place"] = _placed(scene, [seen for _, seen in pairs], view.size)
    right["all"] = all(right.values())
    return right


def _matched(scene: Scene, view: View) -> tuple[Seen, ...]:
    """The blobs in the order of the scene's things: by place, since that is how captions bind."""
    centres = [cell_centre(t, view.size) for t in scene.things]

    def strain(order: tuple[Seen, ...]) -> float:
        return sum(
            (seen.x - x) ** 2 + (seen.y - y) ** 2
            for seen, (x, y) in zip(order, centres, strict=True)
        )

    return min(permutations(view.things), key=strain)


def _placed(scene: Scene, seen: list[Seen], size: Size) -> bool:
    """Whether things stand where they should: in their cells, or in their relation or row."""
    if scene.kind == "relation":
        across = RELATIONS[scene.relation][0] in (3, 5)
        first, second = seen
        dx, dy = second.x - first.x, second.y - first.y
        along, aside = (dx, dy) if across else (dy, dx)
        sign = 1 if scene.relation in ("left of", "above") else -1
        return sign * along > max(10.0, abs(aside))
    if scene.kind == "row":
        xs, ys = [s.x for s in seen], [s.y for s in seen]
        return bool(min(np.diff(xs)) > 10) and max(ys) - min(ys) < 12
    return all(_cell(s, size) == t.cell for s, t in zip(seen, scene.things, strict=True))


def _cell(seen: Seen, size: Size) -> int:
    """The cell a blob stands nearest to, of the nine for a thing like it."""
    shape, named = seen.shape or "circle", seen.size or "medium"

    def strain(cell: int) -> float:
        x, y = cell_centre(Thing(seen.colour, shape, named, cell), size)
        return (seen.x - x) ** 2 + (seen.y - y) ** 2

    return min(range(9), key=strain)
