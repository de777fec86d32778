"""Faults on command: what a hub can do wrong, said in one line each, armed for tests and for staging.

`WHERE KIND[=VALUE] [key=number …]`, for example `file:*.bin reset after=1000 times=1`.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import unquote

from hubserver.protocol import Kind, Route

MAX_FAULTS = 64
ANYWHERE = "any"
_SHARED_KEYS = ("skip", "times")


class Wrong(StrEnum):
    """What goes wrong."""

    STATUS = "status"
    HTML = "html"
    REDIRECT = "redirect"
    STALL = "stall"
    DRIP = "drip"
    RESET = "reset"
    CUT = "cut"
    ENDLESS = "endless"
    FLIP = "flip"
    SHORT = "short"
    LIST = "list"
    UNLIST = "unlist"
    UNHASHED = "unhashed"


# What each fault may be told, beside skip and times.
_KEYS: dict[Wrong, tuple[str, ...]] = {
    Wrong.STATUS: ("retry-after",),
    Wrong.STALL: ("after",),
    Wrong.DRIP: ("after", "rate"),
    Wrong.RESET: ("after",),
    Wrong.CUT: ("after",),
    Wrong.FLIP: ("at",),
}
_NEEDS_VALUE = (Wrong.STATUS, Wrong.REDIRECT, Wrong.LIST, Wrong.UNLIST)
_OF_LISTINGS = (Wrong.LIST, Wrong.UNLIST, Wrong.UNHASHED)
_FIRST_ERROR, _LAST_STATUS = 400, 599


class FaultUnknown(ValueError):
    """A line names no fault; says what is allowed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    text: str  # as it was written
    where: str  # a Kind, or ANYWHERE
    pattern: str  # of a file's name; empty: any
    wrong: Wrong
    value: str = ""
    after: int | None = None  # bytes of the body that are sent before; None: not even the head
    rate: int = 1  # bytes a second
    at: int = 0  # offset in the file
    retry_after: int | None = None  # seconds
    skip: int = 0  # requests that are answered well before
    times: int = 0  # requests that it happens to; 0: all

    def concerns(self, route: Route) -> bool:
        """Whether it could happen to this request."""
        if self.wrong is Wrong.LIST and route.kind is Kind.FILE:
            return route.name == self.value  # what is listed on command is handed out too
        if self.wrong in _OF_LISTINGS and route.kind is not Kind.FILES:
            return False
        if self.where not in (ANYWHERE, route.kind):
            return False
        return not self.pattern or fnmatchcase(route.name, self.pattern)


class FaultPlan:
    """The faults that are armed, and how often each has happened; from any thread."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        """Arm these."""
        self._lock = threading.Lock()
        self._faults: tuple[Fault, ...] = ()
        self._met: list[int] = []
        self.arm(faults)

    def arm(self, faults: Iterable[Fault]) -> None:
        """Arm these instead of what was armed before."""
        with self._lock:
            self._faults = tuple(faults)
            self._met = [0] * len(self._faults)

    def told(self) -> list[str]:
        """Every armed fault as it was written, and how many requests it was looked at for."""
        with self._lock:
            return [f"{fault.text}  # met {met}" for fault, met in zip(self._faults, self._met, strict=True)]

    def take(self, route: Route) -> Fault | None:
        """What goes wrong with this request: the first armed fault that concerns it and is due."""
        with self._lock:
            for place, fault in enumerate(self._faults):
                if not fault.concerns(route):
                    continue
                if fault.wrong is Wrong.LIST and route.kind is Kind.FILE:
                    return fault  # uncounted: it is the listing that may change from one time to the next
                met = self._met[place]
                self._met[place] += 1
                if met >= fault.skip and not (fault.times and met >= fault.skip + fault.times):
                    return fault
        return None


def parse_faults(lines: Sequence[str]) -> tuple[Fault, ...]:
    """Read faults, one a line; empty lines and what follows a # are passed over.

    Raises:
        FaultUnknown: a line names none, or there are too many.
    """
    words = [line.split("#", 1)[0].split() for line in lines]
    faults = tuple(_fault_of(line) for line in words if line)
    if len(faults) > MAX_FAULTS:
        raise FaultUnknown(f"{len(faults)} faults, at most {MAX_FAULTS} are allowed")
    return faults


def _fault_of(words: Sequence[str]) -> Fault:
    if len(words) < 2:  # noqa: PLR2004  where, and what
        raise FaultUnknown(f"{words[0]!r} says only where; for example: {words[0]} status=500 times=1")
    where, _, pattern = words[0].partition(":")
    if where not in (ANYWHERE, *Kind) or (pattern and where != Kind.FILE):
        raise FaultUnknown(f"{words[0]!r} is no place; there are {', '.join((ANYWHERE, *Kind))} and file:PATTERN")
    name, _, value = words[1].partition("=")
    if name not in list(Wrong):
        raise FaultUnknown(f"{name!r} is no fault; there are {', '.join(Wrong)}")
    wrong = Wrong(name)
    if bool(value) != (wrong in _NEEDS_VALUE):
        raise FaultUnknown(f"{name} {'needs a value' if not value else 'has no value'}: {' '.join(words)}")
    if wrong is Wrong.STATUS and not (value.isdigit() and _FIRST_ERROR <= int(value) <= _LAST_STATUS):
        raise FaultUnknown(f"status={value} is none from {_FIRST_ERROR} to {_LAST_STATUS}")
    numbers = dict(_number_of(word, wrong) for word in words[2:])
    return Fault(
        text=" ".join(words),
        where=where,
        pattern=pattern,
        wrong=wrong,
        value=unquote(value) if wrong in _OF_LISTINGS else value,
        after=numbers.get("after"),
        rate=max(1, numbers.get("rate", 1)),
        at=numbers.get("at", 0),
        retry_after=numbers.get("retry-after"),
        skip=numbers.get("skip", 0),
        times=numbers.get("times", 0),
    )


def _number_of(word: str, wrong: Wrong) -> tuple[str, int]:
    key, _, number = word.partition("=")
    allowed = (*_KEYS.get(wrong, ()), *_SHARED_KEYS)
    if key not in allowed or not (number.isascii() and number.isdigit() and len(number) < 16):  # noqa: PLR2004  of a size
        raise FaultUnknown(
            f"{word!r} says nothing of {wrong}; it may be told {', '.join(f'{one}=N' for one in allowed)}"
        )
    return key, int(number)
