"""Draws docs/explanation/slot-states.svg from the table of slot states: `python -m dev.scripts.pair`."""

import math
import sys
from pathlib import Path

from inference.server.model.pair import SLOT_STATES, SlotEvent, SlotState

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "slot-states.svg"
WIDTH, HEIGHT = 1000, 440
BOX_WIDTH, BOX_HEIGHT = 112, 44
PLACES = {  # centre of each state
    SlotState.EMPTY: (90, 205),
    SlotState.STARTING: (300, 205),
    SlotState.READY: (500, 205),
    SlotState.LOADING: (700, 205),
    SlotState.LOADED: (900, 205),
    SlotState.FAILED: (600, 45),
    SlotState.RETIRING: (600, 350),
}
STYLE = """
    svg { color-scheme: light dark; font: 12px ui-sans-serif, system-ui, sans-serif; }
    rect { fill: #f3f6fa; stroke: #44546a; stroke-width: 1.5; }
    text { fill: #1c2530; text-anchor: middle; }
    .state { font-weight: 600; font-size: 13px; }
    .event { font-size: 10.5px; }
    path { fill: none; stroke: #6b7c93; stroke-width: 1.3; }
    .retire { stroke: #b26a00; }
    .end { stroke: #c0392b; }
    marker path { fill: #6b7c93; stroke: none; }
    @media (prefers-color-scheme: dark) {
      rect { fill: #1f2733; stroke: #9fb0c7; }
      text { fill: #e6edf5; }
      path { stroke: #8fa1ba; }
      .retire { stroke: #f0b45a; }
      .end { stroke: #ff8a7a; }
      marker path { fill: #8fa1ba; }
    }
"""
KINDS = {SlotEvent.RETIRE_REQUESTED: "retire", SlotEvent.PROCESS_ENDED: "end"}


def draw() -> str:
    """The picture as SVG, readable on light and on dark pages."""
    edges = [_draw_edge(state, event, after) for (state, event), after in SLOT_STATES.items()]
    boxes = [_draw_box(state) for state in SlotState]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"',
            '     aria-label="States of a slot\'s process">',
            f"  <style>{STYLE}  </style>",
            '  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"',
            '    orient="auto">',
            '    <path d="M0 0 L8 4 L0 8 Z"/></marker></defs>',
            *edges,
            *boxes,
            "</svg>",
            "",
        ]
    )


def _draw_box(state: SlotState) -> str:
    x, y = PLACES[state]
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    box = f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"/>'
    return f'  {box}<text class="state" x="{x}" y="{y + 5}">{state}</text>'


def _draw_edge(state: SlotState, event: SlotEvent, after: SlotState) -> str:
    kind, name = KINDS.get(event, ""), event.lower().replace("_", " ")
    x, y = PLACES[state]
    if state is after:
        top = y + BOX_HEIGHT // 2
        way = f"M{x - 20} {top} C{x - 40} {top + 44} {x + 40} {top + 44} {x + 20} {top}"
        return _path(way, kind) + _label(x, top + 46, name)
    (x1, y1), (x2, y2) = _rim(state, after), _rim(after, state)
    bend = 26 if (after, state) in {(a, b) for (a, _), b in SLOT_STATES.items()} else 0
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    middle_x = (x1 + x2) / 2 + bend * (y2 - y1) / length
    middle_y = (y1 + y2) / 2 - bend * (x2 - x1) / length
    way = f"M{x1:.0f} {y1:.0f} Q{middle_x:.0f} {middle_y:.0f} {x2:.0f} {y2:.0f}"
    return _path(way, kind) + _label((x1 + 2 * middle_x + x2) / 4, (y1 + 2 * middle_y + y2) / 4 - 5, name)


def _rim(state: SlotState, towards: SlotState) -> tuple[float, float]:
    """The point of a state's box on the line to another."""
    (x, y), (to_x, to_y) = PLACES[state], PLACES[towards]
    over, down = to_x - x, to_y - y
    scale = min(
        (BOX_WIDTH / 2 + 3) / abs(over) if over else math.inf, (BOX_HEIGHT / 2 + 3) / abs(down) if down else math.inf
    )
    return x + over * scale, y + down * scale


def _path(way: str, kind: str) -> str:
    return f'  <path class="{kind}" d="{way}" marker-end="url(#tip)"/>'


def _label(x: float, y: float, name: str) -> str:
    return f'<text class="event" x="{x:.0f}" y="{y:.0f}">{name}</text>'


def main() -> int:
    """Write the picture."""
    PICTURE.write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
