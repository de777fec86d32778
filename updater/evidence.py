"""Why a verdict fell as it did: numbers, and the items on which two models differ."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measured:
    """One number that was held against a threshold."""

    name: str  # stable, for example "accuracy"
    candidate: float
    active: float | None  # None where there is nothing to compare with
    threshold: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Differing:
    """An item on which the candidate and the active model differ, or the candidate is wrong."""

    item: str
    text: str
    expected: str  # empty if nothing was expected
    active: str
    candidate: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a verdict fell as it did."""

    measured: tuple[Measured, ...] = ()
    differing: tuple[Differing, ...] = ()  # the first ones
    on_probes: bool = False
