"""A golden set is answered with a sealed bundle in full device calls, for each task."""

import errno
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.bundle import Bundle
from common.errors import InputRefused
from common.exit_codes import ExitCode
from common.golden_set import GoldenFolder, GoldenItem, GoldenSet
from inference.runner.engines.base import AddressItem, Item, PictureFormat, PreparedItem, RowRange, RowResult
from inference.runner.judge import answer_set, fill_calls, main
from inference.wire import AddressSpan, EntailmentScores

ROWS = 8


@dataclass(frozen=True)
class Prepared:
    """The questions of an item; a text of more than one word takes a row for each."""

    texts: tuple[str, ...]

    @property
    def rows(self) -> int:
        """One for each word."""
        return sum(len(text.split()) for text in self.texts)

    @property
    def results(self) -> list[RowResult]:
        """By row; the last row of a text has its result."""
        found: list[RowResult] = []
        for text in self.texts:
            found += [None] * (len(text.split()) - 1)
            found.append((AddressSpan("road", 0, len(text), math.nan if text == "nan" else 0.5),))
        return found


class WordEngine:
    """Tags each whole address as a road, and records its calls."""

    device, precision, max_call_rows = "cpu", "float32", ROWS
    pictures: PictureFormat | None = None

    def __init__(self) -> None:
        self.calls: list[int] = []  # rows of each

    def prepare(self, item: Item) -> Prepared:
        """Refuse the address "refused"."""
        assert isinstance(item, AddressItem)
        if "refused" in item.addresses:
            raise InputRefused("no address", reason="ADDRESS_EMPTY", field="addresses[0]")
        return Prepared(item.addresses)

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """The results of the rows."""
        self.calls.append(sum(part.rows for part in ranges))
        found = []
        for part in ranges:
            assert isinstance(part.item, Prepared)
            found.append(tuple(part.item.results[part.start : part.stop]))
        return found

    def warm_up(self, progress: object) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class YesEngine(WordEngine):
    """Answers yes to everything, but NaN to "nan"."""

    def prepare(self, item: Item) -> Prepared:
        """Any statements."""
        assert not isinstance(item, AddressItem)
        return Prepared(item.statements)

    def compute(self, ranges: Sequence[RowRange[PreparedItem]]) -> list[tuple[RowResult, ...]]:
        """One result for each statement."""
        self.calls.append(sum(part.rows for part in ranges))
        texts = [part.item.texts for part in ranges if isinstance(part.item, Prepared)]
        return [tuple(EntailmentScores(math.nan if text == "nan" else 0.8, 0.1, 0.1) for text in row) for row in texts]


def addresses(*texts: tuple[str, ...]) -> GoldenFolder:
    """A set of such items."""
    items = (GoldenItem(f"i{number}", addresses=row) for number, row in enumerate(texts))
    return GoldenFolder(Path(), GoldenSet(tuple(items)), "", GoldenSet(tuple(items)))


def test_two_hundred_items_take_a_call_for_each_eight() -> None:
    """Calls are full, and every item has its own answer."""
    engine = WordEngine()

    answers = answer_set(engine, addresses(*((f"road-{number}",) for number in range(200))))

    assert answers == {f"i{number}": [f'[["road", "road-{number}", 0]]'] for number in range(200)}
    assert engine.calls == [ROWS] * 25


def test_an_item_with_several_rows_has_one_answer_for_each_text() -> None:
    """A long address may be read in two calls; what is refused or NaN takes no other item's answer."""
    long = " ".join(["word"] * (2 * ROWS + 3))
    engine = WordEngine()

    answers = answer_set(engine, addresses(("a", "b c"), (long, "d"), ("refused",), ("nan", "e")))

    assert answers["i0"] == ['[["road", "a", 0]]', '[["road", "b c", 0]]']
    assert answers["i1"] == [f'[["road", "{long}", 0]]', '[["road", "d", 0]]']
    assert answers["i2"] == []
    assert answers["i3"] == ["", '[["road", "e", 0]]']
    assert max(engine.calls) == ROWS


def test_statements_share_calls(tmp_path: Path) -> None:
    """And NaN is no answer."""
    (tmp_path / "a.png").write_bytes(b"a picture")
    items = tuple(GoldenItem(f"i{number}", "a.png", statements=("yes", "nan")) for number in range(9))
    engine = YesEngine()

    answers = answer_set(engine, GoldenFolder(tmp_path, GoldenSet(items), "", GoldenSet(items)))

    assert answers == {f"i{number}": ["yes", ""] for number in range(9)}
    assert engine.calls == [8, 8, 2]


@pytest.mark.parametrize(
    ("rows", "calls"),
    [
        ([3, 3, 3], [[3, 3], [3]]),
        ([8, 1], [[8], [1]]),
        ([1, 20, 2], [[1], [8], [8], [4, 2]]),
        ([], []),
    ],
)
def test_only_what_is_larger_than_a_call_is_split(rows: list[int], calls: list[list[int]]) -> None:
    """The rows of an item share work."""
    items = [(GoldenItem(str(number)), Prepared(("a",) * count)) for number, count in enumerate(rows)]

    assert [[part.rows for _, part in call] for call in fill_calls(items, ROWS)] == calls


def test_a_bundle_that_cannot_be_read_now_is_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parent reads one line with the reason, and no traceback."""

    def fail(_folder: Path) -> Bundle:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("inference.runner.judge.read_bundle", fail)
    arguments = [f"--{name}={tmp_path}" for name in ("bundle", "golden", "into")]
    assert main(arguments) == ExitCode.CONVERSION_REFUSED
    row = json.loads(capsys.readouterr().err)
    assert (row["reason"], os.strerror(errno.EIO) in row["message"]) == ("NOT_JUDGED", True)
