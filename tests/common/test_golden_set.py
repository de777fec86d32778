"""Golden sets: what a line may say."""

import json
import time
from pathlib import Path

import pytest

from common.engine_files import Task
from common.golden_set import MAX_ITEMS, GoldenBroken, GoldenItem, ItemExists, add_item, parse, read_folder

ITEM = '{"item": "a", "image": "a.png", "statements": ["there is a dog"], "expected": ["yes"]}\n'
TASK = "visual-entailment"


def test_the_first_line_may_set_the_lowest_accuracy() -> None:
    """Without it every accuracy passes."""
    assert parse('{"min_accuracy": 0.8}\n' + ITEM, TASK).min_accuracy == 0.8
    assert parse(ITEM, TASK).min_accuracy == 0.0


@pytest.mark.parametrize("line", ['{"min_accuracy": 1.5}\n', '{"min_accuracy": true}\n', '{"min_accuracy": "0.8"}\n'])
def test_an_accuracy_that_is_not_a_share_is_refused(line: str) -> None:
    """It must be a number from 0 to 1; the message names the line."""
    with pytest.raises(GoldenBroken, match="line 1: min_accuracy must be a number from 0 to 1"):
        parse(line + ITEM, TASK)


@pytest.mark.parametrize("place", ["item", "statements", "premise", "expected"])
def test_half_an_emoji_is_refused_with_its_line(tmp_path: Path, place: str) -> None:
    """As an editor leaves it that counts in UTF-16; no digest can be made of it."""
    row = {"item": "b", "image": "a.png", "premise": "p", "statements": ["there is a cat"], "expected": ["yes"]}
    half = {**row, place: ["\ud83d"] if isinstance(row[place], list) else "\ud83d"}
    (tmp_path / "golden.jsonl").write_text(ITEM + json.dumps(half) + "\n")
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(GoldenBroken, match=r"^line 2 has half of a character") as broken:
        read_folder(tmp_path, TASK)
    assert broken.value.problem == "UNREADABLE"


def test_a_name_that_is_there_twice_is_found_as_quickly_as_none() -> None:
    """In the largest set, and at its end."""
    lines = [ITEM.replace('"a"', f'"item-{number}"') for number in range(MAX_ITEMS - 1)]
    began = time.process_time()
    parse("".join(lines), TASK)
    took, began = time.process_time() - began, time.process_time()
    with pytest.raises(GoldenBroken, match=f"item 'item-{MAX_ITEMS - 2}' appears twice"):
        parse("".join([*lines, lines[-1]]), TASK)
    assert time.process_time() - began < 2 * took + 0.1


PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
DOG = GoldenItem("", statements=("there is a dog",), expected=("no",))


def test_an_item_is_added_with_its_picture(tmp_path: Path) -> None:
    """The set is created by the first, and read as any other; a last line without an end stays whole."""
    (tmp_path / "golden.jsonl").write_text(ITEM.rstrip())
    (tmp_path / "a.png").write_bytes(PNG)
    added = add_item(tmp_path, Task.VISUAL_ENTAILMENT, DOG, PNG)
    found = read_folder(tmp_path, TASK)
    assert (found.golden.items[1], found.picture(added), added.item[:5]) == (added, PNG, "item-")


def test_a_picture_never_replaces_another(tmp_path: Path) -> None:
    """Two items whose names make the same file name keep both pictures."""
    one = add_item(tmp_path, Task.VISUAL_ENTAILMENT, GoldenItem("a b", statements=("x",)), PNG)
    other = add_item(tmp_path, Task.VISUAL_ENTAILMENT, GoldenItem("a/b", statements=("x",)), PNG + b"2")
    found = read_folder(tmp_path, TASK)
    assert [found.picture(item) for item in (one, other)] == [PNG, PNG + b"2"]


@pytest.mark.parametrize(
    ("item", "picture", "told"),
    [
        (DOG, b"GIF89a", "no JPEG, PNG or WebP"),
        (DOG, b"", "needs a picture"),
        (GoldenItem("a\nb", statements=("x",)), PNG, "printable"),
        (GoldenItem("", statements=("x",), expected=("perhaps",)), PNG, "must be one of"),
        (GoldenItem("", statements=()), PNG, "not an item for task"),
    ],
)
def test_a_malformed_item_is_refused_and_nothing_is_written(
    tmp_path: Path, item: GoldenItem, picture: bytes, told: str
) -> None:
    """The set would be unusable for the gate."""
    with pytest.raises(GoldenBroken, match=told):
        add_item(tmp_path, Task.VISUAL_ENTAILMENT, item, picture)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    """Under a second writer too: the name is checked while the lock is held."""
    named = GoldenItem("dog", statements=("x",))
    add_item(tmp_path, Task.VISUAL_ENTAILMENT, named, PNG)
    with pytest.raises(ItemExists, match="'dog' already"):
        add_item(tmp_path, Task.VISUAL_ENTAILMENT, named, PNG)
    assert len(read_folder(tmp_path, TASK).golden.items) == 1
