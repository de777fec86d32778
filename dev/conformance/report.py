"""What was seen: whether it is what the table expects, and the table language × row."""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from dev.conformance.runner import Json
from dev.harness.process import ROOT

PATH = ROOT / "docs" / "conformance.md"


@dataclass(frozen=True, slots=True)
class Result:
    """One row of one language."""

    row: Json
    language: str
    line: Json
    seconds: float

    @property
    def is_skipped(self) -> bool:
        """Whether the language cannot run the row."""
        return "skipped" in self.line

    @property
    def is_good(self) -> bool:
        """Whether it was skipped, or has passed by the runner's judgement and by ours."""
        return self.is_skipped or bool(self.line.get("passed") and matches(self.row, self.line))

    @property
    def mark(self) -> str:
        """A word for the table."""
        return "–" if self.is_skipped else "passed" if self.is_good else "FAILED"

    def describe(self) -> str:
        """A failed row, for people."""
        expected = json.dumps(self.row["expected"], ensure_ascii=False)[:600]
        seen = json.dumps(self.line, ensure_ascii=False)[:1200]
        return f"{self.language}: {self.row['id']} FAILED\n  expected {expected}\n  seen     {seen}"


def matches(row: Json, line: Json) -> bool:
    """Whether a line shows what its row expects."""
    expected, seen, seconds = dict(row["expected"]), line.get("seen", {}), float(line.get("seconds", 0))
    if not expected.pop("min_seconds", 0) <= seconds <= expected.pop("max_seconds", float("inf")):
        return False
    if "shows" in line:
        expected = {key: value for key, value in expected.items() if key in line["shows"]}
    if "results" in expected:
        expected["results"] = expected["results"] * int(row.get("repeat", 1))
    return _is_within(expected, seen)


def _is_within(expected: object, seen: object) -> bool:
    if isinstance(expected, dict):
        return isinstance(seen, dict) and all(_is_within(value, seen.get(key)) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(seen, list):
        return len(expected) == len(seen) and all(map(_is_within, expected, seen))
    return expected == seen


def show(results: Sequence[Result]) -> None:
    """Print the table."""
    languages = list(dict.fromkeys(result.language for result in results))
    table = Table("row", *languages)
    for name, marks in _marks(results):
        table.add_row(name, *(marks.get(language, "") for language in languages))
    console = Console(width=120)
    console.print(table)
    for language in languages:
        console.print(_count(results, language))


def write_report(results: Sequence[Result]) -> None:
    """Write docs/conformance.md."""
    languages = list(dict.fromkeys(result.language for result in results))
    day = dt.datetime.now(tz=dt.UTC).date()
    lines = [
        "# Conformance of the clients",
        "",
        f"Written by `make conformance` on {day}: each row of the table (`clients/conformance/README.md`), with each",
        "client, on real servers with a scripted engine. “–”: the tool cannot make the call. grpcurl and ghz neither",
        "retry nor resend; ghz shows no answers, so only outcome and code of its calls are compared.",
        "",
        *(f"* {_count(results, language)}" for language in languages),
        "",
        f"| row | situation | {' | '.join(languages)} |",
        f"|---|---|{'---|' * len(languages)}",
    ]
    situations = {result.row["id"]: result.row["situation"] for result in results}
    for name, marks in _marks(results):
        lines.append(f"| {name} | {situations[name]} | {' | '.join(marks.get(one, '') for one in languages)} |")
    PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _marks(results: Sequence[Result]) -> list[tuple[str, dict[str, str]]]:
    found: dict[str, dict[str, str]] = {}
    for result in results:
        found.setdefault(result.row["id"], {})[result.language] = result.mark
    return list(found.items())


def _count(results: Sequence[Result], language: str) -> str:
    ours = [result for result in results if result.language == language]
    counts = {mark: sum(result.mark == mark for result in ours) for mark in ("passed", "FAILED", "–")}
    seconds = sum(result.seconds for result in ours)
    return f"{language}: {counts['passed']} passed, {counts['FAILED']} failed, {counts['–']} not run, {seconds:.0f} s"
