"""Second lesson: the transformer learns to judge statements about what the trained eyes see.

The eyes stay as they are and look at every picture once; from then on only their features are used. Lessons follow
one another: existence alone, all kinds, then mostly counting; for the further model all kinds, mostly places, mostly
relations of two things that are both seen, which come last by themselves, and all kinds again.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.shapes.dataset import KINDS
from examples.shapes.forward import answer_logits
from examples.shapes.model import OFAModel
from examples.shapes.statements import Kind
from examples.shapes.tensors import Examples

_BATCH = 256
_WARM_UP_STEPS = 200
_STEPS_BETWEEN_LOOKS = 250


@dataclass(frozen=True, slots=True)
class Lesson:
    """A stretch of training."""

    name: str
    steps: int
    rate_start: float
    rate_end: float  # reached along a cosine
    stressed: Kind | None = None  # comes on top of the six equal kinds; of relations only those of two things seen
    share_stressed: float = 0.0
    only: Kind | None = None
    good_enough: float = 1.1  # development accuracy that ends the lesson early …
    good_at: Kind | None = None  # … of this kind; None for all kinds


FIRST_LESSONS = (
    Lesson("existence", 2_000, 1e-3, 1e-3, only=Kind.EXISTENCE, good_enough=0.85, good_at=Kind.EXISTENCE),
    Lesson("all kinds", 10_000, 1e-3, 6e-4, Kind.RELATION, 0.06, good_enough=0.86),
    Lesson("counting", 1_000, 8e-4, 4e-4, Kind.COUNT, 0.5, good_enough=0.93, good_at=Kind.COUNT),
)
FURTHER_LESSONS = (
    Lesson("all kinds", 1_000, 1e-3, 8e-4, Kind.RELATION, 0.06),
    Lesson("places", 1_000, 8e-4, 8e-4, Kind.REGION, 0.5, good_enough=0.97, good_at=Kind.REGION),
    Lesson("relations", 1_500, 8e-4, 8e-4, Kind.RELATION, 0.5, good_enough=0.97, good_at=Kind.RELATION),
    Lesson("all kinds again", 1_500, 8e-4, 0.0, Kind.RELATION, 0.06),
)


@dataclass(frozen=True, slots=True)
class Class:
    """What is taught from, and what is asked of it."""

    features: Tensor  # (pictures, 1024, 4, 4) bfloat16
    examples: Examples

    def ask(self, model: OFAModel, rows: Tensor) -> Tensor:
        """(rows, 3) float32 logits of those statements."""
        prompts = self.examples.prompts[rows]
        prompts = prompts[:, : int((prompts != 1).sum(1).max())]
        pictures = self.features[self.examples.picture_of[rows]]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return answer_logits(model, pictures, prompts).float()


def teach(model: OFAModel, training: Class, development: Class, lessons: tuple[Lesson, ...], seed: int) -> None:
    """Train everything but the eyes, in place.

    Args:
        model: the model; its eyes are set aside meanwhile.
        training: what it learns from.
        development: what its progress is measured on.
        lessons: what it learns, in this order.
        seed: of the order of the statements.
    """
    torch.manual_seed(seed)
    eyes, model.encoder.embed_images = model.encoder.embed_images, nn.Identity()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    progress = _Progress()
    for lesson in lessons:
        print(f"lesson: {lesson.name}", flush=True)
        for step, rows in enumerate(_batches(training.examples, lesson)):
            _set_rate(optimiser, lesson, step, progress.steps)
            loss = functional.cross_entropy(training.ask(model, rows), training.examples.answers[rows])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            progress.steps += 1
            if progress.steps % _STEPS_BETWEEN_LOOKS == 0:
                by_kind = measure(model, development)
                progress.tell(loss.item(), by_kind)
                if (by_kind[lesson.good_at] if lesson.good_at else _mean(by_kind)) >= lesson.good_enough:
                    break
    model.encoder.embed_images = eyes


@torch.inference_mode()
def measure(model: OFAModel, asked: Class) -> dict[Kind, float]:
    """Accuracy by kind; the model's eyes must be set aside."""
    everything = torch.arange(len(asked.examples.prompts))
    best = torch.cat([asked.ask(model, rows).argmax(1) for rows in everything.split(500)])
    right = (best == asked.examples.answers).float()
    return {kind: right[asked.examples.kinds == number].mean().item() for number, kind in enumerate(KINDS)}


def _batches(examples: Examples, lesson: Lesson) -> list[Tensor]:
    """Rows for each step: the six kinds equally often, and more of what the lesson stresses."""
    counts = torch.bincount(examples.kinds, minlength=len(KINDS)).float()
    weights = 1 / counts[examples.kinds] / len(KINDS)
    if lesson.only:
        weights = weights * (examples.kinds == KINDS.index(lesson.only))
    weights = weights / weights.sum() * (1 - lesson.share_stressed)
    if lesson.stressed:
        stressed = examples.kinds == KINDS.index(lesson.stressed)
        if lesson.stressed is Kind.RELATION:
            stressed = stressed & examples.about_seen
        weights = weights + stressed / stressed.sum() * lesson.share_stressed
    drawn = torch.multinomial(weights, lesson.steps * _BATCH, replacement=True)
    return list(drawn.split(_BATCH))


def _set_rate(optimiser: torch.optim.Optimizer, lesson: Lesson, step: int, done: int) -> None:
    along = (1 - math.cos(math.pi * step / lesson.steps)) / 2
    rate = lesson.rate_start + (lesson.rate_end - lesson.rate_start) * along
    for group in optimiser.param_groups:
        group["lr"] = rate * min(1.0, (done + 1) / _WARM_UP_STEPS)


def _mean(by_kind: dict[Kind, float]) -> float:
    return sum(by_kind.values()) / len(by_kind)


class _Progress:
    """Steps and time of a training."""

    def __init__(self) -> None:
        self.steps = 0
        self._started = time.monotonic()

    def tell(self, loss: float, by_kind: dict[Kind, float]) -> None:
        table = " ".join(f"{kind} {share:.3f}" for kind, share in by_kind.items())
        seconds = time.monotonic() - self._started
        print(f"step {self.steps} loss {loss:.3f} all {_mean(by_kind):.3f} {table} {seconds:.0f} s", flush=True)
