"""Corruptions that lay something over an image or change its colours; recipes and strengths: corrupt.py.

Each takes an image uint8 (S, S, 3), its strength and a generator, and gives float (S, S, 3) of 0 to 255.
"""

import math

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from unfreeze.data.pixels.blurs import streak, zoomed

_GREY = np.array([0.299, 0.587, 0.114])
_WATER = np.array([175, 238, 238]) / 255  # pale turquoise
_MUD = np.array([63, 42, 20]) / 255
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def snow(image: np.ndarray, strength: tuple[float, ...], rng: Generator) -> np.ndarray:
    """A whitened image under flakes: noise, enlarged, thresholded, and blown along a slant."""
    mean, deviation, zoom, threshold, radius, sigma, kept = strength
    pixels = image / 255
    layer = zoomed(rng.normal(mean, deviation, image.shape[:2]), zoom)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    flakes = streak(layer, radius, sigma, angle=rng.uniform(-135, -45))[..., None]
    white = np.maximum(pixels, (pixels @ _GREY)[..., None] * 1.5 + 0.5)
    return 255 * (kept * pixels + (1 - kept) * white + flakes + np.rot90(flakes, k=2))


def fog(image: np.ndarray, strength: tuple[float, float], rng: Generator) -> np.ndarray:
    amount, decay = strength
    pixels, side = image / 255, len(image)
    brightest = pixels.max()
    hazy = pixels + amount * _plasma(side, decay, rng)[:side, :side, None]
    return 255 * hazy * brightest / (brightest + amount)


def _plasma(side: int, decay: float, rng: Generator) -> np.ndarray:
    """Clouds, by diamonds and squares: float (P, P) of 0 to 1, P the power of two from ``side`` on; edges join."""
    size = 1 << (side - 1).bit_length()
    heights, step, spread = np.zeros((size, size)), size, 1.0

    def between(*neighbours: np.ndarray) -> np.ndarray:
        return sum(neighbours) / 4 + rng.uniform(-spread, spread, neighbours[0].shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        right, below = np.roll(corners, -1, 1), np.roll(corners, -1, 0)
        middles = between(corners, right, below, np.roll(below, -1, 1))
        heights[half::step, half::step] = middles
        heights[::step, half::step] = between(corners, right, middles, np.roll(middles, 1, 0))
        heights[half::step, ::step] = between(corners, below, middles, np.roll(middles, 1, 1))
        step, spread = half, spread / decay**2
    heights -= heights.min()
    return heights / max(heights.max(), 1e-12)


def brightness(image: np.ndarray, added: float, _: Generator) -> np.ndarray:
    """The value of hue, saturation and value raised: all three colours by one factor."""
    pixels = image / 255
    value = pixels.max(-1, keepdims=True)
    raised = np.minimum(value + added, 1)
    return 255 * np.where(value > 0, pixels * raised / np.maximum(value, 1e-12), raised)


def contrast(image: np.ndarray, share: float, _: Generator) -> np.ndarray:
    means = image.mean((0, 1))
    return (image - means) * share + means


def saturate(image: np.ndarray, strength: tuple[float, float], _: Generator) -> np.ndarray:
    """The distance of each colour from the largest one stretched; grey counts as red, whose hue is 0."""
    factor, added = strength
    pixels = image / 255
    value = pixels.max(-1, keepdims=True)
    saturation = 1 - pixels.min(-1, keepdims=True) / np.maximum(value, 1e-12)
    target = np.clip(saturation * factor + added, 0, 1)
    red = value * np.concatenate([np.ones_like(target), 1 - target, 1 - target], axis=-1)
    coloured = value - (value - pixels) * target / np.maximum(saturation, 1e-12)
    return 255 * np.where((saturation > 0) & (value > 0), coloured, red)


def spatter(image: np.ndarray, strength: tuple[float, ...], rng: Generator) -> np.ndarray:
    """Drops of water that shine at one edge, or of mud."""
    mean, deviation, sigma, threshold, amount, is_mud = strength
    pixels = image / 255
    liquid = ndimage.gaussian_filter(rng.normal(mean, deviation, image.shape[:2]), sigma, mode="nearest")
    wet = liquid >= threshold
    if is_mud:
        cover = ndimage.gaussian_filter(wet.astype(np.float64), amount, mode="nearest")[..., None]
        cover = np.where(cover < 0.8, 0, cover)
        return 255 * (pixels * (1 - cover) + cover * _MUD)
    layer = np.floor(255 * np.clip(np.where(wet, liquid, 0), 0, 1))
    shine = (layer * _relief(layer))[..., None]
    return 255 * (pixels + shine / max(shine.max(), 1e-12) * amount * _WATER)


def _relief(layer: np.ndarray) -> np.ndarray:
    """How much each pixel of a drop shines, float (S, S): the distance to its outline, equalised and lit from a corner.

    ``layer``: whole numbers of 0 to 255. As OpenCV's distanceTransform, blur, equalizeHist and filter2D on 8 bits.
    """
    distance = np.minimum(_distance(outline(layer)), 20)
    smooth = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8)
    counts = np.bincount(smooth.ravel(), minlength=256).cumsum()
    lowest = counts[smooth.min()]
    equal = np.rint(255 * (counts - lowest) / (smooth.size - lowest))[smooth] if lowest < smooth.size else smooth
    lit = np.clip(ndimage.correlate(equal.astype(np.float64), _EMBOSS, mode="mirror"), 0, 255)
    return np.rint(ndimage.uniform_filter(lit, 3, mode="mirror"))


