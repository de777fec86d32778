"""What to do when memory runs out, by roles and policy. Pure; docs/explanation/decisions/out-of-memory.md."""

from dataclasses import dataclass
from enum import StrEnum

from inference.server.model.roles import Role

OUT_OF_MEMORY = "OUT_OF_MEMORY"
DOES_NOT_FIT = "DOES_NOT_FIT"
SHORTAGES = frozenset({OUT_OF_MEMORY, DOES_NOT_FIT})
FALLBACK_DEVICE = "cpu"


class Step(StrEnum):
    """What follows a shortage."""

    OTHER_ANSWERS = "OTHER_ANSWERS"  # the slot beside it takes the request
    FALL_BACK = "FALL_BACK"  # the active bundle goes to the fallback device
    END_TRIAL = "END_TRIAL"  # the revision on trial does not fit: the previous one is put back
    END_TRIAL_AND_FALL_BACK = "END_TRIAL_AND_FALL_BACK"  # nobody's fault; what was active before falls back
    GIVE_UP = "GIVE_UP"  # this load is lost, nobody depends on it
    REFUSE = "REFUSE"  # the caller is told; a load is tried again


@dataclass(frozen=True, slots=True)
class Place:
    """A slot as a shortage meets it."""

    role: Role
    device: str = ""  # of what it holds; empty if it holds nothing


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator wants of a model's devices."""

    device: str  # "auto", "cpu", "cuda", "cuda:N"
    cpu_fallback: bool

    def may_leave(self, device: str) -> bool:
        """Whether a model may go from this device to the fallback device."""
        return self.cpu_fallback and device not in ("", FALLBACK_DEVICE)

    def names(self, device: str) -> bool:
        """Whether the policy would have a model on this device."""
        if self.device == "auto":
            return True
        return device.startswith("cuda:") if self.device == "cuda" else device == self.device


def after_item(at: Place, beside: Place, policy: Policy, *, is_probe: bool, beside_failed: bool) -> Step:
    """Decide what follows a single item that did not fit.

    Args:
        at: the slot that ran out.
        beside: the other slot.
        policy: of the model.
        is_probe: nobody waits for the item but us: it is never given to another slot.
        beside_failed: the other slot has failed the same request already.
    """
    takes_over = beside.role in (Role.ACTIVE, Role.TRIAL) or (at.role is Role.TRIAL and beside.role is Role.PREVIOUS)
    if takes_over and beside.device and not is_probe and not beside_failed:
        return Step.OTHER_ANSWERS
    if at.role is Role.ACTIVE and policy.may_leave(at.device):
        return Step.FALL_BACK
    if beside_failed and not is_probe and {at.role, beside.role} == {Role.TRIAL, Role.PREVIOUS}:
        previous = at if at.role is Role.PREVIOUS else beside
        return Step.END_TRIAL_AND_FALL_BACK if policy.may_leave(previous.device) else Step.REFUSE
    return Step.REFUSE


def after_load(at: Place, beside: Place, policy: Policy) -> Step:
    """Decide what follows a load that did not fit.

    Args:
        at: the slot that was loaded.
        beside: the other slot.
        policy: of the model.
    """
    if at.role in (Role.CANDIDATE, Role.FALLBACK):
        return Step.GIVE_UP
    if at.role is Role.TRIAL:
        return Step.END_TRIAL if beside.role is Role.PREVIOUS else Step.REFUSE
    return Step.FALL_BACK if policy.may_leave(at.device) else Step.REFUSE
