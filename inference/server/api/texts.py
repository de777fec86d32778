"""Reads callers' texts as a person sees them; a text in which a person sees nothing is refused. Pure.

Blanks, characters that are not drawn, and composed or decomposed letters look alike, but the model's tokeniser has
other tokens for each. docs/explanation/decisions/texts.md has the table.
"""

import re
import unicodedata
from collections.abc import Iterable
from itertools import groupby

from common.errors import InputRefused
from inference.server.settings import TextRule

MAX_MARKS = 30  # on one letter; `unicodedata.normalize` takes quadratic time to order more
_MARK_PLANES = range(0x300, 0x20000)  # has all code points with a combining class; the planes after it have none
_MAX_NAMED = 8  # code points in an error message


# Ranges of code points in the syntax of a regular expression's class.
_BLANKS = (
    r"\s\u2800\u3164\uFFA0"  # `\s` has all of Unicode's spaces and line ends; then a Braille and two Hangul blanks
)
_HIDDEN = (
    r"\0-\x08\x0E-\x1B\x7F-\x84\x86-\x9F"  # controls that are no blanks
    r"\xAD\u034F\u061C\u17B4\u17B5\u180E\u200B\u200E\u200F\u202A-\u202E\u2060-\u206F\uFEFF\uFFF0-\uFFFB"
    r"\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0000-\U000E001F\U000E0080-\U000E00FF\U000E01F0-\U000E0FFF"
)
_JOINERS = r"\u180B-\u180D\u180F\u200C\u200D\uFE00-\uFE0F\U000E0100-\U000E01EF"  # with variation selectors
_TAGS = r"\U000E0020-\U000E007F"
_FILLERS = r"\u115F\u1160"  # parts of a Hangul syllable that stand for no letter
_UNREAD = r"!#*,./:;?~\-"  # ModelScope's pipeline strips it at the front of a text, or takes it for a blank

_PLANE = 0x10000


def _as_class(code_points: Iterable[int]) -> str:
    """Ascending code points in the syntax of a regular expression's class."""
    ranges: list[list[int]] = []
    for code_point in code_points:
        if ranges and ranges[-1][1] == code_point - 1:
            ranges[-1][1] = code_point
        else:
            ranges.append([code_point, code_point])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


def _find_mark_runs() -> re.Pattern[str]:
    """Finds runs of more than MAX_MARKS marks, and some other runs.

    Beyond the basic plane it takes all that stands between two marks for one: `re` looks up a character in a table of
    that plane, but compares it with each range of the others.
    """
    marks = [one for one in _MARK_PLANES if unicodedata.combining(chr(one))]
    basic, others = [one for one in marks if one < _PLANE], [one for one in marks if one >= _PLANE]
    return re.compile(f"[{_as_class(basic)}{chr(others[0])}-{chr(others[-1])}]{{{MAX_MARKS + 1}}}")


_MARK_RUN = _find_mark_runs()
_UNSEEN = re.compile(f"(?! )[{_BLANKS}{_HIDDEN}{_JOINERS}{_TAGS}]")  # all that the next three may change
_BLANK = re.compile(f"[{_BLANKS}]")
_NOT_DRAWN = re.compile(f"[{_HIDDEN}]+")
# Joiners change how emoji, ideographs, and letters of Persian and of India's scripts look; tags make a flag.
_JOINED = re.compile(
    rf"(\U0001F3F4[{_TAGS}]+|[0-9#*]\uFE0F|[^\0-\x7F{_BLANKS}{_JOINERS}{_TAGS}][{_JOINERS}]+)|[{_JOINERS}{_TAGS}]"
)
_VISIBLE = re.compile(f"[^{_BLANKS}{_HIDDEN}{_JOINERS}{_TAGS}{_FILLERS}]")
_READ = re.compile(f"[^{_BLANKS}{_HIDDEN}{_JOINERS}{_TAGS}{_FILLERS}{_UNREAD}]")


def read_text(text: str, rule: TextRule, field: str, reason: str) -> str:
    """Return the text that the model reads.

    Args:
        text: not empty.
        rule: what the model reads.
        field: path of the text in its message.
        reason: of the error.

    Raises:
        InputRefused: the text has no visible character, or none but punctuation that the pipeline strips.
    """
    if not _READ.search(text):
        content = "only punctuation" if _VISIBLE.search(text) else "nothing visible"
        raise InputRefused(f"{field} has {content}: {_describe(text)}", reason=reason, field=field)
    return as_seen(text) if rule is TextRule.AS_SEEN else text


def check_visible(text: str, field: str, reason: str) -> None:
    """Refuse a text in which a person sees nothing; another stays as it is.

    Raises:
        InputRefused: the text has no visible character.
    """
    if not _VISIBLE.search(text):
        raise InputRefused(f"{field} has nothing visible: {_describe(text)}", reason=reason, field=field)


def as_seen(text: str) -> str:
    """Normalise characters that look alike or are not drawn.

    Each blank of any kind becomes a space, one for one. Characters that are not drawn are removed; joiners, variation
    selectors and tags stay where they change the look of the character before them. Letters and their marks are
    composed (NFC), except where a letter has more than MAX_MARKS.
    """
    if text.isascii() and text.isprintable():
        return text
    if _UNSEEN.search(text):
        text = _NOT_DRAWN.sub("", _BLANK.sub(" ", text))
        text = _JOINED.sub(lambda found: found[1] or "", text)
    if text.isascii() or (_MARK_RUN.search(text) and _longest_marks(text) > MAX_MARKS):
        return text
    return unicodedata.normalize("NFC", text)


def _longest_marks(text: str) -> int:
    runs = groupby(text, key=lambda character: unicodedata.combining(character) > 0)
    return max((sum(1 for _ in run) for is_mark, run in runs if is_mark), default=0)


def _describe(text: str) -> str:
    """Number of characters, and the first different ones, for example "3 characters, U+200B U+0020"."""
    different = list(dict.fromkeys(text))
    named = " ".join(f"U+{ord(character):04X}" for character in different[:_MAX_NAMED])
    more = " …" if len(different) > _MAX_NAMED else ""
    return f"{len(text)} character{'s' if len(text) != 1 else ''}, {named}{more}"
