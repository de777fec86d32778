"""The sentences that the model was trained to be asked, made of a caller's words."""

import re

_LEADING = ",.!?*#:;~"
_SPACES = re.compile(r"\s{2,}")


def prompt_of(statement: str, premise: str, max_words: int) -> str:
    """Ask whether a picture, and a premise if there is one, supports a statement.

    Args:
        statement: what is judged.
        premise: what is known beside the picture; empty for nothing.
        max_words: words of each text that are kept; the prompt's tokens are cut later.
    """
    hypothesis = clean(statement, max_words)
    if not premise:
        return f' does the image describe " {hypothesis} "?'
    return f' can image and text1 " {clean(premise, max_words)} " imply text2 " {hypothesis} "?'


def clean(text: str, max_words: int) -> str:
    """Write a text as the training data was written: the order of the steps matters, odd as it is."""
    text = text.lower().lstrip(_LEADING).replace("-", " ").replace("/", " ").replace("<person>", "person")
    text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
    return " ".join(text.split(" ")[:max_words])
