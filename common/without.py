"""Imports without a package that is only optional to what is imported."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def missing(name: str) -> Iterator[None]:
    """Let imports inside behave as if a package were not installed; nothing changes if it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # what Python takes for "is not there"
    try:
        yield
    finally:
        del sys.modules[name]
