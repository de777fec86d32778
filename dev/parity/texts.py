"""Record the stock tokeniser's ids of more than 2,000 odd texts, or compare them with the recorded ones.

    python -m dev.parity.texts            write tests/ofa/fixtures/odd_texts.json.gz
    python -m dev.parity.texts --check    record again and compare; exit code 1 if anything differs

The stock pipeline makes prompt and ids; every fourth text has another one as its premise. Texts in which it finds
special tokens are recorded twice: as it reads them, and with its search for special tokens turned off, as our engine
reads them. The merges are trained on the texts, so that odd bytes are merged too.
"""

import argparse
import gzip
import itertools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dev.parity.make_model import Recipe, make_model
from dev.parity.odd_texts import FILE, LETTERS, odd_texts, read_record, vocabulary_of
from dev.parity.oracle import Oracle, versions
from dev.parity.pictures import FOLDER as PICTURES

TOKENS = 1024  # of the vocabulary
MAX_TOKENS = 120  # of a prompt
_PICTURE = PICTURES / "grey.jpg"


def questions() -> Iterator[tuple[str, str]]:
    """Statement and premise."""
    texts = odd_texts()
    for number, text in enumerate(texts):
        yield text, texts[number * 7 % len(texts)] if number % 4 == 0 else ""


def train_merges(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Train a byte-level BPE: merge the most frequent pair, `count` times; of equal ones the smallest."""
    words = Counter(f" {word}".encode() for text in texts for word in text.split(" "))
    split = [([LETTERS[byte] for byte in word], times) for word, times in words.items()]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts, times in split:
            for pair in itertools.pairwise(parts):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts, _ in split:
            _merge(parts, best)
    return merges


def _merge(parts: list[str], pair: tuple[str, str]) -> None:
    at = 0
    while at < len(parts) - 1:
        if (parts[at], parts[at + 1]) == pair:
            parts[at : at + 2] = ["".join(pair)]
        at += 1


def record() -> dict[str, Any]:
    """What the stock pipeline reads."""
    asked = list(questions())
    merges = train_merges([f"{text} {text.lower()}" for text, _ in asked], TOKENS)
    while len(vocabulary_of(merges)) > TOKENS:
        merges.pop()  # two pairs can make the same token
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, Recipe(pipeline={"max_src_length": MAX_TOKENS}))
        lines = "".join(f"{left} {right}\n" for left, right in merges)
        (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
        (folder / "vocab.json").write_text(json.dumps(vocabulary_of(merges)), encoding="utf-8")
        oracle = Oracle(folder)
        stock = [oracle.tokens(_PICTURE, *one) for one in asked]
        oracle.find_special_tokens(enabled=False)
        plain = [oracle.tokens(_PICTURE, *one) for one in asked]
    rows = [
        [*one, _joined(ids), *([_joined(theirs)] if ids != theirs else [])]
        for one, ids, theirs in zip(asked, plain, stock, strict=True)
    ]
    merged = " ".join(f"{left} {right}" for left, right in merges)
    return {"oracle": versions(), "max_tokens": MAX_TOKENS, "merges": merged, "texts": rows}


def _joined(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def main(arguments: Sequence[str]) -> int:
    """Write or check the record and return the exit code."""
    parser = argparse.ArgumentParser(prog="texts", description="Record the stock tokeniser's ids of odd texts.")
    parser.add_argument("--check", action="store_true", help="compare with the record instead of writing it")
    options = parser.parse_args(arguments)
    made = record()
    spelled = sum(len(row) > 3 for row in made["texts"])
    print(f"odd texts: {len(made['texts'])}, of which {spelled} spell special tokens")
    if options.check:
        recorded = read_record()
        wrong = [key for key in made if made[key] != recorded[key]]
        rows = sum(one != other for one, other in zip(made["texts"], recorded["texts"], strict=False))
        print(f"odd texts: {rows} differ from the record;", "different:" if wrong else "all the same", *wrong)
        return 1 if wrong else 0
    content = json.dumps(made, separators=(",", ":")).encode("ascii")
    FILE.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
