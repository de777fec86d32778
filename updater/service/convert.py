"""Converts records to messages of updates.v1, and writes the advice for operators. Pure."""

import contextlib
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from common.bundle import Provenance
from common.settings_reload import SettingsState
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from updater.core.breaker import Breaker, BreakerState
from updater.core.golden import classify_difference
from updater.core.record import CpuFallback, Differing, Evidence, HeldFor, ModelRecord, Outcome, Stage, Update, Watch
from updater.status import Share, StatusSnapshot
from updater.store.journal import PastEvent, PastUpdate

_NOTHING = Share()
SHOWN_DIFFERING = 20  # differing items in an update's own message


class Advice(NamedTuple):
    """What an operator should do."""

    code: str = ""  # for programs that have the sentence in another language; empty if there is nothing to do
    sentence: str = ""


def to_settings_status(state: SettingsState) -> status_pb2.SettingsStatus:
    """The settings in use, and what became of the last file."""
    message = status_pb2.SettingsStatus(
        level=status_pb2.HEALTH_LEVEL_DEGRADED if state.failure else status_pb2.HEALTH_LEVEL_OK,
        digest=state.digest,
        warnings=[f"the settings file was refused: {state.failure}"] if state.failure else [],
    )
    message.loaded_at.FromDatetime(state.loaded_at)
    if state.failed_at is not None:
        message.refused_at.FromDatetime(state.failed_at)
    return message


def to_stage(stage: Stage) -> "pb.UpdateStage.ValueType":
    """The enum value of a stage."""
    return pb.UpdateStage.Value(f"UPDATE_STAGE_{stage.value}")


def to_outcome(outcome: Outcome | None) -> "pb.UpdateOutcome.ValueType":
    """The enum value of an outcome; unspecified while the update is in progress."""
    return (
        pb.UPDATE_OUTCOME_UNSPECIFIED if outcome is None else pb.UpdateOutcome.Value(f"UPDATE_OUTCOME_{outcome.value}")
    )


def to_model_updates(snapshot: StatusSnapshot, share: Share = _NOTHING) -> pb.ModelUpdates:
    """The state of a model's updates; `share` is the progress of the download."""
    record = snapshot.record
    advice = Advice("FAULT", snapshot.fault) if snapshot.fault else build_advice(record)
    message = pb.ModelUpdates(
        model=record.model,
        stage=to_stage(record.stage),
        advice=advice.sentence,
        advice_code=advice.code,
        fault=snapshot.fault,
        paused=record.paused,
        breakers=[to_breaker(row) for row in (record.hub, record.activation, record.device)],
        stage_fraction=share.fraction,
        received_bytes=share.done_bytes,
        expected_bytes=share.total_bytes,
    )
    if record.update is not None:
        message.current.CopyFrom(to_summary(record.model, record.update, record.stage))
        message.percent = record.update.percent if record.stage is Stage.OBSERVING else 0.0
    if record.committed is not None:
        message.committed_revision = record.committed.revision
        message.committed_source_digest = record.committed.source_digest
        message.committed_commit_id = record.committed.commit_id
    _fill_watch(message, record.watch)
    message.bridge_device = "" if record.bridge is None else record.bridge.device
    if record.cpu_fallback is not None:
        message.cpu_fallback.CopyFrom(to_cpu_fallback(record.cpu_fallback))
    for bad in record.quarantine:
        entry = message.quarantine.add(source_digest=bad.source_digest, revision=bad.revision, reason=bad.reason)
        entry.since.CopyFrom(to_timestamp(bad.since))
    return message


def _fill_watch(message: pb.ModelUpdates, watch: Watch) -> None:
    """Add what the hub lists."""
    message.listed_names, message.left_out = watch.names, watch.left_out
    message.left_out_names.extend(watch.left_out_names)
    for again in watch.republished:
        row = message.republished.add(
            revision=again.revision, known_digest=again.known_digest, listed_digest=again.listed_digest
        )
        row.since.CopyFrom(to_timestamp(again.since))
    times = (
        (message.last_checked_at, watch.last_polled_at),
        (message.listing_changed_at, watch.changed_at),
        (message.newest_listed_at, watch.highest_at),
    )
    for field, at in times:
        if at is not None:
            field.CopyFrom(to_timestamp(at))


