"""Faults of a hub, one line each, for tests and for staging.

`WHERE KIND[=VALUE] [key=number …]`, for example `file:*.bin reset after=1000 times=1`.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import unquote

from hubserver.protocol import HubResource, HubRoute

MAX_FAULTS = 64
ANYWHERE = "any"
_SHARED_KEYS = ("skip", "times")


class HubFaultKind(StrEnum):
    """The kind of an injected fault."""

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


# Parameters of each fault, beside skip and times.
_KEYS: dict[HubFaultKind, tuple[str, ...]] = {
    HubFaultKind.STATUS: ("retry-after",),
    HubFaultKind.STALL: ("after",),
    HubFaultKind.DRIP: ("after", "rate"),
    HubFaultKind.RESET: ("after",),
    HubFaultKind.CUT: ("after",),
    HubFaultKind.FLIP: ("at",),
}
_NEEDS_VALUE = (HubFaultKind.STATUS, HubFaultKind.REDIRECT, HubFaultKind.LIST, HubFaultKind.UNLIST)
_OF_LISTINGS = (HubFaultKind.LIST, HubFaultKind.UNLIST, HubFaultKind.UNHASHED)
_FIRST_ERROR, _LAST_STATUS = 400, 599


class FaultUnknown(ValueError):
    """A line is not a valid fault; the message lists what is allowed."""


@dataclass(frozen=True, slots=True)
class HubFault:
    """One injected fault."""

    text: str  # as it was written
    where: str  # a HubResource, or ANYWHERE
    pattern: str  # of a file's name; empty: any
    kind: HubFaultKind
    value: str = ""
    after: int | None = None  # bytes of the body that are sent before; None: not even the head
    rate: int = 1  # bytes a second
    at: int = 0  # offset in the file
    retry_after: int | None = None  # seconds
    skip: int = 0  # requests that are answered well before
    times: int = 0  # requests that it happens to; 0: all

    def concerns(self, route: HubRoute) -> bool:
        """Whether the fault applies to this request."""
        if self.kind is HubFaultKind.LIST and route.kind is HubResource.FILE:
            return route.name == self.value  # what is listed on command is handed out too
        if self.kind in _OF_LISTINGS and route.kind is not HubResource.FILES:
            return False
        if self.where not in (ANYWHERE, route.kind):
            return False
        return not self.pattern or fnmatchcase(route.name, self.pattern)


class FaultPlan:
    """The faults that are armed, and how often each has happened; from any thread."""

    def __init__(self, faults: Iterable[HubFault] = ()) -> None:
        """Start with these faults."""
        self._lock = threading.Lock()
        self._faults: tuple[HubFault, ...] = ()
        self._met: list[int] = []
        self.arm(faults)

    def arm(self, faults: Iterable[HubFault]) -> None:
        """Replace the armed faults."""
        with self._lock:
            self._faults = tuple(faults)
            self._met = [0] * len(self._faults)

    def lines(self) -> list[str]:
        """Every armed fault as it was written, with the number of requests that it matched."""
        with self._lock:
            return [f"{fault.text}  # met {met}" for fault, met in zip(self._faults, self._met, strict=True)]

    def take(self, route: HubRoute) -> HubFault | None:
        """The fault to inject for this request: the first that matches it and is due."""
        with self._lock:
            for place, fault in enumerate(self._faults):
                if not fault.concerns(route):
                    continue
                if fault.kind is HubFaultKind.LIST and route.kind is HubResource.FILE:
                    return fault  # uncounted: it is the listing that may change from one time to the next
                met = self._met[place]
                self._met[place] += 1
                if met >= fault.skip and not (fault.times and met >= fault.skip + fault.times):
                    return fault
        return None


def parse_faults(lines: Sequence[str]) -> tuple[HubFault, ...]:
    """Read faults, one a line; empty lines and what follows a # are passed over.

    Raises:
        FaultUnknown: a line names none, or there are too many.
    """
    words = [line.split("#", 1)[0].split() for line in lines]
    faults = tuple(_fault_of(line) for line in words if line)
    if len(faults) > MAX_FAULTS:
        raise FaultUnknown(f"{len(faults)} faults, at most {MAX_FAULTS} are allowed")
    return faults


def _fault_of(words: Sequence[str]) -> HubFault:
    if len(words) < 2:
        raise FaultUnknown(f"{words[0]!r} says only where; for example: {words[0]} status=500 times=1")
    where, _, pattern = words[0].partition(":")
    if where not in (ANYWHERE, *HubResource) or (pattern and where != HubResource.FILE):
        places = ", ".join((ANYWHERE, *HubResource))
        raise FaultUnknown(f"{words[0]!r} is no place; there are {places} and file:PATTERN")
    name, _, value = words[1].partition("=")
    if name not in list(HubFaultKind):
        raise FaultUnknown(f"{name!r} is no fault; there are {', '.join(HubFaultKind)}")
    kind = HubFaultKind(name)
    if bool(value) != (kind in _NEEDS_VALUE):
        raise FaultUnknown(f"{name} {'needs a value' if not value else 'has no value'}: {' '.join(words)}")
    if kind is HubFaultKind.STATUS and not (value.isdigit() and _FIRST_ERROR <= int(value) <= _LAST_STATUS):
        raise FaultUnknown(f"status={value} is none from {_FIRST_ERROR} to {_LAST_STATUS}")
    numbers = dict(_number_of(word, kind) for word in words[2:])
    return HubFault(
        text=" ".join(words),
        where=where,
        pattern=pattern,
        kind=kind,
        value=unquote(value) if kind in _OF_LISTINGS else value,
        after=numbers.get("after"),
        rate=max(1, numbers.get("rate", 1)),
        at=numbers.get("at", 0),
        retry_after=numbers.get("retry-after"),
        skip=numbers.get("skip", 0),
        times=numbers.get("times", 0),
    )


def _number_of(word: str, kind: HubFaultKind) -> tuple[str, int]:
    key, _, number = word.partition("=")
    allowed = (*_KEYS.get(kind, ()), *_SHARED_KEYS)
    if key not in allowed or not (number.isascii() and number.isdigit() and len(number) < 16):
        raise FaultUnknown(
            f"{word!r} is not a parameter of {kind}; allowed: {', '.join(f'{one}=N' for one in allowed)}"
        )
    return key, int(number)
