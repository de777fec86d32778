"""Tests that drive processes are found by what their modules and fixtures use."""

import pytest

CONFTEST = """
import pytest
from dev.harness.stack import Stack
pytest_plugins = ["tests.process_marks"]
@pytest.fixture
def served(): return Stack
"""
TESTS = """
def test_serves(served): pass
def test_computes(): pass
"""


def test_tests_are_marked_by_their_modules_and_fixtures(pytester: pytest.Pytester) -> None:
    """One module imports `subprocess`; in the other, only the test with the fixture of a server drives a process."""
    scope = "asyncio_default_fixture_loop_scope = function\n"  # a plugin of ours warns without it
    pytester.makeini("[pytest]\nmarkers = processes: drives processes\n" + scope)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_mixed=TESTS, test_program="import subprocess\ndef test_runs(): pass\n")

    found = pytester.runpytest("-m", "processes", "--collect-only", "-q").stdout.str()

    names = [line.partition("::")[2] for line in found.splitlines() if "::" in line]
    assert names == ["test_serves", "test_runs"]
