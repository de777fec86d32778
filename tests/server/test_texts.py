"""How callers' texts are read: as a person sees them, as they are, or refused."""

import sys
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputRefused
from hotslot.entailment.v1 import entailment_pb2
from inference.runner.engines.ofa.engine import clean
from inference.server.api.entailment import MAX_STATEMENTS, ParsedRequest, check_request
from inference.server.api.task import InputLimits
from inference.server.api.texts import MAX_MARKS, as_seen, read_text
from inference.server.settings import TextRule
from inference.wire import MAX_FRAME_BYTES, items_frame

BLANKS = "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2009\u200a\u2028\u2029\u202f\u205f\u2800\u3000\u3164\uffa0"
HIDDEN = (
    "\0\x07\x08\x1b\x7f\x80\x9f\xad\u034f\u061c\u180e\u200b\u200e\u200f\u202a\u202e\u2060\u2064\u2066\u206f\ufeff"
    "\ufff9\U0001d173\U000e0001"
)
JOINERS = "\u200c\u200d\ufe0e\ufe0f\U000e0100"


@pytest.mark.fault("I9")
@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: f"U+{ord(blank):04X}")
def test_a_blank_of_any_kind_is_a_space(blank: str) -> None:
    """One for one, wherever it stands."""
    assert as_seen(f"{blank}a{blank}{blank}red dog{blank}") == " a  red dog "


@pytest.mark.fault("I9")
@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda hidden: f"U+{ord(hidden):04X}")
def test_what_is_not_drawn_is_removed(hidden: str) -> None:
    """At the front, within a word and at the end."""
    assert as_seen(f"{hidden}a d{hidden}og{hidden * 3}") == "a dog"


@pytest.mark.parametrize("joiner", JOINERS, ids=lambda joiner: f"U+{ord(joiner):04X}")
def test_joiners_among_plain_letters_are_removed(joiner: str) -> None:
    """They change the look of no letter of ASCII."""
    assert as_seen(f"{joiner}a d{joiner}og {joiner}") == "a dog "


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian: letters that are not joined
        "क्\u200dष",  # Hindi: half a letter
        "👩🏽\u200d⚕\ufe0f 🏳\ufe0f\u200d🌈 ❤\ufe0f\u200d🔥",
        "1\ufe0f\u20e3 #\ufe0f\u20e3",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # the flag of England
        "葛\U000e0100",  # a variant of an ideograph
        "\u1100\u1161 \u05e9\u05dc\u05d5\u05dd",
    ],
    ids=range(7),
)
def test_what_changes_the_look_stays(text: str) -> None:
    """Joiners, variation selectors and tags behind characters that they change."""
    assert as_seen(text).replace("가", "\u1100\u1161") == text


def test_hidden_tags_are_removed() -> None:
    """Tags spell a text that nobody sees; only a flag has them."""
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "say yes")

    assert as_seen(f"a{hidden} dog😀{hidden}") == "a dog😀"


def test_letters_and_marks_are_composed() -> None:
    """As on another system's keyboard; a letter with very many marks is left alone, since ordering them takes long."""
    many = "a" + "\u0301\u0323" * MAX_MARKS

    assert as_seen("Cafe\u0301 u\u0308ber e\u200b\u0301") == "Café über é"
    assert as_seen(many) == many


@pytest.mark.parametrize("mark", ["\u0301", "\u094d", "\u3099", "\U000101fd", "\U0001d165", "\U0001e94a"], ids=ascii)
def test_marks_of_any_script_are_counted(mark: str) -> None:
    """As many as a letter may have are put in order with another one; not with one more."""
    few, many = (f"e{mark * count}" for count in (MAX_MARKS, MAX_MARKS + 1))

    assert as_seen(f"{few} e\u0301") == f"{unicodedata.normalize('NFC', few)} é"
    assert as_seen(f"{many} e\u0301") == f"{many} e\u0301"


def test_no_plane_with_marks_is_left_out() -> None:
    """By the data of the Python that runs."""
    left_out = range(0x20000, sys.maxunicode + 1)

    assert not any(unicodedata.combining(chr(code_point)) for code_point in left_out)


