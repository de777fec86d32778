"""Events of the pair of slots, and the effects that follow from them. Records only."""

from dataclasses import dataclass

from common.errors import HotslotError
from inference.server.events import CpuFallbackChanged, SwapDone, TrafficChanged
from inference.server.model.pair import CpuFallbackRow, Load, Role, ShadowPolicy, SlotRecord
from inference.server.model.policy import ShortageAction
from inference.server.model.stats import StatsKey

# Events of a slot's process.


@dataclass(frozen=True, slots=True)
class Hello:
    """The process is idle; it can compute on these devices."""

    slot: str
    devices: tuple[tuple[str, str], ...]  # device, computing precision; best first


@dataclass(frozen=True, slots=True)
class Loaded:
    """The load is complete."""

    slot: str
    device: str
    precision: str
    row_seconds: float  # measured by the warm-up


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The load failed; the process cannot be used for another."""

    slot: str
    reason: str
    message: str
    error: HotslotError  # that LoadSlot returns


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """The process has ended, after a retire or unexpectedly."""

    slot: str
    detail: str
    has_stalled: bool = False  # it was ended because its load made no progress
    is_input_at_fault: bool = False  # a request that it held has ended a second process by that
    has_requests: bool = False  # it held callers' requests that can be run again


@dataclass(frozen=True, slots=True)
class Stuck:
    """The process makes no progress within the limit of its device call."""

    slot: str
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseOver:
    """The last lease of a retiring slot has ended."""

    slot: str


# Events of a slot's requests.


@dataclass(frozen=True, slots=True)
class Proven:
    """The slot has answered a request."""

    slot: str


@dataclass(frozen=True, slots=True)
class SelfTestFailed:
    """The slot has failed its self-test."""

    slot: str
    reason: str


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The slot had no memory for a single item."""

    slot: str
    action: ShortageAction  # what follows, by `after_item`: it decides the fate of the request too
    new_load_id: str  # of the load on the CPU, if one begins


@dataclass(frozen=True, slots=True)
class TrialRanOut:
    """A revision had no memory for an item that the previous slot has answered since."""

    key: StatsKey


# Commands, and time.


@dataclass(frozen=True, slots=True)
class Boot:
    """The server starts."""

    load: Load | None  # of the committed bundle; its device is chosen by the pair
    saved: CpuFallbackRow | None  # in the fallback file


@dataclass(frozen=True, slots=True)
class BootAgain:
    """The committed bundle, which could not be read when the server started, can be read now."""

    load: Load  # its device is chosen by the pair


@dataclass(frozen=True, slots=True)
class LoadBundle:
    """Load a bundle into the free slot."""

    load: Load


@dataclass(frozen=True, slots=True)
class Activate:
    """Begin a trial, extend its lease, or roll back to the previous slot, depending on what `load_id` names."""

    load_id: str
    trial_lease_seconds: float
    transaction_id: str
    percent: float | None = None  # of the requests that the trial gets; None: all, or as before
    shadow: ShadowPolicy | None = None  # None: nothing is copied, or as before


@dataclass(frozen=True, slots=True)
class Commit:
    """End the trial and keep its revision."""

    load_id: str
    transaction_id: str


@dataclass(frozen=True, slots=True)
class SetPercent:
    """Change which part of the requests the trial gets."""

    load_id: str
    percent: float
    transaction_id: str


@dataclass(frozen=True, slots=True)
class SetShadow:
    """Copy requests for a candidate, or for the comparison of a trial."""

    load_id: str
    policy: ShadowPolicy
    transaction_id: str


@dataclass(frozen=True, slots=True)
class GapTerms:
    """A command accepts that nothing answers for a while."""

    lease_seconds: float  # after which the unloaded model is loaded again if nothing answers
    new_load_id: str  # of that load


@dataclass(frozen=True, slots=True)
class Retire:
    """Empty the slot that holds a load."""

    load_id: str
    gap: GapTerms | None = None  # also the active slot's, although nothing answers then


