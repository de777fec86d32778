"""The traffic of the last hour as SVG. Pure; colours come from the style sheet, and lines differ by dashes as well."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from html import escape

from console.history import SPAN_SECONDS, Point, Rate, list_digests

WIDTH, HEIGHT = 640, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 22
_LINES = 4  # kinds of lines in the style sheet
_LEAST_SPAN_SECONDS = 120.0
_TICKS = 4


def draw_rates(points: Sequence[Point], names: Mapping[str, str], title: str) -> str:
    """Answers a second by revision, with swaps marked."""
    return _draw(points, names, title, (("", lambda rate: rate.answered),), "{:.0f}")


def draw_latencies(points: Sequence[Point], names: Mapping[str, str], title: str) -> str:
    """p50 and p99 in milliseconds by revision; p99 is the thin line."""
    wanted: tuple[tuple[str, Callable[[Rate], float | None]], ...] = (
        ("", lambda rate: None if rate.p50 is None else rate.p50 * 1000),
        (" thin", lambda rate: None if rate.p99 is None else rate.p99 * 1000),
    )
    return _draw(points, names, title, wanted, "{:.0f} ms")


def _draw(
    points: Sequence[Point],
    names: Mapping[str, str],
    title: str,
    wanted: Sequence[tuple[str, Callable[[Rate], float | None]]],
    unit: str,
) -> str:
    end = points[-1].at if points else 0.0
    span = min(SPAN_SECONDS, max(_LEAST_SPAN_SECONDS, end - points[0].at if points else 0.0))
    digests = list_digests(points)
    values = [
        value
        for point in points
        for rate in point.rates.values()
        for _, read in wanted
        if (value := read(rate)) is not None
    ]
    top = _round_up(max(values, default=0.0))

    def x(at: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * max(0.0, 1 - (end - at) / span)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * min(1.0, value / top)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>']
    parts += [*_draw_grid(top, unit, y), *_mark_times(points, span, x)]
    for number, digest in enumerate(digests):
        for style, read in wanted:
            parts += _draw_line(points, digest, read, f"line line-{number % _LINES}{style}", x, y)
    for point in points:
        if point.swapped_to:
            name = escape(names.get(point.swapped_to, point.swapped_to[7:15]))
            at = x(point.at)
            parts.append(f'<line class="swap" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
            parts.append(f'<text class="swap-name" x="{at + 3:.1f}" y="{_TOP + 8}">{name}</text>')
    return "".join([*parts, "</svg>"])


def _draw_grid(top: float, unit: str, y: Callable[[float], float]) -> list[str]:
    parts = []
    for tick in range(_TICKS + 1):
        value = top * tick / _TICKS
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        if tick % 2 == 0:
            label = escape(unit.format(value) if top >= _TICKS else f"{value:.2g}")
            parts.append(f'<text class="tick end" x="{_LEFT - 5}" y="{y(value) + 4:.1f}">{label}</text>')
    return parts


def _draw_line(
    points: Sequence[Point],
    digest: str,
    read: Callable[[Rate], float | None],
    style: str,
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> list[str]:
    """A line with a gap wherever the revision has no value."""
    runs: list[list[str]] = [[]]
    for point in points:
        rate = point.rates.get(digest)
        value = None if rate is None else read(rate)
        if value is None:
            runs.append([])
        else:
            runs[-1].append(f"{x(point.at):.1f},{y(value):.1f}")
    return [f'<polyline class="{style}" points="{" ".join(run)}"/>' for run in runs if run]


def _mark_times(points: Sequence[Point], span: float, x: Callable[[float], float]) -> list[str]:
    if not points:
        return []
    places = [points[0], points[len(points) // 2], points[-1]] if len(points) > _TICKS else [points[-1]]
    kinds = ("start", "middle", "end")[-len(places) :]
    return [
        f'<text class="tick {kind}" x="{x(point.at):.1f}" y="{HEIGHT - 6}">{_clock(point.wall)}</text>'
        for kind, point in zip(kinds, places, strict=True)
        if points[-1].at - point.at <= span
    ]


def _clock(at: datetime) -> str:
    return f"{at:%H:%M:%S}"


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50, … that is not less."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if factor * step >= value:
                return factor * step
        step *= 10
