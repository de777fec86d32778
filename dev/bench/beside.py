"""Runs measurements beside one another as far as the machine's computing power allows."""

import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar


class Measurable(Protocol):
    """One measurement."""

    @property
    def cores(self) -> float:
        """About how much computing it needs."""
        ...


class Judged(Protocol):
    """A result."""

    @property
    def misses(self) -> tuple[str, ...]:
        """The goals that were missed."""
        ...


C = TypeVar("C", bound=Measurable)
R = TypeVar("R", bound=Judged)


class Cores:
    """Computing power that measurements take and give back."""

    def __init__(self, cores: float) -> None:
        self._free, self._all = cores, cores
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, cores: float) -> Iterator[None]:
        """Wait until there is enough; what needs more than there is runs alone."""
        wanted = min(cores, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted - 1e-9)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


def run_beside(cases: Sequence[C], run: Callable[[C, Path], R], cores: float) -> list[R]:
    """Run each case in a folder of its own, the hardest first; results in the order of the cases."""
    free = Cores(cores)

    def run_one(case: C) -> R:
        with free.taken(case.cores), tempfile.TemporaryDirectory(prefix="hotslot-") as folder:
            found = run(case, Path(folder))
        sys.stderr.write(f"{case}: {', '.join(found.misses) or 'good'}\n")
        return found

    order = sorted(range(len(cases)), key=lambda number: -cases[number].cores)
    with ThreadPoolExecutor(len(cases)) as pool:
        results = dict(zip(order, pool.map(run_one, [cases[number] for number in order]), strict=True))
    return [results[number] for number in range(len(cases))]
