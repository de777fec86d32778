"""The demo model's words, as a byte-level BPE in GPT-2's format.

Each word of the statements and of the prompt is one token with its leading space; anything else falls apart into
bytes, which were never trained. `<code_…>` and `<bin_…>` tokens are added by every OFA loader and are in no file.
"""

from __future__ import annotations

from examples.shapes.logic import Answer

CODE_TOKENS = 8192 + 1000
FILE_TOKENS = 512
TOKENS = FILE_TOKENS + CODE_TOKENS
BOS, PAD, EOS, UNKNOWN = 0, 1, 2, 3
PROMPT = ' does the image describe " {} "?'
STOP = "."
_SPACE = "\u0120"  # how a byte-level BPE writes a space

_WORDS = (  # noqa: SIM905 - a list literal of fifty words reads worse
    'does the image describe can and text imply " "? there is are no a exactly at least one two three four five'
    " small large red green blue yellow purple circle circles square squares triangle triangles star stars"
    " shape shapes on left right top bottom of above below yes maybe"
).split()
_PRINTABLE = ((33, 127), (161, 173), (174, 256))


def _byte_characters() -> list[str]:
    """The character that stands for each byte, in GPT-2's order of bytes 0 to 255."""
    printable = {byte for start, end in _PRINTABLE for byte in range(start, end)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def merges() -> list[tuple[str, str]]:
    """The merges in order of rank; each word grows from its leading space, letter by letter."""
    found: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        for length in range(len(word)):
            found[_SPACE + word[:length], word[length]] = None
    return list(found)


def vocabulary() -> dict[str, int]:
    """Token to id, for all tokens that stand in `vocab.json`."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *_byte_characters(), *(a + b for a, b in merges())]
    fillers = FILE_TOKENS - 1 - len(tokens)
    return {token: number for number, token in enumerate([*tokens, *map("unused{}".format, range(fillers)), "<mask>"])}


_IDS = vocabulary()
ANSWER_IDS = {answer: _IDS[_SPACE + answer] for answer in Answer}


def used_ids() -> list[int]:
    """Ids that a prompt made of known words can hold."""
    return sorted({BOS, PAD, EOS, _IDS[STOP], *(_IDS[_SPACE + word] for word in _WORDS)})


def encode(statement: str) -> list[int]:
    """Ids of the whole prompt around a statement of known words, with BOS and EOS."""
    ids = [BOS]
    for word in PROMPT.format(statement).split():
        ids.append(_IDS[_SPACE + word.removesuffix(STOP)])
        if word.endswith(STOP):
            ids.append(_IDS[STOP])
    return [*ids, EOS]
