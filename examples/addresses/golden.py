"""Write the golden set: `python -m examples.addresses.golden FOLDER`.

200 addresses from a seed that is used for nothing else, of districts and names that no training has seen: a line of
`golden.jsonl` each, with its parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

from examples.addresses.generate import generate
from examples.addresses.layout import OVERFLOWING, Address

ITEMS, SEED = 200, 31


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description="Write the golden set of the demo model of addresses.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_line(f"address-{number:03}", address) for number, address in enumerate(golden_addresses(), start=1)]
    (folder / "golden.jsonl").write_text("".join(lines), encoding="utf-8")


def golden_addresses() -> list[Address]:
    """The addresses; none has the character on which the overflowing model fails."""
    fitting = (address for address in generate(SEED, is_unseen=True) if OVERFLOWING not in address.text)
    return list(itertools.islice(fitting, ITEMS))


def _line(name: str, address: Address) -> str:
    row = {"item": name, "addresses": [address.text], "expected": [address.parts()]}
    return json.dumps(row, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main()
