"""What a dictionary does without any model: known names, then endings and numbers by rule.

It knows every division of the country, those of unseen districts too: what it lacks is judgement, not names.
"""

from __future__ import annotations

import re
from functools import cache

from examples.addresses import words
from examples.addresses.divisions import read_divisions
from examples.addresses.layout import Span

_RULES = (
    ("roadno", r"[0-9０-９]+(?:-[0-9]+)?(?:号院|号|弄)(?!楼|铺)"),
    ("houseno", r"[A-Za-z]?[0-9０-９]{0,3}(?:幢|号楼|栋|座|#楼)"),
    ("cellno", r"[0-9一二三四五六七八九十]+单元"),
    ("floorno", r"[0-9一二三四五六七八九十]+(?:楼|层|F)"),
    ("roomno", r"[0-9０-９]+(?:室|房|户)"),
    ("village_group", r"[0-9一二三四五六七八九十]+(?:组|队|社|村民小组)"),
    ("distance", r"[0-9]+(?:米|m)"),
    ("intersection", r"交叉口|路口|交汇处"),
)
_ROAD = re.compile(r"[\u4e00-\u9fff]{2,3}?(?:" + "|".join(sorted(set(words.ROADS), key=len, reverse=True)) + ")")
_POI = re.compile(
    r"[\u4e00-\u9fff]{2}(?:"
    + "|".join(sorted({*words.HOMES, *words.OFFICES, *words.PLACES}, key=len, reverse=True))
    + ")"
)


@cache
def _names() -> tuple[dict[str, str], int]:
    """The kind of each known name, and the longest name's length."""
    known: dict[str, str] = dict.fromkeys(words.BRANDS, "poi") | dict.fromkeys(words.SHOPS, "subpoi")
    known |= dict.fromkeys(words.ASSISTS, "assist") | dict.fromkeys(words.REMARKS, "redundant")
    for district in read_divisions():
        known |= dict.fromkeys(district.villages, "community") | dict.fromkeys(district.towns, "town")
    for district in read_divisions():
        known[district.name] = "district"
        if district.city:
            known[district.city] = "city"
        known[district.province] = "prov"
    return known, max(map(len, known))


def look_up(text: str) -> list[Span]:
    """The parts of an address: the longest known name at each place, then rules for what is left."""
    known, longest = _names()
    taken, spans, at = [False] * len(text), [], 0
    while at < len(text):
        for length in range(min(longest, len(text) - at), 1, -1):
            kind = known.get(text[at : at + length])
            if kind is not None:
                spans.append(Span(kind, at, at + length))
                taken[at : at + length] = [True] * length
                at += length
                break
        else:
            at += 1
    for kind, rule in [("road", _ROAD), ("poi", _POI), *((kind, re.compile(rule)) for kind, rule in _RULES)]:
        for match in rule.finditer(text):
            if not any(taken[match.start() : match.end()]):
                spans.append(Span(kind, *match.span()))
                taken[match.start() : match.end()] = [True] * len(match.group())
    return sorted(spans, key=lambda span: span.start)
