"""The probes of a trial, and its lease, which must not run out under an effect that takes long. Pure."""

from updater.core.effects import ActivateLoad, Probe, Probed
from updater.core.facts import ServerState, TrialSnapshot
from updater.core.record import ModelRecord, Update
from updater.core.rules import ObserveRules

MAX_PROBE_SECONDS = 60.0
_SLACK = 0.2  # share of the lease: used up at most before a long effect begins, and left at least when it ends


def renew(update: Update, server: ServerState, trial: TrialSnapshot, rules: ObserveRules) -> ActivateLoad:
    """Extend the lease to its whole length."""
    return ActivateLoad(trial.load_id, rules.trial_lease_seconds, update.update_id, server.generation)


def is_fresh(trial: TrialSnapshot, rules: ObserveRules) -> bool:
    """Whether an effect that takes long may begin without a renewal."""
    return trial.lease_left_seconds >= (1.0 - _SLACK) * rules.trial_lease_seconds


def build_probe(trial: TrialSnapshot, rules: ObserveRules) -> Probe:
    """The next probe; it ends before the lease, which must be fresh."""
    left = trial.lease_left_seconds - _SLACK * rules.trial_lease_seconds
    return Probe(trial.load_id, trial.previous_load_id, rules.probes_at_once, min(MAX_PROBE_SECONDS, left))


def count_probes(record: ModelRecord, result: Probed) -> ModelRecord:
    """The record with the counts of one probe."""
    update = record.under_way
    return record.with_update(
        probes_good=update.probes_good + result.good,
        probes_bad=update.probes_bad + result.bad,
        probes_not_finite=update.probes_not_finite + result.not_finite,
    )


def describe_probes(update: Update) -> str:
    """How many probes have failed, for people, to be added to a sentence; empty if none has."""
    asked = update.probes_good + update.probes_bad
    return f", {update.probes_bad} of {asked} probes failed" if update.probes_bad else ""
