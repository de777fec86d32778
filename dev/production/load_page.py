"""The page of a load report: latency and answers over time as SVG, with swaps and kills marked. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 960, 300, 60, 40, 20, 40
BINS = 150
COLOURS = ("#2166ac", "#1b7837", "#762a83")
Point = tuple[float, float, str]  # seconds after the start, seconds that the call took, revision that answered


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened."""

    at: float  # seconds after the start
    name: str


@dataclass(frozen=True, slots=True)
class LoadPage:
    """What the page shows."""

    sentence: str
    circumstances: str
    points: Sequence[Point]
    marks: Sequence[Mark]
    failed: Sequence[str]


def render_page(page: LoadPage) -> str:
    """The page as one HTML file without scripts."""
    marks = "".join(f"<li>{mark.at:.1f} s: {escape(mark.name)}</li>" for mark in page.marks)
    failed = "".join(f"<li>{escape(line)}</li>" for line in page.failed[:50])
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Load report</title>
<style>body {{ font: 15px sans-serif; max-width: 1000px; margin: 2em auto }}</style></head><body>
<h1>Load report</h1>
<p>{escape(page.sentence)}.</p>
<p>{escape(page.circumstances)}.</p>
<h2>Latency over time</h2>
<p>Of each slice of time: median (line), 99 of 100 calls (dots), the slowest (bars). Logarithmic.</p>
{draw_latency(page.points, page.marks)}
<h2>Answers a second, by revision</h2>
{draw_answers(page.points, page.marks)}
<h2>What happened</h2><ul>{marks}</ul>
{f"<h2>Failed calls</h2><ul>{failed}</ul>" if failed else ""}
</body></html>
"""


def draw_latency(points: Sequence[Point], marks: Sequence[Mark]) -> str:
    """Median, 99th percentile and slowest call of each slice."""
    end = _end(points)
    bins = [sorted(seconds for at, seconds, _ in row) for row in _binned(points, end)]
    top = max((row[-1] for row in bins if row), default=1.0)
    low = min((row[0] for row in bins if row), default=0.001)

    def y(seconds: float) -> float:
        span = math.log10(top / low) or 1.0
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log10(max(seconds, low) / low) / span

    parts, median = [], []
    for number, row in enumerate(bins):
        if not row:
            continue
        x = _x((number + 0.5) * end / BINS, end)
        median.append(f"{x:.1f},{y(row[len(row) // 2]):.1f}")
        parts.append(_line(x, HEIGHT - BOTTOM, x, y(row[-1]), "#cccccc", 3))
        parts.append(f'<circle cx="{x:.1f}" cy="{y(row[int(len(row) * 0.99)]):.1f}" r="2" fill="#c51b7d"/>')
    parts.append(f'<polyline points="{" ".join(median)}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>')
    steps = range(math.floor(math.log10(low)), math.ceil(math.log10(top)) + 1)
    ticks = [10.0**power for power in steps if low <= 10.0**power <= top]
    labels = [_text(LEFT - 6, y(tick) + 4, f"{tick * 1000:g} ms", "end") for tick in ticks]
    return _chart([*parts, *labels], marks, end)


def draw_answers(points: Sequence[Point], marks: Sequence[Mark]) -> str:
    """A line for each revision."""
    end = _end(points)
    bins = [[revision for _, _, revision in row] for row in _binned(points, end)]
    names = sorted({revision for _, _, revision in points})
    top = max((len(row) for row in bins), default=1) * BINS / end
    parts = []
    for colour, name in zip(COLOURS, names, strict=False):
        line = []
        for number, row in enumerate(bins):
            rate = row.count(name) * BINS / end
            y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / (top or 1.0)
            line.append(f"{_x((number + 0.5) * end / BINS, end):.1f},{y:.1f}")
        parts.append(f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        place = LEFT + 8 + 120 * names.index(name)
        parts.append(_text(place, HEIGHT - BOTTOM - 8, name, "start", colour))
    parts += [_text(LEFT - 6, TOP + 4, f"{top:.0f} /s", "end"), _text(LEFT - 6, HEIGHT - BOTTOM + 4, "0", "end")]
    return _chart(parts, marks, end)


def _binned(points: Sequence[Point], end: float) -> list[list[Point]]:
    bins: list[list[Point]] = [[] for _ in range(BINS)]
    for point in points:
        bins[min(BINS - 1, int(point[0] / end * BINS))].append(point)
    return bins


def _chart(parts: Sequence[str], marks: Sequence[Mark], end: float) -> str:
    frame = [_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#888888", 1)]
    for number in range(6):
        at = end * number / 5
        frame.append(_text(_x(at, end), HEIGHT - BOTTOM + 18, f"{at:.0f} s", "middle"))
    for number, mark in enumerate(marks):
        x = _x(mark.at, end)
        frame.append(_line(x, TOP, x, HEIGHT - BOTTOM, "#d95f02", 1, dashed=True))
        frame.append(_text(x + 3, 12 + 12 * (number % 3), mark.name, "start", "#d95f02"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return "\n".join([head, ' font-family="sans-serif" font-size="11">', *frame, *parts, "</svg>"])


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-width="{width}"{dash}/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _x(at: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, at / end)


def _end(points: Sequence[Point]) -> float:
    return max((at for at, _, _ in points), default=1.0) or 1.0
