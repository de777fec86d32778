"""Choose the rows of the answers' tokens for the made-up models, so that each answer is often the right one.

With random rows one answer wins everywhere. These lie, 120 degrees apart, in the plane in which the
decoder's last token moves most from question to question, and across its mean, so that none is
preferred. Rounded and committed, so that models do not differ: `python -m dev.parity.answer_rows [VARIANT …]`.
"""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dev.parity.items import Question, many_questions, questions
from dev.parity.make_model import ANSWERS_FILE, Recipe, make_model
from dev.parity.ours import ask, load_source
from dev.parity.variants import VARIANTS
from dev.parity.words import vocabulary
from inference.runner.conversion.ofa_config import read_architecture
from inference.runner.conversion.ofa_vocabulary import read_vocabulary
from inference.runner.engines.ofa.engine import OfaEngine

_STRENGTH = 2.0  # deviation of a score from question to question
_PREFERENCE = 2.0  # for a token that two answers go on by
_ROUNDS = 4  # the words "yes" and "no" occur in questions too, so new rows change the decoder's states


def main(arguments: Sequence[str]) -> int:
    """Write the rows of the named variants, or of all, and return the exit code."""
    recorded = json.loads(ANSWERS_FILE.read_text(encoding="utf-8"))
    for variant in arguments or VARIANTS:
        recorded[variant] = {}
        for _ in range(_ROUNDS):
            text = ",\n".join(f' "{name}": {json.dumps(chosen)}' for name, chosen in recorded.items())
            ANSWERS_FILE.write_text("{\n" + text + "\n}\n", encoding="utf-8")
            recorded[variant] = _choose(VARIANTS[variant])
    text = ",\n".join(f' "{name}": {json.dumps(chosen)}' for name, chosen in recorded.items())
    ANSWERS_FILE.write_text("{\n" + text + "\n}\n", encoding="utf-8")
    return 0


def _choose(recipe: Recipe) -> dict[str, list[float]]:
    """A row for each token by which an answer goes on."""
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), recipe)
        answers = read_vocabulary(Path(name), read_architecture(Path(name)), "ans2label.json").answers
        engine = load_source(Path(name))
    seen = _read_tokens(engine, list(many_questions() if recipe.is_fresh else questions()))
    names = {number: token for token, number in vocabulary(1024).items()}
    rows = {}
    for fork in answers.forks:
        place = fork.read - len(answers.stem) - 1
        ways = sorted({way for way in fork.choices if way >= 0})
        weights = [fork.choices.count(way) for way in ways]
        for way, row in zip(ways, _apart(seen[:, place], weights), strict=True):
            rows[names[answers.tokens[way]]] = [round(float(value), 3) for value in row]
    return rows


def _apart(seen: Tensor, weights: Sequence[int]) -> list[Tensor]:
    """Rows that lie evenly in the plane in which `seen` moves most; along its mean, the more answers the more."""
    mean = seen.mean(dim=0)
    across = seen - torch.outer(seen @ mean, mean) / (mean @ mean)
    _, strengths, directions = torch.linalg.svd(across - across.mean(dim=0), full_matrices=False)
    deviations = strengths / math.sqrt(len(seen))
    rows = []
    for number, weight in enumerate(weights):
        angle = 2 * math.pi * number / len(weights)
        row = math.cos(angle) * directions[0] / deviations[0] + math.sin(angle) * directions[1] / deviations[1]
        rows.append(row * _STRENGTH + _PREFERENCE * (weight - 1) * mean / (mean @ mean))
    return rows


def _read_tokens(engine: OfaEngine, asked: Sequence[Question]) -> Tensor:
    """(questions, read, width): what the decoder makes of each prompt's last token and of the stem behind it."""
    seen: list[Tensor] = []
    read = len(engine.model.config.answer_stem) + 1
    engine.model.decoder.register_forward_hook(lambda _module, _inputs, made: seen.append(made[0, -read:].clone()))
    ask(engine, asked)
    return torch.stack(seen).double()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
