"""Parses JSON of others; the message says where the mistake is, or what the file is instead of JSON."""

import json
import re
from typing import Any

from common.file_kinds import HEAD_BYTES, identify_mistake
from common.json_load import HalfCharacter, NestedTooDeeply, load_json

_MAX_SHOWN = 80  # characters of a message
_MAX_CONTEXT = 24  # characters of the text before and after the mistake


class JsonBroken(ValueError):
    """The content is not a JSON object; the message is a sentence with the file's name."""


def parse_object(raw: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        raw: the whole file, UTF-8 with or without a byte order mark.
        name: of the file, for the message.

    Raises:
        JsonBroken: the content is not a JSON object.
    """
    mistake = identify_mistake(raw[:HEAD_BYTES])
    if mistake:
        raise JsonBroken(f"{name} {mistake}")
    try:
        text = raw.decode("utf-8-sig")
        row = load_json(text)
    except UnicodeDecodeError as error:
        if raw[:1] == b"\x80" and raw[1:2] <= b"\x05":
            raise JsonBroken(f"{name} is a pickle, supported: JSON") from error
        line = raw.count(b"\n", 0, error.start) + 1
        raise JsonBroken(
            f"{name} is not UTF-8: byte 0x{raw[error.start]:02x} in line {line}; save it as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        advice = _identify_form(error) or _advise(error)
        raise JsonBroken(f"{name} is not JSON: {_describe(error)}{advice}") from error
    except NestedTooDeeply as error:
        raise JsonBroken(f"{name} is not JSON of a configuration: its brackets are nested too deeply") from error
    except HalfCharacter as error:
        raise JsonBroken(f"{name}: {error}") from error
    except ValueError as error:  # a number of thousands of digits
        raise JsonBroken(f"{name} is not JSON: {str(error)[:_MAX_SHOWN]}") from error
    if not isinstance(row, dict):
        raise JsonBroken(f"{name} is not a JSON object: it holds a {_KINDS.get(type(row), 'value')}")
    return row


def find_duplicate_keys(raw: bytes, name: str) -> tuple[str, ...]:
    """Sentences about keys that an object has several times.

    Args:
        raw: the whole file, which `parse_object` has accepted.
        name: of the file.
    """
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, list[Any]] = {}
        for key, value in pairs:
            values.setdefault(key, []).append(value)
        for key, several in values.items():
            if len(several) > 1:
                times = "twice" if len(several) == 2 else f"{len(several)} times"  # noqa: PLR2004 - a pair
                shown = [json.dumps(one, ensure_ascii=False)[:_MAX_SHOWN] for one in (several[0], several[-1])]
                what = f"{shown[0]} and {shown[1]}" if all(map(_is_plain, several)) else "with lists or objects"
                found.append(f"{name}: {key[:_MAX_SHOWN]} is there {times}, {what}; the last one counts")
        return {}

    load_json(raw.decode("utf-8-sig"), pairs_hook=note)
    return tuple(found[:_MAX_DUPLICATES])


_MAX_DUPLICATES = 10


def _is_plain(value: object) -> bool:
    """Whether it is no list and no object, which the hook replaces."""
    return not isinstance(value, list | dict)


_KINDS = {list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null"}


def _identify_form(error: json.JSONDecodeError) -> str:
    """The form of a text that is not JSON: a vocabulary of another form, or JSON without quotes."""
    text = error.doc
    if text.lstrip().startswith("{") and _BARE_KEY.match(text[error.pos :]):
        return "; JSON has its keys in double quotes"
    if text.startswith("#version"):
        return "; it is a merges.txt: are the two files exchanged?"
    if text.startswith(("[PAD]", "[UNK]", "[CLS]")):
        return "; it is a vocab.txt, with a token a line: is it of another model?"
    return ""


def _advise(error: json.JSONDecodeError) -> str:
    """The correction of a common mistake; empty for any other."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :]
    if before.endswith(",") and after[:1] in ("}", "]"):
        line = before.count("\n") + 1
        return f"; remove the comma after the last entry, in line {line}"
    if after[:1] in ("}", "]") and error.msg.startswith("Illegal trailing comma"):
        return "; remove the comma"
    for mark, advice in _ADVICE:
        if mark.match(after):
            return f"; {advice}"
    if error.msg.startswith("Unterminated string"):
        return "; a closing quote is missing, or the file is cut off"
    if error.msg == "Extra data":
        return "; remove what follows the first object"
    return "; put a comma before it" if error.msg == "Expecting ',' delimiter" and after[:1] == '"' else ""


_BARE_KEY = re.compile(r"[A-Za-z_]\w*\s*:")
_ADVICE = (
    (re.compile("'"), "JSON has double quotes: write \" for each '"),
    (re.compile("[\u201c\u201d\u2018\u2019\uff02]"), 'these are typographic quotes: write " for each'),
    (re.compile(r"//|/\*|#"), "JSON has no comments: remove it"),
    (re.compile(r"(True|False|None)\b"), "JSON writes true, false and null"),
    (re.compile(r"[A-Za-z_]+:( |$)", re.MULTILINE), "it looks like YAML: write it as JSON"),
)


def _describe(error: json.JSONDecodeError) -> str:
    """The decoder's message with line, column and what stands there."""
    text = error.doc
    start = max(text.rfind("\n", 0, error.pos) + 1, error.pos - _MAX_CONTEXT)
    stop = text.find("\n", error.pos)
    around = text[start : min(stop if stop >= 0 else len(text), error.pos + _MAX_CONTEXT)].strip()
    message = error.msg[:1].lower() + error.msg[1:]
    where = f"line {error.lineno}, column {error.colno}"
    if error.pos >= len(text.rstrip()):
        return f"{message} at the end of the file ({where}); it may be cut off"
    return f"{message} in {where}" + (f", at {around!r}" if around else "")