def to_cpu_fallback(row: CpuFallback) -> pb.CpuFallback:
    """A fallback from a device to the CPU."""
    message = pb.CpuFallback(device=row.device, fallback_device=row.fallback_device, reason=row.reason)
    message.since.CopyFrom(to_timestamp(row.since))
    return message


def to_breaker(row: Breaker) -> pb.Breaker:
    """A circuit breaker."""
    message = pb.Breaker(name=row.name.value, state=row.state.value, failures=row.failures, openings=row.openings)
    if row.state is not BreakerState.CLOSED:
        message.reason = row.reason
        message.open_left.FromNanoseconds(int(row.left_seconds * 1e9))
    return message


def to_summary(model: str, update: Update, stage: Stage) -> pb.UpdateSummary:
    """An update that is in progress or held."""
    message = pb.UpdateSummary(
        update_id=update.update_id,
        model=model,
        revision=update.revision,
        source_digest=update.source_digest,
        bundle_digest=update.bundle_digest,
        stage=to_stage(stage),
        reason=update.reason,
        message=update.message,
        commit_id=update.commit_id,
    )
    message.started_at.CopyFrom(to_timestamp(update.started_at))
    return message


def to_past_summary(past: PastUpdate) -> pb.UpdateSummary:
    """An update of the history."""
    message = to_summary(past.model, past.update, past.stage)
    message.outcome = to_outcome(past.outcome)
    if past.ended_at is not None:
        message.ended_at.CopyFrom(to_timestamp(past.ended_at))
    return message


def to_event(event: PastEvent) -> pb.UpdateEvent:
    """A line of the audit trail."""
    message = pb.UpdateEvent(stage=to_stage(event.stage), name=event.name, message=event.message)
    message.at.CopyFrom(to_timestamp(event.at))
    return message


def to_alarm(model: str, event: PastEvent) -> pb.ModelAlarm:
    """An alarm that belongs to no update."""
    message = pb.ModelAlarm(model=model, name=event.name, message=event.message)
    message.at.CopyFrom(to_timestamp(event.at))
    return message


def fill_evidence(message: pb.GetUpdateResponse, evidence: Evidence) -> None:
    """Add notes, measurements, and items on which the models differ."""
    message.notes.extend(evidence.notes)
    for row in evidence.measured:
        message.measurements.add(
            name=row.name,
            candidate=row.candidate,
            active=row.active,
            threshold=row.threshold,
            passed=row.passed,
        )
    for change in evidence.changes:
        message.changes.add(
            name=change.name,
            expected_count=change.expected_count,
            questions=change.questions,
            count=change.count,
            compared=change.compared,
            bound=change.bound,
            passed=change.passed,
        )
    message.differing.extend(to_differing(row) for row in evidence.differing[:SHOWN_DIFFERING])
    for pair in evidence.label_pairs:
        message.label_pairs.add(active=pair.active, candidate=pair.candidate, count=pair.count)


def to_differing(row: Differing) -> pb.DifferingItem:
    """A golden item on which the models differ, or the candidate is wrong."""
    return pb.DifferingItem(
        item=row.item,
        text=row.text,
        expected=row.expected,
        active=row.active,
        candidate=row.candidate,
        kind=pb.DifferenceKind.Value(f"DIFFERENCE_KIND_{classify_difference(row).value}"),
    )


def to_differing_page(
    rows: Iterable[Differing], kind: "pb.DifferenceKind.ValueType", begin: int, size: int
) -> pb.ListDifferingItemsResponse:
    """One page of the differing items of a kind, and how many there are of each."""
    found = [to_differing(row) for row in rows]
    wanted = [row for row in found if kind in (pb.DIFFERENCE_KIND_UNSPECIFIED, row.kind)]
    counts = Counter(row.kind for row in found)
    return pb.ListDifferingItemsResponse(
        items=wanted[begin : begin + size],
        next_page_token=str(begin + size) if begin + size < len(wanted) else "",
        counts=[pb.DifferenceCount(kind=one, count=counts[one]) for one in sorted(counts)],
    )


