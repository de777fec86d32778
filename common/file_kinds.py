"""Recognises content that is in a file by mistake, so that a message can name it instead of "not JSON"."""

import html
import re

from common.json_load import load_json

HEAD_BYTES = 512  # that `identify_mistake` needs
_LFS = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
}
_TAR_MARK, _TAR_MARK_OFFSET = b"ustar", 257
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,120})", re.IGNORECASE)
_MAX_TITLE = 60  # characters in a message


def identify_mistake(head: bytes) -> str:
    """Say what a file is if it is certainly not a part of a model; empty if nothing is wrong with its beginning.

    Args:
        head: the first HEAD_BYTES bytes, or the whole file if it is shorter.

    Returns:
        The rest of a sentence that begins with the file's name, for example "is empty".
    """
    kind = next((kind for mark, kind in _ARCHIVES.items() if head.startswith(mark)), "")
    if head[_TAR_MARK_OFFSET:].startswith(_TAR_MARK):
        kind = "a tar archive"
    if kind:
        return f"is {kind}: unpack it, and publish the files in it"
    if not any(head):
        return "holds only zeros: its download was not finished" if head else "is empty: its upload was not finished"
    return _identify_text(head)


_ADVICE = "download it again"
_SAID = ("message", "error", "detail", "msg")
_ERROR_KEYS = frozenset({*_SAID, "code", "data", "requestid", "request_id", "status", "success"})


def _is_error(whole: bytes) -> bool:
    """Whether a file is a JSON object with nothing but what a hub says of an error."""
    try:
        row = load_json(whole)
    except ValueError:
        return False
    words = {str(key).lower(): value for key, value in row.items()}
    said = (words.get(key) for key in _SAID)
    return words.keys() <= _ERROR_KEYS and any(isinstance(one, str) for one in said)


def _identify_text(head: bytes) -> str:
    if head.startswith(_LFS):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` in the clone, and publish again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        found = _TITLE.search(head)
        title = html.unescape(found[1].decode(errors="replace")).strip()[:_MAX_TITLE] if found else ""
        return f"is an HTML page{f' ({title!r})' if title else ''}, not the file itself: download it again"
    if text.startswith(b"{") and len(head) < HEAD_BYTES and _is_error(head):
        return f"is an error message of the hub, not the file itself: {_ADVICE}"
    if text.startswith((b"<?xml", b"<error")):
        return "is an XML message, such as a storage server's error, not the file itself: download it again"
    return ""
