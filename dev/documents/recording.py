"""Draws a recorded terminal session as an SVG that plays itself."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from dev.documents.blocks import ROOT

DATA = ROOT / "docs/pictures/recording.json"
PICTURE = ROOT / "docs/pictures/recording.svg"
COLUMNS, ROWS = 100, 24
CHARACTER_WIDTH, LINE_HEIGHT, MARGIN = 8.0, 18, 14
TYPE_SECONDS, READ_SECONDS, LINE_SECONDS, END_SECONDS = 1.2, 2.2, 0.04, 4.0
_SGR = re.compile(r"\x1b\[([0-9;]*)m")
_OTHER = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")
_SPINNER = re.compile(
    r"^(?:\x1b\[[0-9;]*m)*[\u2800-\u28ff].*\n\n?", re.MULTILINE
)  # a line that a terminal erases again
_CLASSES = {"1": "b", "2": "d", "31": "r", "32": "g", "33": "y", "34": "u", "35": "m", "36": "c"}
_STYLE = """
    text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #d7dee8; white-space: pre; }
    .screen { fill: #161b22; stroke: #3c4654; }
    .p { fill: #6fcf97; } .b { font-weight: 700; } .d { fill: #8b97a7; } .r { fill: #ff8a7a; } .g { fill: #6fcf97; }
    .y { fill: #f0b45a; } .u { fill: #79b8ff; } .m { fill: #d2a8ff; } .c { fill: #76e3ea; }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the terminal, and when it appears."""

    at: float
    spans: tuple[tuple[str, str], ...]  # class and text


def draw() -> str:
    """The picture; without animations it shows the end of the session."""
    lines, length = _lay_out(json.loads(DATA.read_text("utf-8")))
    width, height = int(COLUMNS * CHARACTER_WIDTH) + 2 * MARGIN, ROWS * LINE_HEIGHT + 2 * MARGIN
    keyframes = "".join(_make_keyframes(number, line.at / length) for number, line in enumerate(lines))
    scroll = _make_scroll(lines, length)
    motion = (
        "@media (prefers-reduced-motion: no-preference) {\n"
        f"      .l {{ animation-duration: {length:.1f}s; animation-iteration-count: infinite; animation-timing-function: step-end; }}\n"
        f"      .s {{ animation: s {length:.1f}s step-end infinite; }}\n    }}"
    )
    texts = "\n".join(_draw_line(number, line) for number, line in enumerate(lines))
    end = -max(0, len(lines) - ROWS) * LINE_HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="A terminal: a request, a published revision, its trial, the commit, a rollback">\n'
        f"  <style>{_STYLE}    {motion}\n{keyframes}{scroll}  </style>\n"
        f'  <clipPath id="c"><rect x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN}" height="{ROWS * LINE_HEIGHT}"/></clipPath>\n'
        f'  <rect class="screen" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="9"/>\n'
        f'  <g clip-path="url(#c)"><g class="s" transform="translate(0 {end})">\n{texts}\n  </g></g>\n</svg>\n'
    )


def _lay_out(steps: list[dict[str, str]]) -> tuple[list[Line], float]:
    now, lines = 0.6, []
    for step in steps:
        lines.append(Line(now, (("p", "$ "), ("b", step["command"]))))
        now += TYPE_SECONDS
        for text in _SPINNER.sub("", _OTHER.sub("", step["output"]).replace("\r", "")).rstrip("\n").split("\n"):
            lines.append(Line(now, tuple(_read_spans(text.rstrip()))))
            now += LINE_SECONDS
        lines.append(Line(now, ()))
        now += READ_SECONDS
    return lines[:-1], now + END_SECONDS


def _read_spans(text: str) -> Iterator[tuple[str, str]]:
    """The parts of a line with the classes of their colours."""
    kinds: list[str] = []
    for number, part in enumerate(_SGR.split(text)):
        if number % 2:
            codes = part.split(";")
            kinds = [] if codes in (["0"], [""]) else kinds + [_CLASSES[code] for code in codes if code in _CLASSES]
        elif part:
            yield " ".join(kinds), part


def _draw_line(number: int, line: Line) -> str:
    y = MARGIN + (number + 1) * LINE_HEIGHT - 5
    spans = "".join(
        f'<tspan class="{kind}">{escape(text)}</tspan>' if kind else escape(text) for kind, text in line.spans
    )
    return (
        f'    <text class="l" style="animation-name:l{number}" x="{MARGIN}" y="{y}" xml:space="preserve">{spans}</text>'
    )


def _make_keyframes(number: int, share: float) -> str:
    return f"    @keyframes l{number} {{ 0% {{ opacity: 0 }} {100 * share:.2f}% {{ opacity: 1 }} 100% {{ opacity: 1 }} }}\n"


def _make_scroll(lines: list[Line], length: float) -> str:
    """The picture moves up by a line whenever one appears under the last row."""
    moves = "".join(
        f"{100 * line.at / length:.2f}% {{ transform: translateY(-{(number + 1 - ROWS) * LINE_HEIGHT}px) }} "
        for number, line in enumerate(lines)
        if number >= ROWS
    )
    last = max(0, len(lines) - ROWS) * LINE_HEIGHT
    return (
        f"    @keyframes s {{ 0% {{ transform: translateY(0) }} {moves}100% {{ transform: translateY(-{last}px) }} }}\n"
    )