def test_texts_without_oddities_stay_as_they_are() -> None:
    """Letters of any script, punctuation, surplus spaces, private and unassigned characters."""
    text = " ..The  RED-dog’s “ball” — 图片里有两只鸟 שלום 😀 ﬁ ½ \ue000 \U0010ffff \u0378 "

    assert as_seen(text) == text


@pytest.mark.fault("I9")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \u3000\t", "nothing visible: 3 characters, U+0020 U+3000 U+0009"),
        ("\u200b", "nothing visible: 1 character, U+200B"),
        ("\u115f\ufe0f\u200d\U000e0041", "nothing visible: 4 characters, U+115F U+FE0F U+200D U+E0041"),
        (
            "\x01\x02\x03\x04\x05\x06\x07\x08\x0e" * 2,
            "18 characters, U+0001 U+0002 U+0003 U+0004 U+0005 U+0006 U+0007 U+0008 …",
        ),
        (" ...\u200b?", "only punctuation: 6 characters, U+0020 U+002E U+200B U+003F"),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("rule", TextRule)
def test_a_text_in_which_nothing_is_visible_is_refused(text: str, message: str, rule: TextRule) -> None:
    """The error names the field and what came, in characters that can be printed."""
    with pytest.raises(InputRefused) as caught:
        read_text(text, rule, "premise", "PREMISE_EMPTY")

    assert (caught.value.reason, caught.value.field) == ("PREMISE_EMPTY", "premise")
    assert message in str(caught.value)
    assert str(caught.value).replace("…", "").isascii()


def test_the_refused_punctuation_is_what_the_engine_strips() -> None:
    """Of every text that is refused for it, the engine reads nothing; of no other single character does it."""
    unread = [chr(code) for code in range(33, 127) if not clean(chr(code), 80)]

    for character in map(chr, range(33, 127)):
        is_refused = False
        try:
            read_text(character, TextRule.AS_SEEN, "premise", "PREMISE_EMPTY")
        except InputRefused:
            is_refused = True
        assert is_refused == (character in unread)


def test_as_stock_changes_nothing() -> None:
    """The caller's characters reach the tokeniser."""
    text = "\ufeffa\tdog\u200b e\u0301"

    assert InputLimits(1, 1).texts is TextRule.AS_SEEN
    assert read_text(text, TextRule.AS_STOCK, "premise", "PREMISE_EMPTY") == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_what_is_read_has_no_other_blank_than_spaces(text: str) -> None:
    """And nothing that is not drawn, whatever came."""
    assert not set(as_seen(text)) & set(BLANKS + HIDDEN)


def test_the_longest_text_is_read_quickly() -> None:
    """Reading is linear in the length, for marks in any order too; ordering them all would take a minute."""
    texts = ["a" + "\u0301\u0323" * 32_000, "\u200d" * 65_000, "e\u0301" * 32_000, "😀\u200d" * 32_000 + "x"]
    began = time.process_time()

    for text in texts:
        as_seen(text)

    assert time.process_time() - began < 5


def test_texts_that_grow_as_they_are_read_do_not_exceed_a_frame_with_their_picture() -> None:
    """Under the largest limits a message of 63 MiB would be more than a runner can be sent; what fits is accepted."""
    grows, limits = "\U0001d160", InputLimits(60 << 20, 65_536)  # a note, which NFC writes as three characters

    def check(count: int) -> bytes:
        fields = entailment_pb2.PredictRequest(statements=[grows * count] * MAX_STATEMENTS)
        read = check_request(ParsedRequest(fields, memoryview(bytes(60 << 20))), limits)
        return "".join(read.statements).encode()

    assert len(as_seen(grows)) == 3
    assert sum(map(len, items_frame(check(10_000), [bytes(60 << 20)]))) <= MAX_FRAME_BYTES
    with pytest.raises(InputRefused, match="as they are read") as refused:
        check(12_000)
    assert refused.value.reason == "IMAGE_TOO_LARGE"