def fill_provenance(message: pb.Provenance, row: Provenance | None) -> None:
    """Fill in the provenance of a bundle, if it has one."""
    if row is None:
        return
    message.hub_kind, message.endpoint, message.hub_model = row.place.kind.value, row.place.endpoint, row.place.model
    message.revision = row.revision
    message.checked.extend(row.checked)
    for field, text in ((message.fetched_at, row.fetched_at), (message.verified_at, row.verified_at)):
        with contextlib.suppress(ValueError):  # empty
            field.FromJsonString(text)


def to_current_summary(record: ModelRecord) -> pb.UpdateSummary:
    """The update in progress; empty if there is none."""
    return pb.UpdateSummary() if record.update is None else to_summary(record.model, record.update, record.stage)


def to_timestamp(at: datetime) -> Timestamp:
    """A time as a protobuf timestamp."""
    message = Timestamp()
    message.FromDatetime(at)
    return message


_APPROVE = (
    "compare with `hotslot updates show {id}`, then `hotslot updates approve {digest}`, or publish a better revision"
)
_RETRY = "then `hotslot updates resume` tries it again"
HELD_ADVICE = {
    HeldFor.APPROVAL: "mode approve asks an operator: " + _APPROVE,
    HeldFor.AGREEMENT: "its answers differ from the active model's, and may be better: " + _APPROVE,
    HeldFor.NOISE: "the golden set is too small for a verdict: add items with expectations, or " + _APPROVE,
    HeldFor.SLOWER: "it needs more device time than the active model, or answers later, perhaps because the machine is "
    "busy: `hotslot updates resume` tries it again; or " + _APPROVE,
    HeldFor.CHANGED_ANSWERS: "callers would get other answers than the golden set predicts: look at the directions in "
    "`hotslot updates show {id}`, add such questions to the golden set and `hotslot updates resume`; or, if the new "
    "answers are right, " + _APPROVE,
    HeldFor.LABELS: "callers may depend on its labels: compare them with the active model's, and " + _APPROVE,
    HeldFor.NO_GOLDEN: "create a golden set with `hotslot golden record FOLDER --model NAME`, name it in hotslot.toml "
    "and `hotslot reload`, then `hotslot updates resume` tries the revision again; or " + _APPROVE,
    HeldFor.GOLDEN_UNUSABLE: "fix the golden set (`hotslot golden show` reports the problem), or " + _APPROVE,
    HeldFor.DOES_NOT_FIT: "it does not fit into memory: free some, " + _RETRY,
    HeldFor.INCONCLUSIVE: "no verdict was reached: see `hotslot updates show {id}`, " + _RETRY,
    HeldFor.CONVERSION: "this build cannot convert the committed source, and its present bundle keeps serving: "
    "`hotslot updates resume` skips this conversion",
    HeldFor.SERVER_CRASHED: "the server crashed three times while this first revision was tried: see the server's log, "
    + _RETRY,
    HeldFor.TAKEN_BACK: "another client of the control socket ended its trial: find out which, " + _RETRY,
    HeldFor.COMMITTED_BROKEN: "the committed revision no longer loads, the previous one serves: publish a new "
    "revision, then `hotslot updates resume` takes it",
    HeldFor.DISK_FULL: "free disk space for the state folder, or lower `retained_bytes`: it goes on by itself, at once "
    "with `hotslot updates resume`, and what was downloaded is kept",
    HeldFor.MISMATCH: "the hub sends other bytes than it lists: repair the hub, or the proxy before it, or publish the "
    "revision again, " + _RETRY,
    HeldFor.SEEN_BEFORE: "the publisher went back to it, or the hub shows an old state: ask the publisher; "
    "`hotslot updates approve {digest}` tries it, a newer content is taken by itself",
    HeldFor.FIRST_CONTACT: "find out whether it is newer than the serving model; if it is, `hotslot updates approve "
    "{digest}` tries it, and the next revisions are compared with it",
    HeldFor.STUCK: "it took too many steps: see `hotslot updates show {id}`, " + _RETRY,
}


