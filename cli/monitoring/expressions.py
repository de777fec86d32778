"""Finds the names of metrics in PromQL."""

import re
from collections.abc import Collection

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NO_NAMES = (
    re.compile(r'"(?:[^"\\]|\\.)*"'),  # strings
    re.compile(r"\{[^}]*\}"),  # matchers
    re.compile(r"\[[^\]]*\]"),  # ranges
    re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"),  # labels
    re.compile(r"\boffset\s+\S+"),
    re.compile(r"\$\w+|\b\d+(?:\.\d+)?\w*"),
)
_WORDS = frozenset({"and", "or", "unless", "bool", "by", "without", "on", "ignoring", "group_left", "group_right"})
_SUFFIXES = ("_bucket", "_sum", "_count")


def find_metrics(expression: str) -> set[str]:
    """Names of the metrics and recording rules that an expression reads."""
    rest = expression
    for pattern in _NO_NAMES:
        rest = pattern.sub(" ", rest)
    names = {match[0] for match in _NAME.finditer(rest) if not rest[match.end() :].lstrip().startswith("(")}
    return names - _WORDS


def find_family(name: str, known: Collection[str]) -> str:
    """The metric whose sample this is: a histogram has _bucket, _sum and _count; empty if none is known."""
    if name in known:
        return name
    return next((family for suffix in _SUFFIXES if (family := name.removesuffix(suffix)) in known), "")
