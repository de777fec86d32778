"""How far one gets without looking at the picture, or without reading the text.

Both baselines are trained classifiers: one sees every token and its place, the other the trained eyes' features of the
whole picture. Neither may do well: else the answers could be guessed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.shapes.reading import Class
from examples.shapes.tensors import LONGEST_PROMPT
from examples.shapes.vocabulary import FILE_TOKENS

VisibleInput = Callable[[Class, Tensor], Tensor]  # what a guesser may see of the statements in those rows

_BATCH = 512
_HIDDEN = 192


class Reader(nn.Module):
    """Answers from the text alone: a perceptron over all tokens in their places, and over the bag of them."""

    def __init__(self) -> None:
        """Make it with fresh weights."""
        super().__init__()
        self.tokens = nn.Embedding(FILE_TOKENS, 32)
        self.rest = nn.Sequential(
            nn.Linear(32 * (LONGEST_PROMPT + 1), _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(),
            nn.Linear(_HIDDEN, 3),
        )

    def forward(self, prompts: Tensor) -> Tensor:
        """(items, LONGEST_PROMPT) int64 → (items, 3) logits."""
        tokens = self.tokens(prompts)
        logits: Tensor = self.rest(torch.cat([tokens.flatten(1), tokens.mean(1)], dim=1))
        return logits


class Watcher(nn.Module):
    """Answers from the picture alone: a perceptron over all patches in their places."""

    def __init__(self) -> None:
        """Make it with fresh weights."""
        super().__init__()
        self.patches = nn.Linear(1024, 48)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(48 * 16, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 3))

    def forward(self, features: Tensor) -> Tensor:
        """(items, 1024, 4, 4) → (items, 3) logits."""
        logits: Tensor = self.rest(self.patches(features.float().flatten(2).transpose(1, 2)).flatten(1))
        return logits


def text_only(training: Class, asked: Class, steps: int = 4_000) -> int:
    """How many of `asked` a trained reader gets right without the pictures."""
    torch.manual_seed(1)
    return _train_and_ask(Reader(), training, asked, steps, lambda given, rows: given.examples.prompts[rows])


def picture_only(training: Class, asked: Class, steps: int = 1_500) -> int:
    """How many of `asked` a trained watcher gets right without the texts."""
    torch.manual_seed(1)

    def pictures(given: Class, rows: Tensor) -> Tensor:
        return given.features[given.examples.picture_of[rows]]

    return _train_and_ask(Watcher(), training, asked, steps, pictures)


def _train_and_ask(guesser: nn.Module, training: Class, asked: Class, steps: int, shown: VisibleInput) -> int:
    optimiser = torch.optim.AdamW(guesser.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(training.examples.prompts), (_BATCH,))
        loss = functional.cross_entropy(guesser(shown(training, rows)), training.examples.answers[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.inference_mode():
        everything = torch.arange(len(asked.examples.prompts))
        best = torch.cat([guesser(shown(asked, rows)).argmax(1) for rows in everything.split(_BATCH)])
    return int((best == asked.examples.answers).sum())
