"""Marks the tests that drive real processes: `pytest -m processes` runs them, `make test-rounds` again and again.

A test is one of them if its module, or that of a fixture that it uses, has `subprocess` among its names, or something
of the harness that starts processes.
"""

import subprocess
import sys
from types import ModuleType

import pytest

STARTERS = (
    "dev.harness.process",
    "dev.harness.stack",
    "dev.harness.supervised",
    "dev.bench.fair_case",
    "dev.bench.overload_case",
    "inference.runner.pictures.process",
    "tests.runner.harness",
)


def starts_processes(module: ModuleType | None) -> bool:
    """Whether a module has something among its names that starts processes."""
    for value in vars(module).values() if module is not None else ():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if value is subprocess or name in STARTERS:
            return True
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them."""
    known: dict[object, bool] = {}

    def is_starter(module: ModuleType | None) -> bool:
        if module not in known:
            known[module] = starts_processes(module)
        return known[module]

    for item in items:
        if isinstance(item, pytest.Function) and any(map(is_starter, _modules_of(item))):
            item.add_marker(pytest.mark.processes)


def _modules_of(item: pytest.Function) -> set[ModuleType | None]:
    """The modules of a test and of the fixtures that it uses."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()  # noqa: SLF001  pytest has no public name for it
    names = {found.func.__module__ for definitions in fixtures for found in definitions}
    return {item.module, *map(sys.modules.get, names)}
