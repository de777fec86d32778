"""Count the demo model's answers that change when a statement is written with characters that look the same.

python -m dev.parity.look_alikes      each way of writing: as it is, and as the server reads it by default
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dev.parity.items import golden_questions
from dev.parity.ours import ask, load_source
from inference.server.api.texts import as_seen

_ITEMS = 100  # of the demo's golden set
_DEMO = Path(__file__).resolve().parents[2] / "examples" / "shapes" / "v1.0.0"


def _between(character: str) -> Callable[[str], str]:
    """Put it in the place of the blank in the middle."""

    def write(text: str) -> str:
        words = text.split(" ")
        half = len(words) // 2
        return f"{' '.join(words[:half])}{character}{' '.join(words[half:])}"

    return write


def _within(character: str) -> Callable[[str], str]:
    """Put it into the longest word."""

    def write(text: str) -> str:
        word = max(text.split(" "), key=len)
        return text.replace(word, f"{word[:2]}{character}{word[2:]}", 1)

    return write


_WAYS: Mapping[str, Callable[[str], str]] = {
    "a line end for a blank": _between("\n"),
    "a tab for a blank": _between("\t"),
    "U+00A0 for a blank": _between("\xa0"),
    "U+3000 for a blank": _between("\u3000"),
    "U+00A0 for every blank": lambda text: text.replace(" ", "\xa0"),
    "U+FEFF at the front": lambda text: f"\ufeff{text}",
    "a tab at the front": lambda text: f"\t{text}",
    "U+200F at the end": lambda text: f"{text}\u200f",
    "U+200B in a word": _within("\u200b"),
    "U+00AD in a word": _within("\xad"),
    "U+0000 in a word": _within("\0"),
}


def main() -> int:
    """Print the table and return the exit code."""
    torch.set_num_threads(1)
    engine = load_source(_DEMO)
    asked = list(golden_questions())[:_ITEMS]
    expected = _labels(ask(engine, asked))
    print(f"of {len(asked)} answers change:   as written   as read")
    for name, write in _WAYS.items():
        written = [replace(one, statement=write(one.statement)) for one in asked]
        read = [replace(one, statement=as_seen(one.statement)) for one in written]
        changed = [sum(map(str.__ne__, expected, _labels(ask(engine, some)))) for some in (written, read)]
        print(f"{name:28} {changed[0]:6} {changed[1]:9}", flush=True)
    return 0


def _labels(scores: Sequence[Mapping[str, float]]) -> list[str]:
    return [max(one, key=lambda label: one[label]) for one in scores]


if __name__ == "__main__":
    sys.exit(main())
