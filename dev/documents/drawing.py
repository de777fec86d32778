"""Boxes, arrows and texts as SVG, readable on light and on dark pages, without fonts from outside."""

import math
from dataclasses import dataclass, field
from html import escape

STYLE = """
    svg { color-scheme: light dark; font: 12px ui-sans-serif, system-ui, sans-serif; }
    rect { fill: #f3f6fa; stroke: #44546a; stroke-width: 1.4; }
    rect.group { fill: none; stroke-dasharray: 5 4; }
    rect.good, path.good { fill: #d9efe0; stroke: #2b7a4b; }
    rect.warm { fill: #fdf0d8; stroke: #b26a00; }
    rect.bad { fill: #fbe0dd; stroke: #c0392b; }
    text { fill: #1c2530; text-anchor: middle; }
    text.title { font-weight: 600; font-size: 13px; }
    text.small { font-size: 10.5px; fill: #44546a; }
    text.left { text-anchor: start; }
    path { fill: none; stroke: #6b7c93; stroke-width: 1.4; }
    path.warm { stroke: #b26a00; }
    path.bad { stroke: #c0392b; }
    path.good { fill: none; }
    marker path { fill: #6b7c93; stroke: none; }
    @media (prefers-color-scheme: dark) {
      rect { fill: #1f2733; stroke: #9fb0c7; }
      rect.group { fill: none; }
      rect.good { fill: #1d3a2a; stroke: #6fcf97; }
      rect.warm { fill: #40331b; stroke: #f0b45a; }
      rect.bad { fill: #45241f; stroke: #ff8a7a; }
      text { fill: #e6edf5; }
      text.small { fill: #b3c0d1; }
      path { stroke: #8fa1ba; }
      path.warm { stroke: #f0b45a; }
      path.bad { stroke: #ff8a7a; }
      path.good { stroke: #6fcf97; }
      marker path { fill: #8fa1ba; }
    }
"""
LINE_HEIGHT = 15
_TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0 0 L8 4 L0 8 Z"/></marker></defs>'
)


@dataclass(frozen=True, slots=True)
class Box:
    """A box by its centre."""

    x: float
    y: float
    width: float = 130
    height: float = 44


@dataclass(slots=True)
class Picture:
    """A drawing that grows by what is added."""

    label: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)
    arrows: list[str] = field(default_factory=list)  # behind the boxes
    labels: list[str] = field(default_factory=list)  # before them

    def add_box(self, box: Box, title: str, lines: tuple[str, ...] = (), kind: str = "") -> Box:
        """A box with a title and smaller lines under it."""
        left, top = box.x - box.width / 2, box.y - box.height / 2
        self.parts.append(
            f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{box.width:g}" height="{box.height:g}" rx="8"/>'
        )
        first = box.y + 4 - len(lines) * LINE_HEIGHT / 2
        self.add_text(box.x, first, title, "title")
        for number, line in enumerate(lines, start=1):
            self.add_text(box.x, first + number * LINE_HEIGHT, line, "small")
        return box

    def add_group(self, left: float, top: float, width: float, height: float, title: str) -> None:
        """A dashed frame around boxes."""
        self.parts.append(
            f'<rect class="group" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="10"/>'
        )
        self.add_text(left + 12, top + 18, title, "small left")

    def add_text(self, x: float, y: float, text: str, kind: str = "small") -> None:
        """One line of text."""
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def add_arrow(
        self, start: Box, end: Box, text: str = "", kind: str = "", bend: float = 0, *, both: bool = False
    ) -> None:
        """An arrow from rim to rim, with a text at its middle."""
        (x1, y1), (x2, y2) = _rim(start, end), _rim(end, start)
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        middle_x = (x1 + x2) / 2 + bend * (y2 - y1) / length
        middle_y = (y1 + y2) / 2 - bend * (x2 - x1) / length
        tips = ' marker-start="url(#tip)"' if both else ""
        way = f"M{x1:.0f} {y1:.0f} Q{middle_x:.0f} {middle_y:.0f} {x2:.0f} {y2:.0f}"
        self.arrows.append(f'<path class="{kind}" d="{way}" marker-end="url(#tip)"{tips}/>')
        if text:
            x, y = (x1 + 2 * middle_x + x2) / 4, (y1 + 2 * middle_y + y2) / 4 - 5
            self.labels.append(f'<text class="small" x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>')

    def render(self) -> str:
        """The whole file."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(self.label)}">'
        body = "\n".join(f"  {part}" for part in (*self.arrows, *self.parts, *self.labels))
        return f"{head}\n  <style>{STYLE}  </style>\n  {_TIP}\n{body}\n</svg>\n"


def _rim(box: Box, towards: Box) -> tuple[float, float]:
    """The point of a box's rim on the line to another."""
    over, down = towards.x - box.x, towards.y - box.y
    scale = min(
        (box.width / 2 + 3) / abs(over) if over else math.inf, (box.height / 2 + 3) / abs(down) if down else math.inf
    )
    return box.x + over * scale, box.y + down * scale
