"""A small vocabulary in GPT-2's format for made-up models."""

from inference.runner.engines.ofa.tokenizer import BEGIN, END, MASK, PAD, UNKNOWN, byte_letters

_SPACE = "\u0120"  # how a byte-level BPE writes a space
_WORDS = (  # noqa: SIM905 - quotes around each would hide the words
    "yes no maybe does the image describe can and text imply there are two birds dog is a man woman people"
    " red blue in on of street reading standing under umbrella"
).split()
_ENDINGS = ("er", "in", "ing", "ed", "an", "th", "on", "12", "'s")


def merges() -> list[tuple[str, str]]:
    """Pairs in order of rank: some endings, then whole words, letter by letter."""
    found: dict[tuple[str, str], None] = {}
    for word in (*_ENDINGS, *(_SPACE + word for word in _WORDS)):
        for length in range(1, len(word)):
            found[word[:length], word[length]] = None
    return list(found)


def vocabulary(tokens: int) -> dict[str, int]:
    """Token to id; what text cannot use is filled up with made-up tokens."""
    known = [BEGIN, PAD, END, UNKNOWN, *byte_letters()]
    known += [left + right for left, right in merges() if left + right not in known]
    known += [f"madeupword{number:05d}" for number in range(tokens - 1 - len(known))]
    return {token: number for number, token in enumerate(dict.fromkeys([*known, MASK]))}
