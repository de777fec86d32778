"""The report of what callers see."""

from dev.conformance.swaps import PATH, Run, make_page

_COUNTS = {"calls": 7, "failed": 0, "longest_seconds": 0.25, "items": 9, "failed_items": 0, "duplicated": 0}


def _run(language: str, calls: int) -> Run:
    return Run("1 swap", language, {**_COUNTS, "calls": calls, "missing": 0, "revisions": {"r1": 16}, "failures": {}})


def _rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("| ")][1:]


def test_a_run_replaces_the_rows_of_its_own_languages() -> None:
    """The others keep theirs, with the date and commit of their own run, in the order of the languages."""
    before = make_page("", [_run("python", 1), _run("java", 2)], "Monday, a1")

    after = make_page(before, [_run("java", 3), _run("go", 4)], "Tuesday, b2")

    assert _rows(after) == [
        "| 1 swap | python | 1 | 0 | 0.25 | 9 | 0 | 0 | 0 | r1 16 | Monday, a1 |",
        "| 1 swap | go | 4 | 0 | 0.25 | 9 | 0 | 0 | 0 | r1 16 | Tuesday, b2 |",
        "| 1 swap | java | 3 | 0 | 0.25 | 9 | 0 | 0 | 0 | r1 16 | Tuesday, b2 |",
    ]


def test_the_page_is_as_the_program_writes_it() -> None:
    """Nothing of it is written by hand, so a run loses nothing."""
    page = PATH.read_text(encoding="utf-8")

    assert make_page(page, [], "") == page