@dataclass(frozen=True, slots=True)
class RenewGap:
    """A command of the updater is under way: the lease of a gap begins anew."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The server stops: all processes retire, or are killed."""

    at_once: bool = False


Event = (
    Hello
    | Loaded
    | LoadFailed
    | ProcessEnded
    | Stuck
    | LeaseOver
    | Proven
    | SelfTestFailed
    | OutOfMemory
    | TrialRanOut
    | Boot
    | BootAgain
    | LoadBundle
    | Activate
    | Commit
    | SetPercent
    | SetShadow
    | Retire
    | RenewGap
    | Tick
    | Stop
)

# Effects on a slot's process.


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process; it gets full priority at once, unless it is for a candidate."""

    slot: str
    role: Role


@dataclass(frozen=True, slots=True)
class PrepareProcess:
    """Start a process that the next slot which needs one takes, with its imports done."""


@dataclass(frozen=True, slots=True)
class StartLoad:
    """Load in the idle process."""

    slot: str
    load: Load


@dataclass(frozen=True, slots=True)
class Prioritise:
    """Give the process full priority."""

    slot: str


@dataclass(frozen=True, slots=True)
class Deprioritise:
    """Give the process low priority: its imports are done, and no caller waits for it."""

    slot: str


@dataclass(frozen=True, slots=True)
class EndProcess:
    """End the process politely: what it holds is answered first."""

    slot: str


@dataclass(frozen=True, slots=True)
class AwaitLeases:
    """Send LeaseOver when the process's last lease has ended."""

    slot: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process at once."""

    slot: str
    detail: str
    is_retiring: bool = False  # nobody waits for its successor, and the next load needs its memory


# Effects on requests.


@dataclass(frozen=True, slots=True)
class OpenQueue:
    """Send what waits in the slot's queue to its process."""

    slot: str
    row_seconds: float


@dataclass(frozen=True, slots=True)
class SendSelfTest:
    """Send a self-test to the slot."""

    slot: str


@dataclass(frozen=True, slots=True)
class RecordDeath:
    """Record the end of the process against a revision; counted when the requests that it held are done."""

    slot: str
    key: StatsKey
    is_trial: bool


@dataclass(frozen=True, slots=True)
class MoveRequests:
    """Run what the slot held, and what waited for it, again on another slot (or the same one)."""

    slot: str
    target: str | None  # None: no slot can answer


@dataclass(frozen=True, slots=True)
class SubmitAwaitingCpu:
    """Queue the requests that await the CPU fallback."""

    slot: str


# Effects on records and files.


@dataclass(frozen=True, slots=True)
class FailLoad:
    """Report a load as failed."""

    load_id: str
    error: HotslotError


@dataclass(frozen=True, slots=True)
class NotifyLoad:
    """Report progress of a load."""

    load_id: str
    phase: str  # "starting", "loaded"


@dataclass(frozen=True, slots=True)
class FreezeBaseline:
    """Keep the present counters of a revision for comparison with the trial."""

    key: StatsKey | None


@dataclass(frozen=True, slots=True)
class SaveFallback:
    """Write the fallback file: the row, or without one."""

    row: CpuFallbackRow | None


@dataclass(frozen=True, slots=True)
class EmitSlot:
    """Emit a change of a slot."""

    slot: SlotRecord  # as it was then
    role: Role
    change: str
    detail: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Emit:
    """Emit a change of the pair."""

    event: SwapDone | CpuFallbackChanged | TrafficChanged


Effect = (
    Spawn
    | PrepareProcess
    | StartLoad
    | Prioritise
    | Deprioritise
    | EndProcess
    | AwaitLeases
    | Kill
    | OpenQueue
    | SendSelfTest
    | RecordDeath
    | MoveRequests
    | SubmitAwaitingCpu
    | FailLoad
    | NotifyLoad
    | FreezeBaseline
    | SaveFallback
    | EmitSlot
    | Emit
)
