"""One step of the shipped updater in the small world."""

from dataclasses import replace

from tests.updater.core.crash_effects import is_failback, perform
from tests.updater.core.crash_journal import open_journal, write, write_witness
from tests.updater.core.crash_world import GOLDEN, LEFT_SECONDS, NOW, THIS, World, keep, server_state
from updater.core.breaker import Breaker, BreakerName
from updater.core.effects import Wait
from updater.core.facts import Facts, OperatorCommand
from updater.core.record import ModelRecord
from updater.stages.commands import CommandResult
from updater.stages.machine import Step, apply_result, decide, refresh
from updater.stages.transitions import Transition


def step(world: World, command: OperatorCommand | None = None) -> tuple[Step | CommandResult, World, World]:
    """One step of the updater.

    Returns:
        What was decided; the world after its effect, before the record is written; the world after that.
    """
    if not world.has_begun:
        world = open_journal(world)
    if world.is_stopped:
        return Wait(0.0), world, world
    facts, rules = facts_of(world, command), world.rules
    refreshed = refresh(world.record, facts, rules).record
    decided, after = decide(refreshed, facts, rules), world
    if isinstance(decided, Transition | CommandResult):
        record = decided.record
    elif isinstance(decided, Wait):
        record = refreshed
    else:
        after, result = perform(world, decided)
        if after.record is not world.record:  # it has lost the id of a load that is gone now
            refreshed = refresh(after.record, facts, rules).record
        record = apply_result(refreshed, decided, result, facts, rules).record
    written = after._replace(record=keep(plain(record)), has_begun=True, replaced=_replaced(world, record))
    written = write_witness(write(world, written))
    if is_failback(written) and not is_failback(world):
        written = written._replace(must_wait_for_breaker=True)
    return decided, after, written


def facts_of(world: World, command: OperatorCommand | None = None) -> Facts:
    """The facts of a step."""
    return Facts(
        now=NOW,
        elapsed_seconds=10.0,
        is_first=not world.has_begun,
        fresh_id="update",
        jitter=0.5,
        server=server_state(world),
        pointer=world.pointer,
        golden=GOLDEN,
        sealed=world.sealed,
        command=command,
        boot_id=THIS,
    )


def _replaced(world: World, record: ModelRecord) -> frozenset[str]:
    """The contents that were committed and replaced, as the model itself sees it."""
    old, new = world.record.committed, record.committed
    if not (world.follows_branch or world.is_imported) or old is None or new is None or old == new:
        return world.replaced
    return (world.replaced | {old.source_digest}) - {new.source_digest}


def plain(record: ModelRecord) -> ModelRecord:
    """A record without counters and messages, so that states that behave alike are one."""
    watch = replace(
        record.watch,
        seconds_to_poll=0.0,
        polls=0,
        last_polled_at=None,
        newest="",
        message="",
        listing="",
        changed_at=None,
        highest="",
        highest_at=None,
        names=0,
        left_out=0,
        left_out_names=(),
    )
    update = record.update
    if update is not None:
        update = replace(update, steps=0, stage_seconds=0.0, message="")
    return replace(
        record,
        watch=watch,
        update=update,
        hub=Breaker(BreakerName.HUB),
        activation=Breaker(BreakerName.ACTIVATION),
        device=_plain_breaker(record.device),
        written_at=None,
        failure_ages=(),
        trouble=None,
        pause_reason="",
    )


def _plain_breaker(breaker: Breaker) -> Breaker:
    """A breaker without counts; its open time passes by an event of the model."""
    return Breaker(breaker.name, breaker.state, left_seconds=LEFT_SECONDS if breaker.left_seconds > 0 else 0.0)
