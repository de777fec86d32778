"""The operator's settings that the pair of slots needs, and what follows from them. Pure."""

from dataclasses import dataclass
from enum import StrEnum

from common.errors import InputRefused
from inference.server.model.pair import ALL_PERCENT, CPU_DEVICE, Role, ShadowPolicy, SlotRecord

MIN_LEASE_SECONDS = 1.0
MAX_LEASE_SECONDS = 24 * 3600.0
BRIEF_SECONDS, BRIEF_DEATHS_SECONDS = 10.0, 600.0  # of service before a death that counts for this long
MIN_SERVED_SECONDS = 1.0  # a model that answered for less begins no new row of deaths


@dataclass(frozen=True, slots=True)
class RespawnRules:
    """Pauses before restarts of a runner."""

    first_seconds: float  # pause after the second death in a row; there is none after the first
    cap_seconds: float
    give_up: int  # deaths in a row, or brief ones, after which the model has given up; restarts go on every cap_seconds
    steady_seconds: float = 60.0  # a model loaded for this long resets the count of deaths


def pause_seconds(deaths_in_row: int, rules: RespawnRules) -> float:
    """Seconds to wait before the next start: 0 after the first death, then doubling up to the cap."""
    if deaths_in_row <= 1:
        return 0.0
    return min(rules.cap_seconds, rules.first_seconds * 2.0 ** min(deaths_in_row - 2, 32))


def count_death(slot: SlotRecord, now: float, rules: RespawnRules) -> int:
    """The deaths in a row of a slot whose process has ended, with this one.

    A model that answered for longer than its restart takes, load and pause, begins a new row. So a restart pause never
    exceeds the service time before it, unless the model serves less than half of the time.
    """
    count, load = slot.deaths_in_row + 1, slot.load
    if load is None or not load.is_loaded:
        return count
    restart_seconds = load.load_seconds + pause_seconds(count, rules)
    return 1 if now - load.loaded_at >= max(MIN_SERVED_SECONDS, restart_seconds) else count


def list_brief_deaths(slot: SlotRecord, now: float, rules: RespawnRules) -> tuple[float, ...]:
    """When the slot's process ended after less than ten seconds of service, in the last ten minutes, with this death.

    A model that always dies soon after its load has no pauses if it answers for longer than its load takes. The pauses
    do not depend on these deaths; whether it has given up does.
    """
    recent = tuple(at for at in slot.brief_deaths if now - at < BRIEF_DEATHS_SECONDS)
    load = slot.load
    if load is not None and load.is_loaded and now - load.loaded_at >= BRIEF_SECONDS:
        return recent
    return (*recent, now)[-rules.give_up :]


@dataclass(frozen=True, slots=True)
class DeviceRules:
    """The operator's settings for a model's device."""

    device: str  # "auto", "cpu", "cuda", "cuda:N"
    allow_cpu_fallback: bool  # whether the model may move to the CPU when a GPU runs out of memory

    def may_move_to_cpu(self, device: str) -> bool:
        """Whether a model may be moved from this device to the CPU."""
        return self.allow_cpu_fallback and device not in ("", CPU_DEVICE)

    def allows(self, device: str) -> bool:
        """Whether the configured device includes this one."""
        if self.device == "auto":
            return True
        return device.startswith("cuda:") if self.device == "cuda" else device == self.device


@dataclass(frozen=True, slots=True)
class SlotRules:
    """The settings of a model that `transitions.apply` uses."""

    model: str
    device: DeviceRules
    respawn: RespawnRules
    standby: bool  # whether an idle process is kept in the free slot


class ShortageAction(StrEnum):
    """What the server does after a shortage; the reasons are in docs/explanation/decisions/out-of-memory.md."""

    USE_OTHER_SLOT = "USE_OTHER_SLOT"  # the other slot takes the request
    FALL_BACK_TO_CPU = "FALL_BACK_TO_CPU"  # the active bundle is loaded on the CPU
    ROLL_BACK_TRIAL = "ROLL_BACK_TRIAL"  # the revision on trial does not fit; the previous slot becomes active
    ROLL_BACK_TRIAL_AND_FALL_BACK = "ROLL_BACK_TRIAL_AND_FALL_BACK"  # both ran out; not counted against the trial
    ABANDON_LOAD = "ABANDON_LOAD"  # no caller depends on this load
    REFUSE = "REFUSE"  # the caller gets an error; a load is tried again


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """The facts about a slot that the decision needs."""

    role: Role
    device: str = ""  # of the load; empty if the slot holds none


