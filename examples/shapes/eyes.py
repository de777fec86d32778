"""First lesson: the ResNet alone learns what each patch shows, and where the patch is.

OFA keeps absolute positions out of what attention mixes, so the ResNet itself must say where a thing lies; it can tell
from its padding.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.shapes.model import OFAModel, normalised
from examples.shapes.tensors import TARGETS, Examples, target_weights

FEATURES = 1024
_BATCH = 64
_PEAK_RATE = 1e-3
_WARM_UP_STEPS = 100


def train_eyes(model: OFAModel, examples: Examples, passes: float, seed: int) -> None:
    """Train `model.encoder.embed_images` in place; takes about three minutes a pass on two cores.

    Args:
        model: the model whose ResNet is trained.
        examples: pictures and what their patches show.
        passes: how often each picture is shown.
        seed: of the order of the pictures.
    """
    torch.manual_seed(seed)
    eyes = model.encoder.embed_images.to(memory_format=torch.channels_last).train()
    head = nn.Linear(FEATURES, TARGETS)
    steps = int(passes * len(examples.pictures) / _BATCH)
    optimiser = torch.optim.AdamW([*eyes.parameters(), *head.parameters()], lr=_PEAK_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, _PEAK_RATE, total_steps=steps, pct_start=min(0.3, _WARM_UP_STEPS / steps)
    )
    order = torch.cat([torch.randperm(len(examples.pictures)) for _ in range(int(passes) + 1)])
    started = time.monotonic()
    for step in range(steps):
        rows = order[step * _BATCH : (step + 1) * _BATCH]
        loss = _loss(eyes, head, examples, rows)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"eyes {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    eyes.eval()


def _loss(eyes: nn.Module, head: nn.Linear, examples: Examples, rows: Tensor) -> Tensor:
    pictures = normalised(examples.pictures[rows]).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = eyes(pictures).flatten(2).transpose(1, 2)
        guesses = head(features)
    weights = target_weights(examples.is_grey[rows])
    wanted = examples.seen[rows].float()
    return functional.binary_cross_entropy_with_logits(guesses.float(), wanted, weights.expand_as(wanted)) * TARGETS / 8


@torch.inference_mode()
def look(model: OFAModel, pictures: Tensor) -> Tensor:
    """Features of pictures, once and for all.

    Args:
        model: the model with trained eyes.
        pictures: (pictures, 3, 64, 64) uint8.

    Returns:
        (pictures, 1024, 4, 4) bfloat16.
    """
    eyes = model.encoder.embed_images.eval()
    seen = torch.empty(len(pictures), FEATURES, 4, 4, dtype=torch.bfloat16)
    for start in range(0, len(pictures), 256):
        part = normalised(pictures[start : start + 256]).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen[start : start + 256] = eyes(part)
    return seen
