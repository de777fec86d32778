"""A golden set's comparison as a JUnit report, for the test view of a CI server."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0


@dataclass(frozen=True, slots=True)
class JunitCase:
    """One question of the set."""

    item: str
    question: str
    failure: str  # empty if the answer is right


def render_junit(model: str, digest: str, cases: Sequence[JunitCase], refused: Mapping[str, str]) -> str:
    """The report as XML; `refused` has the reasons of items that the model did not answer."""
    failures = sum(bool(case.failure) for case in cases)
    head = f'name={_quote(f"golden set of {model}" if model else "golden set")} tests="{len(cases)}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuite {head} failures="{failures}" errors="0" skipped="0">',
    ]
    lines.append(f'  <properties><property name="digest" value={_quote(digest)}/></properties>')
    for case in cases:
        begin = f"  <testcase classname={_quote(case.item)} name={_quote(case.question)}"
        if not case.failure:
            lines.append(f"{begin}/>")
            continue
        sentence = f"{case.failure}: {refused[case.item]}" if case.item in refused else case.failure
        lines += [f"{begin}>", f"    <failure message={_quote(sentence)}>{escape(_clean(sentence))}</failure>"]
        lines.append("  </testcase>")
    return "\n".join([*lines, "</testsuite>", ""])


def _quote(value: str) -> str:
    return quoteattr(_clean(value))


def _clean(value: str) -> str:
    return _FORBIDDEN.sub("\ufffd", value)