def decide_after_item(
    slot: SlotFacts, other: SlotFacts, rules: DeviceRules, *, is_probe: bool, other_failed: bool
) -> ShortageAction:
    """Decide what follows when a single item did not fit into memory.

    Args:
        slot: the slot that ran out of memory.
        other: the other slot.
        rules: of the model.
        is_probe: the item is a probe or self-test, which tests one slot and is never given to another.
        other_failed: the other slot has already failed the same request.
    """
    can_hand_over = other.role in (Role.ACTIVE, Role.TRIAL) or (slot.role is Role.TRIAL and other.role is Role.PREVIOUS)
    if can_hand_over and other.device and not is_probe and not other_failed:
        return ShortageAction.USE_OTHER_SLOT
    if slot.role is Role.ACTIVE and rules.may_move_to_cpu(slot.device):
        return ShortageAction.FALL_BACK_TO_CPU
    if other_failed and not is_probe and {slot.role, other.role} == {Role.TRIAL, Role.PREVIOUS}:
        previous = slot if slot.role is Role.PREVIOUS else other
        if rules.may_move_to_cpu(previous.device):
            return ShortageAction.ROLL_BACK_TRIAL_AND_FALL_BACK
    return ShortageAction.REFUSE


def decide_after_load(slot: SlotFacts, other: SlotFacts, rules: DeviceRules) -> ShortageAction:
    """Decide what follows when a load did not fit into memory.

    Args:
        slot: the slot that was loading.
        other: the other slot.
        rules: of the model.
    """
    if slot.role in (Role.CANDIDATE, Role.FALLBACK):
        return ShortageAction.ABANDON_LOAD
    if slot.role is Role.TRIAL:
        return ShortageAction.ROLL_BACK_TRIAL if other.role is Role.PREVIOUS else ShortageAction.REFUSE
    return ShortageAction.FALL_BACK_TO_CPU if rules.may_move_to_cpu(slot.device) else ShortageAction.REFUSE


def check_lease(seconds: float, field: str) -> None:
    """Check the lease of a trial or of a gap.

    Raises:
        InputRefused: it is out of range.
    """
    if not MIN_LEASE_SECONDS <= seconds <= MAX_LEASE_SECONDS:
        raise InputRefused(
            f"{field} is {MIN_LEASE_SECONDS:.0f} s to {MAX_LEASE_SECONDS:.0f} s, not {seconds:.3f} s",
            reason="LEASE_OUT_OF_RANGE",
            field=field,
        )


def check_percent(percent: float | None) -> None:
    """Check the part of the requests that a trial gets; None is always valid.

    Raises:
        InputRefused: it is out of range, or no number.
    """
    if percent is not None and not 0 <= percent <= ALL_PERCENT:
        raise InputRefused(
            f"a canary gets 0 to 100 percent of the requests, not {percent:g}",
            reason="PERCENT_OUT_OF_RANGE",
            field="percent",
        )


def check_shadow(policy: ShadowPolicy | None) -> None:
    """Check the sample of requests that is copied; None is always valid.

    Raises:
        InputRefused: a value is out of range, or no number.
    """
    if policy is None:
        return
    values = {
        "share": (policy.share, 0 <= policy.share <= 1, "0 to 1"),
        "busy_share": (policy.busy_share, 0 < policy.busy_share <= 1, "more than 0, at most 1"),
        "max_duration": (policy.max_seconds, policy.max_seconds > 0, "more than 0 s"),
    }
    for name, (value, is_valid, allowed) in values.items():
        if not is_valid:
            message = f"shadow.{name} must be {allowed}, is {value:g}"
            raise InputRefused(message, reason="SHADOW_OUT_OF_RANGE", field=f"shadow.{name}")
