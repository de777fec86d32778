"""Draw a scene as a picture."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from examples.shapes.scene import RADIUS, Box, Colour, Scene, Shape, Thing

Ink = tuple[int, int, int]

INKS: dict[Colour, Ink] = {
    Colour.RED: (222, 32, 38),
    Colour.GREEN: (34, 150, 54),
    Colour.BLUE: (36, 64, 222),
    Colour.YELLOW: (246, 202, 22),
    Colour.PURPLE: (142, 38, 166),
}
NOISE_SIGMAS = (0.0, 10.0, 20.0)  # of 255, for a picture of 192 pixels
_FINE = 2  # drawn this much larger, then reduced: smooth edges


def draw(scene: Scene, side_pixels: int, seed: int, noise_sigma: float | None = None) -> Image.Image:
    """Draw a scene; the same arguments give the same picture.

    Args:
        scene: what to show.
        side_pixels: width and height of the picture.
        seed: chooses tints, outlines' jitter and noise.
        noise_sigma: strength of the noise, of 255 at 192 pixels; None draws one of `NOISE_SIGMAS`.

    Returns:
        An RGB picture; a grey scene has three equal channels.
    """
    rng = random.Random(seed)
    picture = Image.new("RGB", (side_pixels * _FINE,) * 2, _background(rng, is_grey=scene.is_grey))
    pen = ImageDraw.Draw(picture)
    for thing in scene.things:
        pen_ink = _grey_ink(rng) if scene.is_grey else _tinted(rng, INKS[thing.colour])
        _draw_thing(pen, thing, pen_ink, side_pixels * _FINE, rng)
    if scene.box is not None:
        _draw_box(pen, scene.box, side_pixels * _FINE, rng)
    sigma = rng.choice(NOISE_SIGMAS) if noise_sigma is None else noise_sigma
    return _add_noise(picture.reduce(_FINE), sigma * side_pixels / 192, seed, is_grey=scene.is_grey)


def _background(rng: random.Random, *, is_grey: bool) -> Ink:
    if is_grey:
        return (rng.randint(222, 248),) * 3
    return (rng.randint(220, 255), rng.randint(220, 255), rng.randint(220, 255))


def _grey_ink(rng: random.Random) -> Ink:
    # A tone of its own for each thing, whatever its colour: from real luminance one could guess yellow.
    return (rng.randint(40, 190),) * 3


def _tinted(rng: random.Random, ink: Ink) -> Ink:
    red, green, blue = (min(255, max(0, part + rng.randint(-14, 14))) for part in ink)
    return red, green, blue


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, ink: Ink, scale: int, rng: random.Random) -> None:
    radius = RADIUS[thing.size] * rng.uniform(0.94, 1.06) * scale
    x, y = thing.x * scale, thing.y * scale
    if thing.shape is Shape.CIRCLE:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    elif thing.shape is Shape.SQUARE:
        half = radius * 0.88
        pen.rectangle((x - half, y - half, x + half, y + half), fill=ink)
    elif thing.shape is Shape.TRIANGLE:
        pen.polygon(_corners(x, y + radius * 0.12, (radius * 1.1,) * 3), fill=ink)
    else:
        pen.polygon(_corners(x, y, (radius * 1.1, radius * 0.45) * 5), fill=ink)


def _corners(x: float, y: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners at equal angles around (x, y), the first at the top."""
    turns = [2 * math.pi * number / len(radii) for number in range(len(radii))]
    return [(x + r * math.sin(turn), y - r * math.cos(turn)) for r, turn in zip(radii, turns, strict=True)]


def _draw_box(pen: ImageDraw.ImageDraw, box: Box, scale: int, rng: random.Random) -> None:
    corners = tuple(round(edge * scale) for edge in (box.left, box.top, box.right, box.bottom))
    tone = rng.randint(122, 136)
    pen.rectangle(
        (corners[0], corners[1], corners[2] - 1, corners[3] - 1),
        fill=(tone,) * 3,
        outline=(60, 60, 60),
        width=max(1, scale // 96),
    )


def _add_noise(picture: Image.Image, sigma: float, seed: int, *, is_grey: bool) -> Image.Image:
    if sigma == 0:
        return picture
    pixels = np.asarray(picture, dtype=np.float32)
    shape = (*pixels.shape[:2], 1 if is_grey else 3)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(sigma)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
