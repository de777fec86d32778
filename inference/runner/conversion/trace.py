"""Records which configuration keys and tensors a plan reads, so that a folder can be explained. For every engine."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from inference.runner.conversion.tensor_location import TensorLocation


class TracedSection(Protocol):
    """A JSON object of a configuration file: `config_file.ConfigSection`."""

    @property
    def location(self) -> str:
        """Where it is, for example "config.json: "."""
        ...

    @property
    def values(self) -> Mapping[str, object]:
        """Its content."""
        ...

    @property
    def read(self) -> set[str]:
        """Keys that were asked for."""
        ...

    @property
    def duplicates(self) -> tuple[str, ...]:
        """Notes about keys that are there several times."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other name of a key, which wins, by key."""
        ...


class TracedTensors(Protocol):
    """The tensors of a folder: `weight_files.LocatedTensors`."""

    @property
    def file(self) -> str:
        """Name of the weight file, or of the index of its shards."""
        ...

    @property
    def locations(self) -> Mapping[str, TensorLocation]:
        """Those that the architecture has."""
        ...

    @property
    def missing(self) -> tuple[str, ...]:
        """Required names that the file does not have."""
        ...

    @property
    def surplus(self) -> tuple[str, ...]:
        """Names in the file that the architecture does not have."""
        ...


@dataclass(slots=True)
class Trace:
    """The files, keys and tensors read while the trace was active."""

    hidden: frozenset[tuple[str, str]] = frozenset()  # (location, key) that are treated as absent
    sections: list[TracedSection] = field(default_factory=list)
    located: list[TracedTensors] = field(default_factory=list)


_ACTIVE: ContextVar[Trace | None] = ContextVar("trace", default=None)


@contextmanager
def record(trace: Trace) -> Iterator[None]:
    """Record into a trace until the block ends."""
    token = _ACTIVE.set(trace)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def active_trace() -> Trace | None:
    """The trace that records now."""
    return _ACTIVE.get()
