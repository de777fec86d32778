"""`hotslot bundle import` with a golden set: the accuracy is printed before the pointer moves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from cli.golden_check import GoldenChoice, golden_check, golden_of
from cli.problems import CommandFailed
from common.bundle import Bundle, Committed, Origin
from common.golden_set import MAX_PICTURE_BYTES, GoldenItem, GoldenSet, read_folder
from common.judging import Thresholds, count_right, find_objection, run_judge
from common.sealing import ConvertLimits, run_convert
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer

ADDRESSES = Path(__file__).resolve().parents[2] / "examples" / "addresses"
NEW, OLD = "sha256:" + "1" * 64, "sha256:" + "2" * 64
COMMITTED = Committed("shapes", OLD, OLD, "v1", Origin.IMPORT)
STRICT = Thresholds(min_accuracy=0.0, max_accuracy_loss=0.01, min_agreement=0.9)
BUNDLE = Bundle(NEW, NEW, "v2", "ofa", "visual-entailment", "float32", "ofa-2", ())


def golden(count: int, *, expects: bool, min_accuracy: float = 0.0) -> GoldenSet:
    """A set whose expected answers are all yes."""
    expected = ("yes",) if expects else ()
    items = (GoldenItem(f"i{number}", "a.png", statements=("x",), expected=expected) for number in range(count))
    return GoldenSet(tuple(items), min_accuracy)


def answers(yes: int, count: int) -> Mapping[str, Sequence[str]]:
    """The first ones are yes, the others no."""
    return {f"i{number}": ["yes" if number < yes else "no"] for number in range(count)}


@pytest.mark.parametrize(
    ("candidate", "committed", "min_accuracy", "objection"),
    [
        (95, 95, 0.0, ""),
        (94, 95, 0.0, ""),
        (93, 95, 0.0, "the accuracy is 93.0%, the committed bundle's 95.0%"),
        (93, None, 0.0, ""),
        (79, None, 0.8, "the accuracy is 79.0%, required: 80.0%"),
    ],
)
def test_a_worse_bundle_is_objected_to(
    candidate: int, committed: int | None, min_accuracy: float, objection: str
) -> None:
    """By the set's own least accuracy, and by one point against the committed bundle."""
    before = None if committed is None else answers(committed, 100)
    found = find_objection(
        golden(100, expects=True, min_accuracy=min_accuracy), answers(candidate, 100), before, STRICT
    )

    assert found == objection


def test_a_bundle_that_disagrees_is_objected_to() -> None:
    """Where the set expects nothing, the committed bundle's answers count."""
    questions = golden(100, expects=False)

    assert find_objection(questions, answers(91, 100), answers(100, 100), STRICT) == ""
    objection = find_objection(questions, answers(80, 100), answers(100, 100), STRICT)
    assert "agrees with the committed bundle on 80.0%" in objection


def test_an_item_without_answers_is_wrong() -> None:
    """A picture that the engine refuses."""
    count = count_right(golden(2, expects=True), {"i0": ["yes"], "i1": []})

    assert (count.right, count.expected, count.unread) == (1, 2, 1)


def test_a_bundle_that_answers_with_nan_is_objected_to() -> None:
    """Also where nothing is expected and nothing is committed."""
    found = find_objection(golden(2, expects=False), {"i0": ["yes"], "i1": [""]}, None, STRICT)

    assert found == "1 of 2 questions are answered with NaN or infinity"


def test_a_bundle_that_answers_nothing_is_objected_to() -> None:
    """It refuses each picture."""
    questions = golden(4, expects=False)

    assert find_objection(questions, {}, None, STRICT) == "it answers no item"
    some = {"i0": ["yes"]}
    assert "on 25.0% of" in find_objection(questions, some, answers(4, 4), STRICT)


