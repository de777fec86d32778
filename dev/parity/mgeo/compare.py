"""Send the same texts to the oracle and the engine, and print the differences.

    python -m dev.parity.mgeo.compare            the made-up models: tokens of 5,000 texts, spans of 600
    python -m dev.parity.mgeo.compare --base     a made-up model of 102 M parameters as well (minutes)

The exit code is 1 if in float32 a probability differs by more than 1e-5, or a token, a label or a span differs, but for
texts that spell a special token or are longer than the pipeline reads, which are counted apart.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dev.parity.mgeo.make_model import VARIANTS, Recipe, make_model
from dev.parity.mgeo.oracle import MgeoOracle, versions
from dev.parity.mgeo.ours import load_source
from dev.parity.mgeo.texts import SPECIAL, all_texts
from inference.runner.engines.base import AddressItem
from inference.runner.engines.mgeo.engine import MgeoEngine

TOLERANCE = 1e-5
ASKED = 600  # texts that are tagged; all are tokenised
TOGETHER = 32  # addresses in one device call


@dataclass(slots=True)
class Gap:
    """The differences of one model."""

    texts: int = 0
    special: int = 0  # texts that spell a special token; the pipeline obeys it
    longer: int = 0  # texts that the pipeline cuts
    unread: int = 0  # texts in which the pipeline finds no word, on which it fails
    tokens: int = 0  # texts whose tokens or words differ
    spans: int = 0
    single: int = 0  # texts whose spans alone differ from those in a batch
    max_gap: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether nothing differs that should be equal."""
        return not self.tokens and not self.spans and not self.single and self.max_gap <= TOLERANCE


def compare_model(folder: Path, texts: Sequence[str], asked: int) -> Gap:
    """Compare everything about one published folder."""
    oracle, engine, gap = MgeoOracle(folder), load_source(folder), Gap()
    comparable = [text for text in texts if _compare_tokens(oracle, engine, text, gap)]
    chosen = comparable[:: max(1, len(comparable) // asked)][:asked]
    gap.texts = len(chosen)
    batched = [
        spans for start in range(0, len(chosen), TOGETHER) for spans in tag(engine, chosen[start : start + TOGETHER])
    ]
    for text, ours in zip(chosen, batched, strict=True):
        said = oracle.ask(text)
        gap.spans += [tuple(row) for row in said.spans] != [row[:3] for row in ours]
        alone = tag(engine, [text])[0]
        gap.single += [row[:3] for row in alone] != [row[:3] for row in ours]
        gap.max_gap = max([gap.max_gap, *_probability_gaps(engine, text, said.labels, said.probabilities)])
    return gap


def tag(engine: MgeoEngine, texts: Sequence[str]) -> list[list[tuple[str, int, int, float]]]:
    """The engine's spans of texts in one device call."""
    words = [engine.prepare(AddressItem((text,))).addresses[0] for text in texts]
    return [[(span.kind, span.start, span.end, span.probability) for span in spans] for spans in engine.tag(words)]


def _compare_tokens(oracle: MgeoOracle, engine: MgeoEngine, text: str, gap: Gap) -> bool:
    """Whether a text can be compared further; counts it if its tokens differ."""
    if any(token in text for token in SPECIAL):
        gap.special += 1
        return False
    words = engine.prepare(AddressItem((text,))).addresses[0]
    if not words.first:
        gap.unread += 1
        return False
    if len(words.ids) > engine.config.window - 2:
        gap.longer += 1
        return False
    ids, extents = oracle.tokenize(text)
    if list(words.ids) != ids or list(words.extents) != extents:
        gap.tokens += 1
        return False
    return True


def _probability_gaps(
    engine: MgeoEngine, text: str, labels: Sequence[str], probabilities: Sequence[float]
) -> list[float]:
    """How far each word's probability is from the oracle's; 1 where the label differs."""
    found = engine.label(engine.prepare(AddressItem((text,))).addresses[:1])[0]
    return [
        abs(word.probability - probability) if word.label == label else 1.0
        for word, label, probability in zip(found, labels, probabilities, strict=True)
    ]


def main(arguments: Sequence[str]) -> int:
    """Compare the requested models and return the exit code."""
    parser = argparse.ArgumentParser(prog="compare", description="Compare the MGeo engine with the stock pipeline.")
    parser.add_argument("--base", action="store_true", help="compare at 102 M parameters too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the models are so small that more only wait for each other
    print("oracle:", ", ".join(f"{name} {version}" for name, version in versions().items()))
    print("model       tagged  tokens differ  spans differ  batch differs  max |Δp|  apart: special, longer, unread")
    recipes = {**VARIANTS, **({"base": Recipe(size="base")} if options.base else {})}
    good = True
    for name, recipe in recipes.items():
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder), recipe)
            gap = compare_model(Path(folder), all_texts(), ASKED)
        print(
            f"{name:11} {gap.texts:6} {gap.tokens:14} {gap.spans:13} {gap.single:14}  {gap.max_gap:.1e}"
            f"  {gap.special}, {gap.longer}, {gap.unread}",
            flush=True,
        )
        good &= gap.is_good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
