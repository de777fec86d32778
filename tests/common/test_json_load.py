"""JSON of a file or a peer: whatever is wrong with it is a ValueError, and every package reads it so."""

import json
import os
import socket
from pathlib import Path

import pytest

from common.json_load import MAX_DEPTH, HalfCharacter, NestedTooDeeply, load_json
from inference.fork_wire import ForkRequest, receive_request, send_request
from updater.revision import UnsupportedRevision, parse_json_object

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cli", "common", "console", "hotslot_watchdog", "hubserver", "inference", "updater")


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        "[" * 300 + "]" * 300,
    ],
)
def test_deep_nesting_is_a_value_error(content: bytes | str) -> None:
    """Whether the parser itself could read it or not: what reads the value would fail."""
    with pytest.raises(NestedTooDeeply):
        load_json(content)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"9" * 5000, "nul"])
def test_what_is_not_json_is_a_value_error(content: bytes | str) -> None:
    """As of json.loads."""
    with pytest.raises(ValueError, match=r".+"):
        load_json(content)


@pytest.mark.parametrize(
    "content",
    [
        b'["\\ud83d"]',
        '{"\\uDC00": 1}',
        r'"\ude00\ud83d"',
        r'"\ud83d\\ude00"',
        r'"\\\ud83d"',
        r'"\ud83d\ud83d\ude00"',
        '"\ud83d"',
    ],
)
def test_half_of_a_character_is_a_value_error(content: bytes | str) -> None:
    """Whatever json.loads takes for a text must be one that can be printed, hashed and sent."""
    assert load_json(content, takes_halves=True) == json.loads(content)
    with pytest.raises(HalfCharacter, match=r"^line 1 has half of a character: "):
        load_json(content)


@pytest.mark.parametrize(
    "content", [r'"\ud83d\ude00"', r'"\\ud83d"', '"\U0001f600"', r'"\u0041\\\uD83D\uDE00"', r'"\ud7ff\ue000"']
)
def test_whole_characters_are_read(content: str) -> None:
    """An emoji in any form; a backslash before the letters of an escape sequence is only that."""
    assert load_json(content) == json.loads(content)
    assert load_json(content.encode()) == json.loads(content)


def test_half_of_a_character_in_utf_8_is_none() -> None:
    """json.loads would take these bytes."""
    with pytest.raises(UnicodeDecodeError):
        load_json(b'"\xed\xa0\xbd"')


def test_the_line_of_half_a_character_is_named() -> None:
    """In a configuration of thousands."""
    with pytest.raises(HalfCharacter, match=r"^line 3 has half of a character: \\udc00 without its other half$"):
        load_json('{\n"a": "\\ud83d\\ude00",\n"b": "\\uDC00"\n}')


def test_a_configuration_with_half_a_character_is_the_revisions_fault() -> None:
    """Its label could be neither stored nor sent: the revision is refused, not tried again and again."""
    with pytest.raises(UnsupportedRevision) as refused:
        parse_json_object(b'{"id2label":\n {"0": "\\ud800"}}', "config.json")
    assert refused.value.reason == "CONFIG_BROKEN"
    assert str(refused.value) == "config.json: line 2 has half of a character: \\ud800 without its other half"


def test_many_brackets_side_by_side_are_no_depth() -> None:
    """A listing of thousands of files is flat."""
    value = {"files": [{"name": str(number), "parts": [[]]} for number in range(5000)]}
    assert load_json(json.dumps(value)) == value
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert load_json(deepest) is not None


def test_no_package_parses_json_in_another_way() -> None:
    """`json.loads` raises RecursionError, which no caller expects of a damaged file."""
    direct = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "json.load" in path.read_text(encoding="utf-8").replace("common.json_load", "")
    }
    assert direct == {"common/json_load.py"}


def test_arguments_that_are_no_utf_8_reach_the_fork_server() -> None:
    """The path of a folder may have any bytes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        asked = ForkRequest(1, (os.fsdecode(b"/models/\xff"),))
        send_request(ours, asked, [])
        assert receive_request(theirs) == (asked, [])
