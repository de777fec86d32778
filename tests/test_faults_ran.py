"""A page that lists tests is only worth something if a run that left one out fails."""

import re

import pytest

from dev.scripts import faults
from tests.faults_ran import listed

PAGE = """
**K1: A process is killed.**

<details markdown="1"><summary>2 tests</summary>

* `tests/test_kills.py::test_a_kill`
* `tests/test_kills.py::test_on_a_card` (on a GPU)

</details>

**K2: Two processes are killed.**

<details markdown="1"><summary>1 test</summary>

* `tests/test_kills.py::test_a_kill`

</details>

**S9: Many swaps.**

* `make chaos ARGS=flat`
"""
PASSING = """
import pytest
@pytest.mark.fault("K1")
@pytest.mark.fault("K2")
@pytest.mark.parametrize("way", [1, 2])
def test_a_kill(way): assert way
def test_something_else(): pass
"""
SKIPPING = PASSING.replace("assert way", "way == 2 and pytest.skip('no way')")
WITHOUT = PASSING.replace('@pytest.mark.fault("K2")\n', "")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with the page, whose tests lie in `tests`; each run would import other plugins anew."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\ntestpaths = tests\nmarkers = fault(id): a number\n")
    (pytester.path / "docs").mkdir()
    (pytester.path / "docs" / "faults.md").write_text(PAGE)
    (pytester.path / "tests").mkdir()
    return pytester


def ended(run: pytest.Pytester, tests: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a run."""
    (run.path / "tests" / "test_kills.py").write_text(tests)
    done = run.runpytest("-p", "tests.faults_ran", *arguments)
    return int(done.ret), done.stdout.str()


def test_the_page_is_read_as_it_is_written() -> None:
    """Each of its items with a test in `make test` is understood."""
    items = re.split(r"^(?=\*\*|## )", faults.PAGE.read_text(), flags=re.MULTILINE)
    of_tests = [item for item in items if item.startswith("**") and re.search(r"`tests/[^`]+`(?! \(on a GPU\))", item)]

    found = listed(faults.PAGE.read_text())

    assert {item.partition(":")[0] for item in of_tests} == {f"**{number}" for number, _ in found}
    assert len(found) > 300


def test_a_whole_run_that_did_everything_passes(run: pytest.Pytester) -> None:
    """Every number of the page ran and passed; what needs a card, or a command of its own, is not asked for."""
    assert ended(run, PASSING)[0] == 0


def test_a_skipped_test_fails_the_run(run: pytest.Pytester) -> None:
    """One parameter that was skipped is enough."""
    code, output = ended(run, SKIPPING)
    assert code == 1
    assert "K1: tests/test_kills.py::test_a_kill was skipped" in output


def test_a_test_that_is_no_longer_there_fails_the_run(run: pytest.Pytester) -> None:
    """The page names a number that nobody carries any more."""
    code, output = ended(run, WITHOUT)
    assert code == 1
    assert "K2: tests/test_kills.py::test_a_kill did not run and pass" in output
    assert "K1" not in output


@pytest.mark.parametrize("choice", [("-k", "else"), ("tests/test_kills.py",), ("--deselect", "tests/test_kills.py")])
def test_a_chosen_part_is_not_held_to_it(run: pytest.Pytester, choice: tuple[str, ...]) -> None:
    """Who runs a part knows that it is a part."""
    assert "promises" not in ended(run, SKIPPING, *choice)[1]


def test_a_failed_run_stays_failed(run: pytest.Pytester) -> None:
    """It says what is missing beside what failed."""
    code, output = ended(run, PASSING.replace("assert way", "assert way == 1"))
    assert code == 1
    assert "1 failed" in output
