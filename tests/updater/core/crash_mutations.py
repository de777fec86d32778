"""Defences taken out of the shipped functions, one at a time: each must make the crash model fail."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from tests.updater.core.crash_world import Budget, World
from updater.actions import Action, Activated, Enter
from updater.pipeline import activate, moves, observe, reconcile
from updater.pipeline.moves import Concluded
from updater.ports import Facts
from updater.record import ModelRecord, Stage
from updater.rules import Rules

_observe = observe.decide
_activated = activate.activated


@contextlib.contextmanager
def no_reconcile() -> Iterator[None]:
    """Nothing ever puts back what is committed."""
    with patch.object(reconcile, "restore", lambda *_, **__: None):
        yield


@contextlib.contextmanager
def commit_before_observe() -> Iterator[None]:
    """A trial is committed as soon as it is there."""

    def decide(record: ModelRecord, facts: Facts, rules: Rules) -> Action:
        is_there = facts.front is not None and facts.front.trial is not None
        return Enter(Stage.COMMITTING, "KEPT") if is_there else _observe(record, facts, rules)

    with _decisions(Stage.OBSERVING, decide):
        yield


@contextlib.contextmanager
def no_quarantine() -> Iterator[None]:
    """What failed is not written down."""
    with patch.object(moves, "quarantine", lambda record, *_: record):
        yield


@contextlib.contextmanager
def floor_raised_at_activation() -> Iterator[None]:
    """The floor rises with the trial, not with the commit."""

    def activated(record: ModelRecord, result: Activated, facts: Facts) -> Concluded:
        record, events = _activated(record, result, facts)
        return replace(record, floor=record.under_way.revision), events

    with patch.object(activate, "activated", activated):
        yield


def worlds(all_of_them: list[World]) -> list[World]:
    """Enough for a mutation: without operators, with few faults."""
    return [replace(world, budget=Budget(1, 1)) for world in all_of_them if not world.budget.wishes]


def _decisions(stage: Stage, decide: Callable[..., Action]) -> AbstractContextManager[Any]:
    from updater import decide as decisions  # noqa: PLC0415  the module, whose table is patched

    return patch.dict(decisions._TRIED, {stage: decide})  # noqa: SLF001  a mutation reaches where nobody else may


ALL: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "no reconcile": no_reconcile,
    "commit before observe": commit_before_observe,
    "no quarantine": no_quarantine,
    "floor raised at activation": floor_raised_at_activation,
}
