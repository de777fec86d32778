"""Time passes, and lives of the updater begin and end: what that does to a record. Pure."""

from dataclasses import replace

from updater.breaker import Breaker, BreakerName, passed, resumed
from updater.pipeline.moves import HOUR_SECONDS
from updater.ports import Facts
from updater.record import ModelRecord, Stage
from updater.rules import Rules

_LAZY_SECONDS = 10.0  # so far a written record may lag behind
UNDER_WAY = frozenset(Stage) - {Stage.IDLE, Stage.HELD}


def aged(record: ModelRecord, facts: Facts, rules: Rules) -> ModelRecord:
    """Let the monotonic seconds since the step before pass for everything that lasts."""
    seconds = max(0.0, facts.elapsed_seconds)
    watch, update, trouble = record.watch, record.update, record.trouble
    if update is not None:
        pause = max(0.0, update.pause_seconds - seconds)
        update = replace(update, stage_seconds=update.stage_seconds + seconds, pause_seconds=pause)
    if trouble is not None:
        trouble = replace(trouble, pause_seconds=max(0.0, trouble.pause_seconds - seconds))
    return replace(
        record,
        watch=replace(watch, seconds_to_look=max(0.0, watch.seconds_to_look - seconds)),
        update=update,
        trouble=trouble,
        warm_seconds_left=max(0.0, record.warm_seconds_left - seconds),
        failure_ages=tuple(age + seconds for age in record.failure_ages if age + seconds < HOUR_SECONDS),
        hub=_passed(record.hub, seconds, facts, rules),
        activation=_passed(record.activation, seconds, facts, rules),
        device=_passed(record.device, seconds, facts, rules),
        written_at=facts.now,
    )


def begun(record: ModelRecord, facts: Facts, rules: Rules) -> ModelRecord:
    """A life of the updater begins: what it was in the middle of is counted, what it waited for went on.

    The wall clock is believed only as far as it shortens a wait that would have ended anyway.
    """
    away = 0.0 if record.written_at is None else (facts.now - record.written_at).total_seconds()
    record = replace(
        record,
        hub=_resumed(record.hub, away, facts, rules),
        activation=_resumed(record.activation, away, facts, rules),
        device=_resumed(record.device, away, facts, rules),
        has_garbage=True,
        written_at=facts.now,
    )
    if record.update is None or record.stage not in UNDER_WAY:
        return record
    return record.with_update(steps=record.update.steps + 1)


def stopped(record: ModelRecord) -> ModelRecord:
    """This updater was told to stop: if the whole stack is, a trial that is lost by it is lost without blame."""
    if record.stage not in (Stage.ACTIVATING, Stage.OBSERVING, Stage.COMMITTING):
        return record
    return record.with_update(orderly=True)


def is_worth_writing(written: ModelRecord, record: ModelRecord) -> bool:
    """Whether a record differs from the written one by more than a little time."""
    if _timeless(written) != _timeless(record):
        return True
    pairs = zip(_timers(written), _timers(record), strict=True)
    return any(abs(before - after) >= _LAZY_SECONDS for before, after in pairs)


def _timeless(record: ModelRecord) -> ModelRecord:
    update, trouble = record.update, record.trouble
    return replace(
        record,
        watch=replace(record.watch, seconds_to_look=float(record.watch.seconds_to_look > 0)),
        update=None if update is None else replace(update, stage_seconds=0.0, pause_seconds=0.0),
        trouble=None if trouble is None else replace(trouble, pause_seconds=0.0),
        warm_seconds_left=float(record.warm_seconds_left > 0),
        failure_ages=(0.0,) * len(record.failure_ages),
        hub=replace(record.hub, left_seconds=0.0, calm_seconds=0.0),
        activation=replace(record.activation, left_seconds=0.0, calm_seconds=0.0),
        device=replace(record.device, left_seconds=0.0, calm_seconds=0.0),
        written_at=None,
    )


def _timers(record: ModelRecord) -> tuple[float, ...]:
    return (
        0.0 if record.update is None else record.update.stage_seconds,
        record.warm_seconds_left,
        record.hub.left_seconds,
        record.activation.left_seconds,
        record.device.left_seconds,
    )


def _passed(breaker: Breaker, seconds: float, facts: Facts, rules: Rules) -> Breaker:
    return passed(breaker, seconds, rules.breakers[BreakerName(breaker.name)], facts.jitter)


def _resumed(breaker: Breaker, away: float, facts: Facts, rules: Rules) -> Breaker:
    return resumed(breaker, away, rules.breakers[BreakerName(breaker.name)], facts.jitter)
