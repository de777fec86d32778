"""Curves as SVG, without a drawing library."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import log10

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 860, 380, 60, 20, 330, 50
FIRST_ANSWERS = 10
COLOURS = ("#1b7837", "#5aae61", "#a6dba0", "#c51b7d", "#762a83", "#2166ac")


@dataclass(frozen=True, slots=True)
class Curve:
    """The share of rollouts that are held, by compared answers."""

    name: str
    held_after: Sequence[int]
    runs: int


def draw_curves(curves: Sequence[Curve], answers: int) -> str:
    """A chart with a logarithmic axis of answers."""
    ticks = [10**power for power in range(1, 9) if FIRST_ANSWERS <= 10**power <= answers]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for tick in ticks:
        x = _x(tick, answers)
        parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:,}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">compared answers</text>')
    for number, curve in enumerate(curves):
        parts += _draw(curve, answers, number)
    return "\n".join([*parts, "</svg>", ""])


def _draw(curve: Curve, answers: int, number: int) -> list[str]:
    colour, y = COLOURS[number % len(COLOURS)], TOP + 12 + 18 * number
    points, held = [(FIRST_ANSWERS, 0.0)], 0.0
    for after in sorted(curve.held_after):
        points.append((after, held))
        held += 1.0 / curve.runs
        points.append((after, held))
    points.append((answers, held))
    line = " ".join(f"{_x(at, answers)},{_y(share)}" for at, share in points)
    x = WIDTH - RIGHT + 14
    return [
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<line x1="{x}" y1="{y - 4}" x2="{x + 18}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>',
        f'<text x="{x + 24}" y="{y}">{escape(curve.name)}</text>',
    ]


def _x(answers: int, most: int) -> float:
    share = log10(max(answers, FIRST_ANSWERS) / FIRST_ANSWERS) / log10(most / FIRST_ANSWERS)
    return round(LEFT + (WIDTH - RIGHT - LEFT) * share, 1)


def _y(share: float) -> float:
    return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share, 1)
