"""Choose the rows of the three answers for the made-up models, so that each is often the right one.

With random rows one answer wins everywhere. These lie, 120 degrees apart, in the plane in which the
decoder's last token moves most from question to question, and across its mean, so that none is
preferred. Rounded and committed, so that everybody's model is the same: `python -m parity.answer_rows`.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from parity.items import questions
from parity.make_model import ANSWERS_FILE, Recipe, make_model
from parity.ours import ask, load_source
from parity.variants import VARIANTS

_STRENGTH = 2.0  # deviation of a score from question to question
_ROUNDS = 4  # the words "yes" and "no" stand in questions too, so the rows move what they look at


def main() -> int:
    """Write the rows of all variants and return the exit code."""
    width = 64
    rows = {variant: {label: [0.0] * width for label in ("yes", "no", "maybe")} for variant in VARIANTS}
    for _ in range(_ROUNDS):
        ANSWERS_FILE.write_text(json.dumps(rows, indent=None) + "\n", encoding="utf-8")
        rows = {variant: _choose(recipe) for variant, recipe in VARIANTS.items()}
    text = ",\n".join(f' "{variant}": {json.dumps(chosen)}' for variant, chosen in rows.items())
    ANSWERS_FILE.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    return 0


def _choose(recipe: Recipe) -> dict[str, list[float]]:
    seen = _last_tokens(recipe)
    mean = seen.mean(dim=0)
    across = seen - torch.outer(seen @ mean, mean) / (mean @ mean)
    _, strengths, directions = torch.linalg.svd(across - across.mean(dim=0), full_matrices=False)
    deviations = strengths / math.sqrt(len(seen))
    rows = {}
    for label, turn in (("yes", 0.0), ("no", 1 / 3), ("maybe", 2 / 3)):
        angle = 2 * math.pi * turn
        row = math.cos(angle) * directions[0] / deviations[0] + math.sin(angle) * directions[1] / deviations[1]
        rows[label] = [round(float(value), 3) for value in row * _STRENGTH]
    return rows


def _last_tokens(recipe: Recipe) -> Tensor:
    """(questions, width): what the decoder makes of each prompt's last token."""
    seen: list[Tensor] = []
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), recipe)
        engine = load_source(Path(name))
        decoder = engine.model.decoder
        decoder.register_forward_hook(lambda _module, _inputs, made: seen.append(made[0, -1].clone()))
        ask(engine, list(questions()))
    return torch.stack(seen).double()


if __name__ == "__main__":
    sys.exit(main())
