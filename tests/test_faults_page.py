"""docs/faults.md says what the tests' marks say, and what `make chaos` found when it last ran."""

from dataclasses import replace
from pathlib import Path

from dev.chaos.catalog import STEPS
from dev.chaos.report import Machine, Row, read_report, write_report
from dev.scripts import faults
from dev.scripts.fault_sentences import SENTENCES

ROW = Row("deaf", ("U7",), "passed", 40, {"p99_ms": 5.0}, (), 30.0, 7, "abc", "2026-01-01T00:00:00+00:00")


def test_the_page_is_fresh() -> None:
    """`python -m dev.scripts.faults` changes nothing."""
    assert faults.PAGE.read_text() == faults.render()


def test_every_fault_is_told_in_a_sentence() -> None:
    """One for each number that a test carries, and none for a number without a test."""
    numbers = {row.split(":")[0].removeprefix("**") for row in faults.render().splitlines() if row.startswith("**")}
    assert set(SENTENCES) == numbers


def test_what_takes_long_has_passed_when_it_last_ran() -> None:
    """Every step of `make chaos` stands in the committed report with its numbers, passed, and counted something."""
    assert faults.unproven(read_report()) == []


def test_a_step_that_did_not_pass_proves_nothing() -> None:
    """Neither failed, nor skipped, nor run for other numbers, nor never run."""
    good = {step.name: replace(ROW, step=step.name, faults=step.faults) for step in STEPS}
    assert faults.unproven(good) == []
    for change in ({"result": "failed"}, {"result": "skipped"}, {"faults": ("U6",)}, {"count": 0}):
        assert len(faults.unproven({**good, "deaf": replace(good["deaf"], **change)})) == 1
    del good["deaf"]
    assert faults.unproven(good) == ["deaf: never run"]


def test_a_run_of_some_steps_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    """Each row has its own commit and seed; a newer one replaces it."""
    report = tmp_path / "report.json"
    disk = replace(ROW, step="disk", faults=("D1",), machine=Machine(2, "a processor", 0.5))
    write_report([ROW, disk], report)
    write_report([replace(ROW, seed=8)], report)
    assert {"deaf": replace(ROW, seed=8), "disk": disk} == read_report(report)
