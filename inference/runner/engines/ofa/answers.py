"""Answers of any length, scored exactly: along what they have in common, a softmax wherever they part.

The stock pipeline gives the decoder each answer in turn, hides at every position all tokens but those
that some answer has there, and adds up the logarithms. Where only one token is left its probability is
1 and nothing is added; so only forks count. Three answers part at one place or at two, one behind the
other: one row of the decoder, which reads the prompt and then the stem, passes all of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that every reader of torch code knows

from inference.runner.engines.ofa.config import LABELS, ONE_TOKEN_EACH, Fork


def with_stem(prompts: Tensor, last: Tensor, stem: Sequence[int]) -> Tensor:
    """Let the stem follow each prompt.

    Args:
        prompts: (rows, longest) int64, padded on the right.
        last: (rows,) int64, place of each prompt's last token.
        stem: tokens, at least one.

    Returns:
        (rows, longest + stem) int64; what stands behind a shorter row's stem is never looked at.
    """
    places = last[:, None] + torch.arange(1, len(stem) + 1, device=prompts.device)
    tokens = torch.tensor(stem, device=prompts.device).expand(len(prompts), -1)
    return F.pad(prompts, (0, len(stem))).scatter(1, places, tokens)


def probabilities(made: Tensor, answers: Tensor, forks: Sequence[Fork]) -> Tensor:
    """Score the answers.

    Args:
        made: (rows, forks, width), what the decoder makes of the last token that it read at each fork.
        answers: (tokens, width), of the tokens by which answers go on.
        forks: in order of depth.

    Returns:
        (rows, 3) float32, probabilities in the order of LABELS.
    """
    # In full precision whatever came before: it costs nothing, and a score rounded to 8 bits is off by 1 %.
    made, answers = made.to(torch.float32), answers.to(torch.float32)
    if tuple(forks) == ONE_TOKEN_EACH:
        return torch.softmax(made[:, 0] @ answers.T, dim=-1)
    scores = made.new_zeros(len(made), len(LABELS))
    for number, fork in enumerate(forks):
        rows = sorted({row for row in fork.choices if row >= 0})
        shares = torch.log_softmax(made[:, number] @ answers[rows].T, dim=-1)
        for label, row in enumerate(fork.choices):
            if row >= 0:
                scores[:, label] += shares[:, rows.index(row)]
    return torch.softmax(scores, dim=-1)