def _distance(edges: np.ndarray) -> np.ndarray:
    """To the nearest edge in steps of 1 (straight), 1.4 (diagonal) and 2.1969 (a knight's), as OpenCV measures it."""
    if not edges.any():
        return np.full(edges.shape, np.inf)
    nearest = ndimage.distance_transform_edt(~edges, return_distances=False, return_indices=True)
    away = np.abs(nearest - np.indices(edges.shape))
    long, short = away.max(0), away.min(0)
    knights = np.where(2 * short <= long, short, long - short)
    diagonals = np.maximum(2 * short - long, 0)
    return 2.1969 * knights + 1.4 * diagonals + np.maximum(long - 2 * short, 0)


def outline(layer: np.ndarray) -> np.ndarray:
    """Edges by Canny's detector with thresholds 50 and 150, bool (S, S), as OpenCV finds them: Sobel's derivatives,
    |dx| + |dy| as their size, no smoothing beforehand."""
    across, down = (ndimage.sobel(layer, axis, mode="nearest") for axis in (1, 0))
    size = np.pad(np.abs(across) + np.abs(down), 1)

    def beside(rows: int, columns: int) -> np.ndarray:
        return size[1 + rows : len(layer) + 1 + rows, 1 + columns : len(layer) + 1 + columns]

    middle, steep, flat = beside(0, 0), np.abs(down), np.abs(across)
    tangent = math.tan(math.pi / 8)
    level, upright = steep < tangent * flat, steep > (tangent + 2) * flat  # within 22.5° of an axis
    rising = np.where(np.signbit(across) == np.signbit(down), beside(-1, -1), beside(-1, 1))
    falling = np.where(np.signbit(across) == np.signbit(down), beside(1, 1), beside(1, -1))
    largest = np.select(
        [level, upright],
        [
            (middle > beside(0, -1)) & (middle >= beside(0, 1)),
            (middle > beside(-1, 0)) & (middle >= beside(1, 0)),
        ],
        (middle > rising) & (middle > falling),
    )
    candidates = largest & (middle > 50)
    groups, _ = ndimage.label(candidates, structure=np.ones((3, 3)))
    strong = np.unique(groups[candidates & (middle > 150)])
    return np.isin(groups, strong[strong > 0])