def build_advice(record: ModelRecord) -> Advice:
    """What an operator should do about a model's updates, in one sentence; empty if nothing."""
    update = record.update
    if record.stage is Stage.HELD and update is not None:
        held_for = (None if update.ending is None else update.ending.held_for) or HeldFor.STUCK
        held_for = held_for if held_for in HELD_ADVICE else HeldFor.STUCK
        text = HELD_ADVICE[held_for].format(id=update.update_id, digest=_shorten(update.source_digest))
        return Advice(held_for.value, text + _build_failback_advice(record))
    if record.bridge is not None and record.bridge.failed:
        device = record.bridge.device
        return Advice(
            "BRIDGE", f"the serving model answers from the CPU and cannot return to {device}: free memory there"
        )
    if record.paused:
        why = f" ({record.pause_reason})" if record.pause_reason else ""
        text = f"updates are paused{why}: `hotslot updates resume` continues them"
        return Advice("PAUSED", text + _build_failback_advice(record))
    watch = describe_watch(record)
    code = "" if not watch else "REPUBLISHED" if record.watch.republished else "WATCH"
    return _build_breaker_advice(record) or Advice(code, watch)


def describe_watch(record: ModelRecord) -> str:
    """What the last poll of the hub found out of the ordinary, in one line; empty if nothing."""
    watch = record.watch
    alarms = [f"{row.revision} was published again with other content" for row in watch.republished]
    return "; ".join([*alarms, *([watch.message] if watch.message and watch.message not in alarms else [])])


def describe_poll(record: ModelRecord) -> str:
    """The result of the last poll of the hub for an operator who has requested it, in one line."""
    watch = record.watch
    newest = f"{watch.newest} is the newest revision" if watch.newest else "no newer revision is published"
    text = describe_watch(record) or newest
    if not 0 < watch.left_out < watch.names:
        return text
    shown = ", ".join(watch.left_out_names) + (", …" if watch.left_out > len(watch.left_out_names) else "")
    return f"{text}; {watch.left_out} of {watch.names} names are left out: {shown}"


def build_past_advice(past: PastUpdate, record: ModelRecord | None) -> Advice:
    """What an operator should do about one update, in one sentence; empty if nothing."""
    is_current = record is not None and record.update is not None and record.update.update_id == past.update.update_id
    if is_current and record is not None:
        return build_advice(record)
    is_blocked = record is not None and record.is_quarantined(past.update.source_digest)
    if is_blocked:
        digest = _shorten(past.update.source_digest)
        text = f"publish a better revision; if this one was not at fault, `hotslot updates unquarantine {digest}`"
        return Advice("QUARANTINED", text)
    if past.outcome is Outcome.ABANDONED:
        return Advice("ABANDONED", "nothing: the revision was not at fault, and the update is retried automatically")
    return Advice()


def _build_breaker_advice(record: ModelRecord) -> Advice | None:
    """About an open breaker; those that an operator can influence come first."""
    if record.activation.state is BreakerState.OPEN:
        text = "too many updates failed: see `hotslot updates history`, then `hotslot updates breaker reset activation`"
        return Advice("BREAKER_ACTIVATION", text)
    if record.cpu_fallback is not None and record.device.state is BreakerState.OPEN:
        text = (
            f"{record.cpu_fallback.device} ran out of memory: free some; it is retried automatically, or at once with "
            "`hotslot updates breaker reset device`"
        )
        return Advice("BREAKER_DEVICE", text)
    if record.hub.state is BreakerState.OPEN:
        text = f"the hub does not answer: {record.hub.reason or 'see the log'}; it is retried automatically"
        return Advice("BREAKER_HUB", text)
    return None


def _build_failback_advice(record: ModelRecord) -> str:
    """The addition to an advice that the failback, if there is one, waits for the same reason."""
    return "" if record.cpu_fallback is None else f"; the failback to {record.cpu_fallback.device} waits for this too"


def _shorten(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
