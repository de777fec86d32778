"""Measure the demo model on unseen addresses, and write its card: `python -m examples.addresses.evaluate FOLDER 1.0.0`.

The stock model class computes, with the weights as stored.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch

from examples.addresses.baseline import look_up
from examples.addresses.card import Card, write_card
from examples.addresses.generate import generate
from examples.addresses.layout import LABELS, MAX_TOKENS, VOCABULARY, WEIGHTS, Address, Span
from examples.addresses.score import Score, score
from examples.addresses.stock import make_model
from examples.addresses.tokens import decode, make_tokenizer

COUNT, SEED = 4000, 2026
_BATCH = 100


def main() -> None:
    """Measure a directory and write its card."""
    parser = argparse.ArgumentParser(description="Measure a demo model on addresses that no training has seen.")
    parser.add_argument("folder", type=Path, help="the model directory; gets its README.md")
    parser.add_argument("version", help="for the card, for example 1.0.0")
    parser.add_argument("--count", type=int, default=COUNT, help=f"addresses (default {COUNT})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(arguments.folder / VOCABULARY)
    config = json.loads((arguments.folder / "config.json").read_text(encoding="utf-8"))
    settings = {
        key: value for key, value in config.items() if key.startswith(("hidden_size", "num_", "inter", "max_pos"))
    }
    settings.pop("num_labels", None)
    model, _ = make_model(settings, config["vocab_size"])
    model.load_state_dict(torch.load(arguments.folder / WEIGHTS, weights_only=True))
    measured = evaluate(model, tokenizer, arguments.count, SEED)
    addresses = list(itertools.islice(generate(SEED, is_unseen=True), arguments.count))
    dictionary = score(addresses, [look_up(address.text) for address in addresses])
    parameters = sum(tensor.numel() for tensor in model.parameters())
    write_card(arguments.folder, Card(arguments.version, parameters, arguments.count, measured, dictionary))
    print(f"F1 {measured.f1:.4f} ({measured.low:.4f} to {measured.high:.4f}), dictionary {dictionary.f1:.4f}")


def evaluate(model: Any, tokenizer: Any, count: int, seed: int) -> Score:  # noqa: ANN401  no types
    """The score on so many unseen addresses."""
    addresses = list(itertools.islice(generate(seed, is_unseen=True), count))
    was_training = model.training
    model.eval()
    answers: list[list[Span]] = []
    for start in range(0, count, _BATCH):
        answers += predict(model, tokenizer, addresses[start : start + _BATCH])
    model.train(was_training)
    return score(addresses, answers)


@torch.inference_mode()
def predict(model: Any, tokenizer: Any, addresses: list[Address]) -> list[list[Span]]:  # noqa: ANN401  no types
    """The spans of addresses, a list each."""
    encodings = tokenizer.encode_batch([address.text for address in addresses])
    longest = min(MAX_TOKENS, max(len(one.ids) for one in encodings))
    ids = torch.tensor([(one.ids + [0] * longest)[:longest] for one in encodings])
    best = model(input_ids=ids, attention_mask=(ids != 0).long()).logits.argmax(-1).tolist()
    return [
        decode([LABELS[label] for label in row[1 : len(one.ids) - 1]], one.offsets[1 : len(row[: len(one.ids) - 1])])
        for row, one in zip(best, encodings, strict=True)
    ]


if __name__ == "__main__":
    main()