def test_what_the_committed_bundle_does_not_answer_is_not_compared() -> None:
    """It is no reason against the new one."""
    assert find_objection(golden(2, expects=False), answers(2, 2), {"i0": ["yes"], "i1": []}, STRICT) == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A golden set of one picture and one expected answer."""
    (tmp_path / "a.png").write_bytes(b"not read")
    line = '{"item": "i0", "image": "a.png", "statements": ["x"], "expected": ["yes"]}\n'
    (tmp_path / "golden.jsonl").write_text(line)
    return tmp_path


def judge(bundle: Path, _golden: Path, _timeout_seconds: float) -> Mapping[str, Sequence[str]]:
    """The committed bundle is right, the new one is not."""
    return {"i0": ["yes" if bundle.name.endswith("2") else "no"]}


def test_the_import_stops_before_the_pointer_moves(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers are printed; --force goes on."""
    with pytest.raises(CommandFailed, match=r"100\.0%; nothing is committed, `hotslot bundle import --force`"):
        golden_check(folder, GoldenChoice(folder, STRICT), force=False, judge=judge)(BUNDLE, COMMITTED)
    golden_check(folder, GoldenChoice(folder, STRICT), force=True, judge=judge)(BUNDLE, COMMITTED)

    assert capsys.readouterr().out.count("golden set: v2 has 0 of 1 expected answers right (0.0%); v1: 1") == 2


@pytest.mark.parametrize(
    ("expected", "setting"),
    [('"expected": ["yes"]', "max_accuracy_loss = 1.0"), ('"answers": ["yes"]', "min_agreement = 0.0")],
)
def test_an_import_has_the_thresholds_of_the_gate(folder: Path, expected: str, setting: str) -> None:
    """What the settings let an update lose, an import may lose, too; without them it is refused."""
    (folder / "golden.jsonl").write_text(f'{{"item": "i0", "image": "a.png", "statements": ["x"], {expected}}}\n')
    section = f'[[models]]\nname = "shapes"\n[updater.models.shapes]\nhub_folder = "{folder}"\ngolden = "{folder}"\n'

    def check() -> None:
        golden_check(folder, golden_of("shapes"), force=False, judge=judge)(BUNDLE, COMMITTED)

    Path("hotslot.toml").write_text(section)
    with pytest.raises(CommandFailed, match=r"the accuracy is|it agrees with"):
        check()
    Path("hotslot.toml").write_text(f"{section}[updater.models.shapes.gate]\n{setting}\n")
    check()


def test_addresses_are_judged_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the real judge, on the address model of the demo: the set expects a wrong part in one of four lines."""
    lines = (ADDRESSES / "golden" / "golden.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    wrong = {"item": "wrong", "addresses": ["杭州"], "expected": [[["road", "杭州", 0]]]}
    (tmp_path / "golden.jsonl").write_text("\n".join([*lines, json.dumps(wrong)]), encoding="utf-8")
    bundle = run_convert(ADDRESSES / "v1.1.0", tmp_path / "state", "v1.1.0", ConvertLimits(), "float32")
    nine_of_ten, seven_of_ten = (GoldenChoice(tmp_path, replace(STRICT, min_accuracy=least)) for least in (0.9, 0.7))
    judge_once = cache(run_judge)  # the same bundle and set: a second process would answer the same

    with pytest.raises(CommandFailed, match=r"v1\.1\.0 was not imported: the accuracy is 75\.0%, required: 90\.0%"):
        golden_check(tmp_path / "state", nine_of_ten, force=False, judge=judge_once)(bundle, None)
    golden_check(tmp_path / "state", seven_of_ten, force=False, judge=judge_once)(bundle, None)

    assert capsys.readouterr().out.count("v1.1.0 has 3 of 4 expected answers right (75.0%)") == 2


def test_a_set_that_cannot_be_used_stops_the_import(folder: Path) -> None:
    """No data is never a pass."""
    (folder / "golden.jsonl").write_text("")

    with pytest.raises(CommandFailed, match="cannot be used: the set has no items"):
        golden_check(folder, GoldenChoice(folder, STRICT), force=False, judge=judge)(BUNDLE, COMMITTED)


def test_without_a_set_nothing_is_checked(folder: Path) -> None:
    """As before."""
    golden_check(folder, None, force=False, judge=judge)(BUNDLE, COMMITTED)


def test_recording_keeps_what_can_be_read(hotslot: Hotslot, server: ScriptedServer, tmp_path: Path) -> None:
    """A picture that is too large is named with the reason; the others are recorded."""
    (tmp_path / "good.png").write_bytes(b"a picture")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)

    done = hotslot("golden", "record", str(tmp_path), "-s", "yes", "--address", server.address)

    assert done.code == 0
    assert f"huge.png is left out: the picture of 'huge' has more than {MAX_PICTURE_BYTES} bytes" in done.out
    assert "recorded 1 items" in done.out
    assert [item.image for item in read_folder(tmp_path, "visual-entailment").golden.items] == ["good.png"]
