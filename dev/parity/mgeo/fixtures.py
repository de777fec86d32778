"""Record the oracle's answers, or compare them with the recorded ones.

    python -m dev.parity.mgeo.fixtures            write tests/mgeo/fixtures/*.json.gz
    python -m dev.parity.mgeo.fixtures --check    generate them again and compare; exit code 1 if they differ

Of each made-up model: spans of more than 150 addresses and odd texts, with label and probability of each word. Of the
first one also the tokens of more than 5,000 texts.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.engine_files import WEIGHTS
from dev.parity.mgeo.make_model import VARIANTS, Recipe, make_model
from dev.parity.mgeo.oracle import MgeoOracle, versions
from dev.parity.mgeo.record import FOLDER, TOKENS_FILE, read_record
from dev.parity.mgeo.texts import SPECIAL, all_texts
from inference.runner.conversion.tensor_io import TensorReader
from inference.runner.conversion.weight_files import locate_in_file

DIGITS = 7  # of a recorded probability
TOLERANCE = 2e-6  # between processors; each sums in another order
EVERY = 25  # text that is tagged
MAX_CHARACTERS = 60  # of a tagged text: the pipeline cuts longer ones
TOGETHER = 8  # texts of the pipeline's batches


def tagged_texts() -> list[str]:
    """The texts whose spans are recorded; every one has something that the pipeline can read."""
    chosen = [text for text in all_texts() if len(text) <= MAX_CHARACTERS and any(map(str.isalnum, text))]
    return [text for text in chosen if not any(token in text for token in SPECIAL)][::EVERY]


def record(recipe: Recipe) -> dict[str, Any]:
    """The oracle's answers about a generated model.

    Raises:
        RuntimeError: it did not load the generated weights, or a batch has other spans than single calls.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, recipe)
        oracle = MgeoOracle(folder)
        _check_weights(oracle, folder)
        texts = tagged_texts()
        answers = [oracle.ask(text) for text in texts]
        if oracle.ask_batch(texts, TOGETHER) != [answer.spans for answer in answers]:
            raise RuntimeError("the pipeline's batches have other spans than its single calls")
    items = [
        {
            "text": text,
            "spans": answer.spans,
            "labels": answer.labels,
            "probabilities": [round(one, DIGITS) for one in answer.probabilities],
            "stock": [round(one, DIGITS) for one in answer.stock_probabilities],
        }
        for text, answer in zip(texts, answers, strict=True)
    ]
    return {"oracle": versions(), "items": items}


def record_tokens() -> dict[str, Any]:
    """The pipeline's tokens and words of all texts: a row of text, ids, and the words' first and last code points."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, Recipe(preprocessor={"max_length": 160}))
        oracle = MgeoOracle(folder)
        rows: list[list[str]] = []
        for text in all_texts():
            if any(token in text for token in SPECIAL):
                continue
            ids, extents = oracle.tokenize(text)
            places = [str(place) for extent in extents for place in extent]
            rows.append([text, " ".join(map(str, ids)), " ".join(places)])
    return {"oracle": versions(), "texts": rows}


def _check_weights(oracle: MgeoOracle, folder: Path) -> None:
    loaded = oracle.weights()
    places = locate_in_file(next(path for name in WEIGHTS if (path := folder / name).is_file()))
    with TensorReader(places) as reader:
        for name in places:
            known = name.replace(".gamma", ".weight").replace(".beta", ".bias")
            if not torch.equal(loaded[known], reader.get(name)):
                raise RuntimeError(f"the pipeline did not load {name}")


def differences(recorded: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """What differs between two records, in sentences; probabilities may differ by the tolerance."""
    if "texts" in made:
        return [f"text {one[0]!r}" for one, other in zip(recorded["texts"], made["texts"], strict=True) if one != other]
    found: list[str] = []
    for old, new in zip(recorded["items"], made["items"], strict=True):
        pairs = [*zip(old["probabilities"], new["probabilities"], strict=True)]
        gap = max((abs(one - other) for one, other in pairs), default=0.0)
        spans = [list(span) for span in new["spans"]]
        if gap > TOLERANCE or old["text"] != new["text"] or old["spans"] != spans or old["labels"] != new["labels"]:
            found.append(f"text {old['text']!r}: {gap:.1e} apart")
    return found


def main(arguments: Sequence[str]) -> int:
    """Write or check all records and return the exit code."""
    parser = argparse.ArgumentParser(prog="fixtures", description="Record the oracle's answers.")
    parser.add_argument("--check", action="store_true", help="compare with the record instead of writing it")
    options = parser.parse_args(arguments)
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the models are so small that more only wait for each other
    records = {TOKENS_FILE: record_tokens()}
    records |= {FOLDER / f"{name}.json.gz": record(recipe) for name, recipe in VARIANTS.items()}
    wrong = 0
    for path, made in records.items():
        if options.check:
            found = differences(read_record(path), made)
            print(f"{path.name}: {len(found)} differences", *found[:10], sep="\n  ")
            wrong += bool(found)
        else:
            content = json.dumps(made, separators=(",", ":")).encode("ascii")
            path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
            print(f"{path.name}: {len(made.get('items', made.get('texts', ())))} rows, {path.stat().st_size} bytes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
