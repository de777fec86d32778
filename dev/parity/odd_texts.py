"""Odd texts to compare the tokenisers with: blanks, hidden characters, marks, scripts, digits, spelled tokens.

Code points are written out or drawn from a seed, never taken from `unicodedata`, so that no version changes the list.
"""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.runner.engines.ofa.tokenizer import BEGIN, END, MASK, PAD, UNKNOWN, byte_letters

FILE = Path(__file__).resolve().parents[2] / "tests" / "ofa" / "fixtures" / "odd_texts.json.gz"
LETTERS = byte_letters()

_BLANKS = [
    *"\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u2800\u3000\u3164\uffa0"
]
_HIDDEN = [
    *map(chr, (*range(9), *range(14, 28), *range(127, 133), *range(134, 160))),
    *"\xad\u034f\u061c\u115f\u17b4\u180b\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2064",
    *"\u2066\u2067\u2068\u2069\u206a\u206f\ufe00\ufe0e\ufe0f\ufeff\ufff9\ufffa\ufffb\ufffc\ufffd\ufffe\uffff",
    *"\U0001d173\U000e0001\U000e0041\U000e007f\U000e0100\U000f0000\U0010fffd\U0010ffff",
]
_MARKS = [
    *"\u0300\u0301\u0308\u0323\u0327\u0335\u0345\u05b0\u064b\u0670\u093c\u094d\u0e31\u1ab0\u20dd\u20e3\u302a\u3099\ua66f\ufe20"
]
_LETTERS = [
    *"aeésßİ\u0131IǅΣςﬁﬀŉǰΐẞKÅΩⅧⓐĲÞðŁ\u0130\u1e9e\u2126\u212a\u212b\U00010400\U00010428\u13a0\uab70\u10d0\u1c90",
    *"дЖаіяאבשابپमनกไ한하ᄒ각漢字𠀀㐀豈カｶパㄅꙮ𝒜𝟘𝔤𓀀ꦀ\ue000\U000f1234\u0378\U0003ffff",
]
_DIGITS = [*"0179½²₃Ⅷ①❶٣๓१\u3007一百\U0001d7dd𐄇৴௧\u2150\U0001f100"]
_SYMBOLS = [*"😀🦜👍🏽🏳🏴🌈🇩🇪©™→≠∞♥☂€£¥$+<=>^`|~§¶°±×÷…–—\u2018’“”«»¿¡·•‰\u2032※〜。、「」\uff01\uff1f\uff0c\uff0e"]
_PLAIN = [*"abcdefgst  '\"!#%&()*,-./:;?@[\\]_{}"]
_ENDINGS = (
    "'s",
    "'S",
    "'t",
    "'re",
    "'RE",
    "'ve",
    "'m",
    "'ll",
    "'LL",
    "'d",
    "’s",
    "'",
    "''s",
    "'s's",
    "'x",
    " 's",
    "'\u017f",
)
_SPELLED = (
    *("<s>", "</s>", "<pad>", "<unk>", "<mask>", "<S>", "</S>", "<MASK>", "<code_1>", "<code_8191>", "<code_8192>"),
    *("<code_01>", "<bin_0>", "<bin_999>", "<bin_1000>", "<CODE_7>", "<person>", "<PERSON>", "<|endoftext|>", "[SEP]"),
    *(
        "</s",
        "< /s>",
        "<<s>>",
        "<code_1",
        "code_1>",
        "<s></s>",
        "<code_1><code_2>",
        "<pad><person>",
        "</s>\u200b",
        "<\u200b/s>",
    ),
)
_SENTENCES = (
    *("there are two birds.", "The WOMAN is standing under a RED umbrella", "a man; 3 dogs (maybe 12)!", "it's a dog"),
    *("图片里有两只鸟", "ein Mädchen läuft über die Straße", "собака бежит по улице", "כלב רץ ברחוב", "कुत्ता दौड़ता है"),
    *("هناك طائران", "犬が通りを走っている", "개가 달리고 있다", "con chó chạy trên đường phố", "สุนัขวิ่ง", "một con chó"),
)
_WRITTEN = (
    *(
        "{}",
        "{0}",
        "{text}",
        "%s %d",
        "\\n \\u200b",
        "a{b}c",
        "}{",
        "$(x) `y`",
        "<b>dog</b>",
        "&lt;&nbsp;dog",
        "%20dog",
        "dog\\",
    ),
    *(
        "...",
        "?!",
        "-",
        "/",
        "-...",
        ". . .",
        "~#*",
        ",dog",
        "--dog--",
        "dog-",
        "and/or",
        "//",
        "-/-",
        "  .dog",
        "\t.dog",
        "\n.dog",
    ),
    *("<person>", "<person><person>", "a <person> runs", "< person >", "<per-son>", "<per/son>", "<-person>"),
    *(
        "",
        " ",
        "x",
        "X",
        "\n",
        "\n\n",
        " \n",
        "dog\n",
        "dog \n",
        "dog\n ",
        "dog\r\n",
        "\ufeffdog",
        "dog\0",
        "a" * 200,
        "ab" * 150,
    ),
    *(
        "é" * 90,
        "e\u0301" * 60,
        "😀" * 50,
        "漢" * 120,
        "\u0301" * 60,
        "\u200b" * 60,
        "a\u200d" * 60,
        "1" * 150,
        "." * 150 + "a",
    ),
    *(
        " ".join("ab" for _ in range(150)),
        "a  " * 100,
        "a\t" * 100,
        "a\u3000" * 100,
        "a \u3000" * 60,
        "a-b/" * 60,
        "'s" * 90,
    ),
)
_ALPHABETS = (
    _PLAIN,
    (*_BLANKS, *"abAB."),
    (*_HIDDEN, *"ab  é"),
    (*_MARKS, *"aeé ক"),
    _LETTERS,
    (*_LETTERS, *_DIGITS, " "),
    (*_SYMBOLS, *"a1 "),
    (*_BLANKS, *_HIDDEN, *_MARKS, *_LETTERS, *_DIGITS, *_SYMBOLS, *_PLAIN),
)
_DRAWN, _PLANES = 110, 250  # texts from each alphabet, and from all of Unicode


