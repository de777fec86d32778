"""Fails a full test run if a test that docs/faults.md lists did not run and pass.

Only for full runs: not with paths, -k, -m, --lf, or deselected tests.
"""

import re
from collections.abc import Generator
from pathlib import Path

import pytest

PAGE = Path("docs") / "faults.md"
_ITEM = re.compile(r"^\*\*([A-Z]\d+): .*?\*\*$(.*?)(?=^\*\*|^## |\Z)", re.MULTILINE | re.DOTALL)
_TEST = re.compile(r"`(tests/[^`]+::[^`]+)`(?! \(on a GPU\))")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the run, if there is a page."""
    page = config.rootpath / PAGE
    if page.exists():
        config.pluginmanager.register(FaultsRan(config, page.read_text(encoding="utf-8")), "faults-ran")


def listed(page: str) -> set[tuple[str, str]]:
    """Fault numbers and tests that the page says run in every `make test`."""
    return {(number, test) for number, where in _ITEM.findall(page) for test in _TEST.findall(where)}


class FaultsRan:
    """Compares the page with the tests that passed."""

    def __init__(self, config: pytest.Config, page: str) -> None:
        self._config = config
        self._listed = listed(page)
        self._passed: set[tuple[str, str]] = set()
        self._skipped: set[tuple[str, str]] = set()
        self._is_cut = False
        self._missing: list[str] = []

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Record that the run is not a full one."""
        self._is_cut = self._is_cut or bool(items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note how each marked test ended."""
        del call
        report = yield
        path, *_, name = item.nodeid.partition("[")[0].split("::")
        for mark in item.iter_markers("fault"):
            row = (str(mark.args[0]), f"{path}::{name}")
            if report.skipped:
                self._skipped.add(row)
            elif report.when == "call" and report.passed:
                self._passed.add(row)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a whole run that left something out."""
        if not self._is_whole(session):
            return
        for number, test in sorted(self._listed):
            row = (number, test)
            if row in self._skipped or row not in self._passed:
                how = "was skipped" if row in self._skipped else "did not run and pass"
                self._missing.append(f"{number}: {test} {how}")
        if self._missing and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say what is missing."""
        if self._missing:
            terminalreporter.section(f"{PAGE} promises what this run did not do", red=True)
            for line in self._missing:
                terminalreporter.write_line(line)

    def _is_whole(self, session: pytest.Session) -> bool:
        config, option = self._config, self._config.option
        asked = any(
            getattr(option, name, None)
            for name in ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob", "collectonly", "stepwise")
        )
        is_all = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        return is_all and not (asked or self._is_cut or session.shouldstop or session.shouldfail)
