"""Records that are made for every call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

C = TypeVar("C")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[C]) -> type[C]:
    """A frozen dataclass with slots for the type checker, and for the interpreter one that is cheap to make.

    `dataclass(frozen=True)` sets each field by a call of `object.__setattr__`, which makes a record of ten fields three
    times as expensive. That nothing changes a record is checked where the code is checked, once.
    """
    make: Callable[[type[C]], Any] = dataclass(slots=True, unsafe_hash=True)
    made: type[C] = make(cls)
    return made
