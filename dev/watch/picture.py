"""Draws panels with lines as one SVG: a picture of the dashboard for the docs. Pure."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS, WIDTH, HEIGHT, GAP = 3, 400, 210, 14
_COLOURS = ("#5794f2", "#73bf69", "#fade2a", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#96d98d")
_LEFT, _TOP, _BOTTOM, _LEGEND = 58, 34, 24, 30
_MAX_LINES, _MAX_NAMES, _NAME_CHARS = 8, 4, 24
_SMALL = 'fill="#8e8e9e" font-size="10"'
Line = tuple[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class DrawnPanel:
    """One panel with its data."""

    title: str
    unit: str
    lines: Sequence[Line]


def draw_dashboard(panels: Sequence[DrawnPanel]) -> str:
    """All panels in a grid."""
    rows = math.ceil(len(panels) / COLUMNS)
    width, height = COLUMNS * (WIDTH + GAP) + GAP, rows * (HEIGHT + GAP) + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
    text = head + f'<rect width="{width}" height="{height}" fill="#111217"/>\n'
    for number, panel in enumerate(panels):
        x, y = GAP + number % COLUMNS * (WIDTH + GAP), GAP + number // COLUMNS * (HEIGHT + GAP)
        text += f'<g transform="translate({x},{y})">\n{_draw(panel)}</g>\n'
    return text + "</svg>\n"


def format_value(value: float, unit: str) -> str:
    """A value on an axis."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        return f"{value / (1 << 20):.4g} MiB"
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:.3g}"


def _draw(panel: DrawnPanel) -> str:
    text = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="3" fill="#181b1f" stroke="#2c3235"/>\n'
    text += f'<text x="12" y="21" fill="#ccccdc" font-size="13">{html.escape(panel.title)}</text>\n'
    lines = [(name, [point for point in points if math.isfinite(point[1])]) for name, points in panel.lines]
    lines = [line for line in lines if line[1]][:_MAX_LINES]
    if not lines:
        return text + f'<text x="{WIDTH // 2}" y="{HEIGHT // 2}" fill="#8e8e9e" font-size="12">nothing</text>\n'
    times = [at for _, points in lines for at, _ in points]
    highest = max(value for _, points in lines for _, value in points) or 1.0
    begins = min(times)
    lasts = max(1.0, max(times) - begins)
    inner_width, inner_height = WIDTH - _LEFT - 12, HEIGHT - _TOP - _BOTTOM - _LEGEND
    for share in (0.0, 0.5, 1.0):
        y = _TOP + inner_height * (1 - share)
        label = format_value(highest * share, panel.unit)
        text += f'<line x1="{_LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#2c3235"/>'
        text += (
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" fill="#8e8e9e" font-size="10" text-anchor="end">{label}</text>\n'
        )
    for number, (_, points) in enumerate(lines):
        places = " ".join(
            f"{_LEFT + inner_width * (at - begins) / lasts:.1f},{_TOP + inner_height * (1 - value / highest):.1f}"
            for at, value in points
        )
        colour = _COLOURS[number % len(_COLOURS)]
        text += f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.4"/>\n'
    return text + _legend([name for name, _ in lines])


def _legend(names: Sequence[str]) -> str:
    text, shown = "", names[:_MAX_NAMES]
    for number, name in enumerate(shown):
        x = 14 + (number % 2) * (WIDTH // 2 - 8)
        y = HEIGHT - _LEGEND + 4 + (number // 2) * 15
        more = f" … {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES and number == _MAX_NAMES - 1 else ""
        label = html.escape(name if len(name) <= _NAME_CHARS else name[:_NAME_CHARS] + "…") + more
        text += f'<rect x="{x}" y="{y - 7}" width="10" height="3" fill="{_COLOURS[number % len(_COLOURS)]}"/>'
        text += f'<text x="{x + 15}" y="{y - 2}" {_SMALL}>{label}</text>\n'
    return text
