"""Train the demo model: `python -m examples.addresses.train build/addresses`, some ten minutes on one core.

The stock model class is trained on generated addresses, each of which is seen once. `early/` is written on the way,
`late/` at the end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from examples.addresses.directory import SETTINGS, write_directory, write_vocabulary
from examples.addresses.evaluate import evaluate
from examples.addresses.generate import generate
from examples.addresses.layout import LABELS
from examples.addresses.stock import make_model
from examples.addresses.tokens import encode, make_tokenizer

STEPS, EARLY_STEP, BATCH = 2400, 600, 64
LEARNING_RATE, WARM_UP_STEPS, WEIGHT_DECAY = 1.5e-3, 300, 0.01
REPORT_EVERY = 300
SEED = 5
_IGNORED = -100


def main() -> None:
    """Train and write both directories."""
    parser = argparse.ArgumentParser(description="Train the demo model of addresses.")
    parser.add_argument("out", type=Path, help="the folder to write to")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} addresses (default {STEPS})")
    parser.add_argument("--early", type=int, default=EARLY_STEP, help=f"when early/ is written (default {EARLY_STEP})")
    arguments = parser.parse_args()
    train(arguments.out, arguments.steps, arguments.early)


def train(out: Path, steps: int, early: int) -> None:
    """Train, and say every so often how good it is."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(write_vocabulary(out))
    model, config = make_model(SETTINGS, tokenizer.get_vocab_size())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    addresses, total = generate(SEED, is_unseen=False), 0.0
    model.train()
    for step in range(1, steps + 1):
        ids, labels = encode(tokenizer, list(itertools.islice(addresses, BATCH)))
        loss = _loss(model, _pad(ids, 0), _pad(labels, _IGNORED))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
        if step % REPORT_EVERY == 0 or step in (early, steps):
            score = evaluate(model, tokenizer, count=300, seed=99)
            print(
                json.dumps({"step": step, "loss": round(total / REPORT_EVERY, 4), "f1": round(score.f1, 4)}), flush=True
            )
            total = 0.0
        if step in (early, steps):
            write_directory(config, model.state_dict(), out / ("early" if step == early else "late"))


def _rate(step: int, steps: int) -> float:
    """The learning rate's share: up over the first steps, then down to a fiftieth along a cosine."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _loss(model: Any, ids: Tensor, labels: Tensor) -> Tensor:  # noqa: ANN401  the stock class has no types
    logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
    return functional.cross_entropy(logits.view(-1, len(LABELS)), labels.view(-1), ignore_index=_IGNORED)


def _pad(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


if __name__ == "__main__":
    main()
