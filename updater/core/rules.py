"""Rules: the thresholds, limits and policies of decisions, as values. Made from settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from updater.core.breaker import BreakerName, BreakerRules
from updater.core.record import Stage


class Rollout(StrEnum):
    """How a revision that has passed its gate comes to answer callers."""

    TRIAL = "trial"  # all of them at once, on trial
    SHADOW = "shadow"  # it answers copies of requests first, then as a trial
    CANARY = "canary"  # a trial that gets a growing share of the requests
    CPU_BRIDGE = "cpu_bridge"  # a trial; the active model makes room on the CPU if both do not fit on its device
    UNLOAD_FIRST = "unload_first"  # a trial; the active model is unloaded if both do not fit, and nothing answers then


class Mode(StrEnum):
    """How an acceptable release is installed."""

    AUTO = "auto"  # an update
    APPROVE = "approve"  # an update that is HELD after its gate until a person approves it
    MANUAL = "manual"  # nothing, until an operator requests it


@dataclass(frozen=True, slots=True)
class ReleasePolicy:
    """The names to follow on the hub, which of them are releases, and which releases may be installed."""

    pattern: str = ""  # regular expression with ordered capture groups; empty: SemVer, with or without "v"
    prereleases: bool = False
    max_major_jump: int = 1  # largest allowed increase of the major version; 0 = unlimited
    deny: tuple[str, ...] = ()  # revisions that are never taken
    pin: str = ""  # the only revision that may be taken; empty: any
    branch: str = ""  # whose content is followed; empty: releases are


@dataclass(frozen=True, slots=True)
class GateRules:
    """Thresholds of the gate."""

    max_accuracy_loss: float = 0.01  # against the active model; share of all expected questions
    max_negative_flips: float = 0.05  # active right, candidate wrong; share of all expected questions
    significance: float = 0.05  # of the exact paired test
    min_agreement: float = 0.90  # with the active model, of questions without an expectation
    max_cost_factor: float = 1.5  # of the active model's device time
    min_cost_seconds: float = 0.05  # less device time than this is not compared
    max_differing: int = 2000  # items kept as evidence


@dataclass(frozen=True, slots=True)
class ObserveRules:
    """Thresholds of a trial."""

    window_seconds: float = 600.0  # least time on trial
    # Of a trial, or of a canary's step, that lacks answers or evidence. With probes, or while requests wait for the
    # previous slot, counted from the end of the window.
    max_seconds: float = 1800.0
    min_answers: int = 50  # before any verdict but a burst's
    error_margin: float = 0.01  # share of requests that may fail; with a previous slot: of those that it has answered
    burst_failures: int = 5  # so many failures …
    burst_share: float = 0.20  # … being such a share of all: no more waiting
    max_not_finite: int = 2  # more answers with NaN than this: no more waiting
    max_restarts: int = 1  # more deaths of its runner than this: no more waiting
    max_cost_factor: float = 2.0  # device seconds a row, of the previous revision's; see `updater.core.counts`
    min_cost_seconds: float = 1.0  # less device time of either is not compared
    significance: float = 0.01  # of the test that compares them
    min_compared: int = 30  # batches, or answers, of each of the two before cost, or latency, is judged
    max_latency_factor: float = 2.0  # 95th percentile, of the previous slot's during the trial …
    latency_margin_seconds: float = 0.05  # … and this much above it; smaller differences are noise
    probes_allowed: bool = True  # whether a trial without traffic may be committed on probes
    probes_at_once: int = 10
    look_seconds: float = 1.0  # pause between two readings of the server's state
    trial_lease_seconds: float = 60.0  # the server ends the trial this long after the last renewal
    keep_warm_seconds: float = 60.0  # time between a commit and the retirement of the previous slot


@dataclass(frozen=True, slots=True)
class CompareRules:
    """How the answers of a trial, or of a candidate before it, are compared with those of the slot that serves."""

    share: float = 0.2  # of the requests that the other slot answers too; 0: none
    busy_share: float = 0.5  # of its time that the other slot may spend on copies
    false_alarms: float = 0.02  # probability that an equally good revision is HELD, for a whole trial
    margin: float = 0.005  # share of changed answers beyond the golden set's bound that is not counted
    min_compared: int = 100  # answers before a trial with as many is kept; it is extended by a window at most
    max_mix_change: float = 0.1  # share of labels that may move between two revisions at the same hours; 0: any
    min_labels: int = 500  # of each revision in an hour of the day before it is compared


@dataclass(frozen=True, slots=True)
class RolloutRules:
    """The steps between the gate and the commit."""

    rollout: Rollout = Rollout.TRIAL
    steps: tuple[float, ...] = (5.0, 25.0, 50.0, 100.0)  # of a canary: percentages of the requests, the last one 100
    shadow_share: float = 0.2  # of the requests that are copied before the trial
    shadow_min_answers: int = 200  # compared answers after which the trial begins
    shadow_max_seconds: float = 600.0  # after which it begins with fewer


def _stage_seconds() -> Mapping[Stage, float]:
    return MappingProxyType(
        {
            Stage.STAGING: 7200.0,
            Stage.VERIFYING: 3600.0,
            Stage.GATING: 3600.0,
            Stage.ACTIVATING: 120.0,
            Stage.COMMITTING: 120.0,
            Stage.ROLLING_BACK: 900.0,
        }
    )


HUB_BREAKER = BreakerRules(trip_after=5, first_seconds=30.0, cap_seconds=900.0, probe_seconds=60.0, calm_seconds=1800.0)
ACTIVATION_BREAKER = BreakerRules(trip_after=3, first_seconds=3600.0, cap_seconds=86400.0, probe_seconds=21600.0)
DEVICE_BREAKER = BreakerRules(trip_after=1, first_seconds=600.0, cap_seconds=21600.0, probe_seconds=1800.0)


def _breakers() -> Mapping[BreakerName, BreakerRules]:
    return MappingProxyType(
        {
            BreakerName.HUB: HUB_BREAKER,
            BreakerName.ACTIVATION: ACTIVATION_BREAKER,
            BreakerName.DEVICE: DEVICE_BREAKER,
        }
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of one model."""

    policy: ReleasePolicy = ReleasePolicy()
    mode: Mode = Mode.AUTO
    gate: GateRules = GateRules()
    observe: ObserveRules = ObserveRules()
    compare: CompareRules = CompareRules()
    rollout: RolloutRules = RolloutRules()
    breakers: Mapping[BreakerName, BreakerRules] = field(default_factory=_breakers)
    stage_seconds: Mapping[Stage, float] = field(default_factory=_stage_seconds)
    poll_seconds: float = 60.0
    poll_jitter: float = 0.2  # share of it, on top
    max_steps: int = 40  # stages entered and starts of the updater in one update
    max_attempts: int = 3  # of one effect whose failure may pass
    max_fetch_attempts: int = 8  # of a download, with pauses of more than 8 minutes in all; then the update is given up
    # Pauses before files whose bytes were not the listed ones are fetched again: more than an hour, then it is HELD.
    mismatch_pauses: tuple[float, ...] = (30.0, 60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0)
    max_crashes: int = 3  # of the server in a first install; restarts of the machine in the trials of any update
    max_failed_loads: int = 3  # of the committed bundle, before the updater reverts to the previous committed one
    max_restarts: int = 5  # of the runner of the active slot, before the updater reverts to the previous committed one
    max_failures_an_hour: int = 3  # more failed updates open the activation breaker
    retry_seconds: float = 2.0  # pause before an effect whose failure may pass is tried again; doubles with each
    look_seconds: float = 1.0  # pause between two readings of the server's state, and after a failed effect
    abandoned_seconds: float = 600.0  # pause after an update that transient faults ended
    max_staged_bytes: int = 64 << 30
    cap_bytes: int = 16 << 30  # of all unreferenced bundles and sources
    device: str = "auto"  # `device` of the model's settings: where a first install is loaded