def odd_texts() -> list[str]:
    """All texts, each once, in the same order each time."""
    chance = random.Random(15)
    drawn = [_draw(chance, alphabet) for alphabet in _ALPHABETS for _ in range(_DRAWN)]
    planes = ["".join(_any_character(chance) for _ in range(chance.randrange(1, 12))) for _ in range(_PLANES)]
    return list(dict.fromkeys([*_WRITTEN, *_systematic(), *drawn, *planes]))


def read_record() -> dict[str, Any]:
    """What `dev.parity.texts` recorded: "merges", "max_tokens", and "texts".

    Each text is a row: statement, premise, ids as our engine must make them, and, if the stock pipeline finds special
    tokens in it, the ids as the pipeline makes them.
    """
    record: dict[str, Any] = json.loads(gzip.decompress(FILE.read_bytes()))
    return record


def vocabulary_of(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token to id."""
    known = [BEGIN, PAD, END, UNKNOWN, *LETTERS, *map("".join, merges)]
    return {token: number for number, token in enumerate(dict.fromkeys([*known, MASK]))}


def _systematic() -> Iterator[str]:
    """Each character at the front, at the end, between and within words, and alone."""
    for one in (*_BLANKS, *_HIDDEN):
        yield from (one, f"{one}a dog", f"a dog{one}", f"a{one}dog", f"a {one} dog", f"a d{one}{one}og")
    for one in (*_MARKS, *_LETTERS, *_DIGITS, *_SYMBOLS):
        yield from (one, f"a{one} {one}b", f"1{one}{one}2")
    for ending in _ENDINGS:
        yield from (f"dog{ending}", f"dog{ending}s", f"漢{ending} 1{ending}", f" {ending}", f"{ending}{ending}")
    for spelled in _SPELLED:
        yield from (spelled, f"a {spelled} dog", f"a{spelled}dog", f"{spelled} {spelled}", f"\u3000{spelled}\t")
    for sentence in _SENTENCES:
        yield from (
            sentence,
            sentence.upper(),
            sentence.replace(" ", "\u3000"),
            sentence.replace(" ", "\n"),
            f"{sentence} " * 9,
        )


def _draw(chance: random.Random, alphabet: Sequence[str]) -> str:
    return "".join(chance.choices(alphabet, k=chance.randrange(1, 24)))


def _any_character(chance: random.Random) -> str:
    """Any code point but surrogates, which no protobuf string can carry; half of them below U+3000."""
    code = chance.randrange(0x3000) if chance.random() < 0.5 else chance.randrange(0x110000 - 0x800)
    return chr(code if code < 0xD800 else code + 0x800)
