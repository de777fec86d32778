"""Write the golden set: `python -m examples.shapes.golden FOLDER`.

200 items over 100 pictures, from a part of the dataset that is used for nothing else: one line of `golden.jsonl` an
item, with its picture, its statements and the answers expected. All kinds and all answers come equally often.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from examples.shapes.dataset import KINDS, Item, Part, items
from examples.shapes.logic import Answer
from examples.shapes.statements import Kind, Statement

ITEMS = 200
ITEMS_A_PICTURE = 2
SIDE_PIXELS = 96
_INKS = 128  # a palette keeps noisy pictures small
_LARGEST_SHARE = -(-ITEMS // (len(KINDS) * len(Answer)))  # items of a kind with the same answer


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description="Write the golden set of the demo model.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (item, chosen) in enumerate(golden_pictures(), start=1):
        name = f"shapes-{number:03}.png"
        small(item).save(folder / name, optimize=True)
        lines += [_line(f"shapes-{number:03}-{which}", name, said) for which, said in zip("ab", chosen, strict=True)]
    (folder / "golden.jsonl").write_text("".join(lines), encoding="utf-8")


def golden_pictures() -> Iterator[tuple[Item, list[Statement]]]:
    """The pictures, each with the statements chosen for it."""
    shares: Counter[tuple[Kind, Answer]] = Counter()
    made = 0
    for item in items(Part.GOLDEN, 0, 10 * ITEMS, per_kind=1):
        fitting = [said for said in item.statements if shares[said.kind, said.answer] < _LARGEST_SHARE]
        chosen = sorted(fitting, key=lambda said: shares[said.kind, said.answer])[:ITEMS_A_PICTURE]
        if len(chosen) < ITEMS_A_PICTURE:
            continue
        shares.update((said.kind, said.answer) for said in chosen)
        yield item, chosen
        made += len(chosen)
        if made >= ITEMS:
            return


def small(item: Item) -> Image.Image:
    """Draw the item's picture in few pixels and colours."""
    picture = dataclasses.replace(item, side_pixels=SIDE_PIXELS).picture()
    return picture.quantize(_INKS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def _line(name: str, image: str, said: Statement) -> str:
    entry = {"item": name, "image": image, "statements": [said.text], "expected": [said.answer]}
    return json.dumps(entry, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
