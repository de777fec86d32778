"""The control socket: load, probe, activate, commit, retire, and conflicts."""

from typing import Any

import grpc
import pytest

from common.bundle import bundle_folder
from dev.harness.answers import question, scores_of
from dev.harness.control import LIMIT_SECONDS
from dev.harness.stack import Stack, commit_on_disk
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2 as pb
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import Refusal, refusal_of, status_refusal


def refused(act: Any, *arguments: object, **named: object) -> Refusal:  # noqa: ANN401  any call of the client
    """What a call is refused with."""
    with pytest.raises(grpc.RpcError) as error:
        act(*arguments, **named)
    return refusal_of(error.value)


def state_in(refusal: Refusal) -> pb.ModelState:
    """The ModelState in the details of a conflict."""
    state = pb.ModelState()
    assert [detail.Unpack(state) for detail in refusal.more] == [True]
    return state


def test_a_bundle_is_loaded_probed_activated_committed_and_retired(stack: Stack) -> None:
    """Callers get the new revision from the activation on."""
    control, bundle = stack.control, stack.bundle("r-way", load_seconds=0.2, warm_up_seconds=0.1)
    begun = control.status()

    said = control.load(bundle.bundle_digest)
    phases = [pb.LoadPhase.Name(row.phase).removeprefix("LOAD_PHASE_") for row in said]
    assert phases == sorted(phases, key=["STARTING", "READING", "WARMING_UP", "LOADED"].index)
    assert phases[-1] == "LOADED"
    assert "READING" in phases  # of messages in quick succession only the newest is sent
    assert len({(row.load_id, row.slot) for row in said}) == 1
    assert said[-1].fraction == 1.0
    load_id = said[-1].load_id
    assert control.slot(said[-1].slot).role == "CANDIDATE"
    assert stack.check(question()) == "r1"

    asked = question("a", "b")
    (outcome,) = control.probe([asked], load_id)
    assert scores_of(outcome.entailment) == stack.answers.of("r-way", asked)
    assert outcome.entailment.served_by.revision == "r-way"

    trial = control.activate(load_id, 300, begun.generation)
    assert (trial.trial.load_id, trial.trial.previous_load_id) == (load_id, begun.active_load_id)
    assert 290 < trial.trial.lease_left.ToTimedelta().total_seconds() <= 300
    assert stack.check(question()) == "r-way"

    commit_on_disk(stack, bundle)
    done = control.commit(load_id, trial.generation)
    assert (done.active_load_id, done.last_trial.outcome) == (load_id, "COMMITTED")
    assert done.committed_digest == bundle.bundle_digest
    assert not done.HasField("trial")
    assert done.generation > trial.generation > begun.generation

    emptied = control.retire(begun.active_load_id, done.generation)
    assert begun.active_load_id not in [slot.load_id for slot in emptied.slots]
    assert stack.check(question()) == "r-way"


def test_a_load_is_idempotent(stack: Stack) -> None:
    """A repeated call, during or after the load, returns the same load."""
    digest = stack.bundle("r-twice", load_seconds=0.3).bundle_digest
    first = stack.control.begin_load(digest)
    begun = next(first)

    second = stack.control.load(digest)
    rest = list(first)
    third = stack.control.load(digest)

    assert {row.load_id for row in [*rest, *second, *third]} == {begun.load_id}
    assert len(third) == 1
    assert stack.control.load(stack.answers.digest_of("r1"))[-1].load_id == stack.control.status().active_load_id


def test_a_load_continues_when_its_caller_hangs_up(stack: Stack) -> None:
    """The load completes without a caller."""
    digest = stack.bundle("r-hang-up", load_seconds=0.3).bundle_digest
    call: Any = stack.control.begin_load(digest)
    load_id = next(call).load_id
    call.cancel()

    eventually(lambda: stack.control.other().state == "LOADED", what="the load is done")
    assert stack.control.other().load_id == load_id


def test_commit_and_retire_are_idempotent(stack: Stack) -> None:
    """Repeated calls succeed and change nothing."""
    control = stack.control
    old = control.status().active_load_id
    load_id = control.trial(stack.answers.digest_of("r2"))

    assert control.commit(load_id).generation == control.commit(load_id).generation
    control.retire(old)
    control.retire(old)
    control.retire("no-such-load")
    assert stack.check(question()) == "r2"


def test_a_conflict_contains_the_current_state(stack: Stack) -> None:
    """A change with another generation is refused; the details contain the ModelState."""
    control = stack.control
    load_id = control.candidate(stack.answers.digest_of("r2"))
    now = control.status()
    stale = now.generation + 7

    for act, arguments in (
        (control.load, (stack.bundle("r-stale").bundle_digest, "", stale)),
        (control.activate, (load_id, 600.0, stale)),
        (control.commit, (load_id, stale)),
        (control.retire, (load_id, stale)),
    ):
        refusal = refused(act, *arguments)
        assert refusal.brief == ("FAILED_PRECONDITION", "GENERATION_CONFLICT", ())
        assert state_in(refusal).generation == now.generation
        assert state_in(refusal).active_load_id == now.active_load_id
    assert stack.check(question()) == "r1"


def test_invalid_loads_are_refused_with_their_reason(stack: Stack) -> None:
    """A malformed or unknown digest, a foreign or broken bundle, an unknown device or model."""
    control = stack.control
    broken, foreign = stack.bundle("r-broken"), stack.bundle("r-foreign")
    (bundle_folder(stack.folder, broken.bundle_digest) / "script.json").unlink()
    manifest = bundle_folder(stack.folder, foreign.bundle_digest) / "bundle.json"
    manifest.write_text(manifest.read_text().replace('"scripted"', '"another"'))

    assert refused(control.load, "sha256:../../etc").brief == (
        "INVALID_ARGUMENT",
        "DIGEST_MALFORMED",
        ("bundle_digest",),
    )
    assert refused(control.load, "").reason == "DIGEST_MALFORMED"
    unknown = refused(control.load, "sha256:" + "0" * 64)
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "BUNDLE_UNKNOWN")
    assert unknown.resource == ("bundle", "sha256:" + "0" * 64)
    assert refused(control.load, broken.bundle_digest).brief == ("FAILED_PRECONDITION", "BUNDLE_BROKEN", ())
    assert refused(control.load, foreign.bundle_digest).brief == ("FAILED_PRECONDITION", "BUNDLE_FOREIGN", ())
    device = refused(control.load, stack.answers.digest_of("r2"), "cuda:7")
    assert device.brief == ("INVALID_ARGUMENT", "DEVICE_UNKNOWN", ("device",))
    control.model = "squares"
    try:
        assert refused(control.load, stack.answers.digest_of("r2")).brief[:2] == ("NOT_FOUND", "MODEL_UNKNOWN")
    finally:
        control.model = "shapes"
    assert control.other().state == "READY"


def test_a_change_needs_a_transaction_id(stack: Stack) -> None:
    """A call without one is refused."""
    for name in ("", "t" * 65):
        change = pb.Change(model="shapes", transaction_id=name)
        refusal = refused(stack.control.stub.CommitSlot, pb.CommitSlotRequest(change=change, load_id="x"))
        assert refusal.brief == ("INVALID_ARGUMENT", "TRANSACTION_MISSING", ("change.transaction_id",))


@pytest.mark.fault("S10")
def test_what_is_not_loaded_cannot_be_activated(stack: Stack) -> None:
    """An unknown load, one in progress, and a lease out of range are refused; the active model stays."""
    control = stack.control
    unknown = refused(control.activate, "no-such-load")
    assert (unknown.code, unknown.reason, unknown.resource) == ("NOT_FOUND", "LOAD_UNKNOWN", ("load", "no-such-load"))

    call: Any = control.begin_load(stack.bundle("r-loading", load_seconds=0.5).bundle_digest)
    load_id = next(call).load_id
    loading = refused(control.activate, load_id)
    assert loading.brief == ("FAILED_PRECONDITION", "NOT_LOADED", ())
    assert refused(control.probe, [question()], load_id).brief == ("FAILED_PRECONDITION", "NOT_LOADED", ())
    assert list(call)[-1].load_id == load_id
    for term in (0.0, 0.5, 25 * 3600.0):
        assert refused(control.activate, load_id, term).brief == (
            "INVALID_ARGUMENT",
            "LEASE_OUT_OF_RANGE",
            ("trial_lease",),
        )
    assert refused(control.commit, load_id).brief == ("FAILED_PRECONDITION", "NOT_ON_TRIAL", ())
    assert stack.check(question()) == "r1"


def test_a_load_without_a_free_slot_is_refused(stack: Stack) -> None:
    """A third bundle gets NO_FREE_SLOT; the two loads stay."""
    stack.control.candidate(stack.answers.digest_of("r2"))

    refusal = refused(stack.control.load, stack.bundle("r-third").bundle_digest)

    assert refusal.brief == ("FAILED_PRECONDITION", "NO_FREE_SLOT", ())
    assert [slot.revision for slot in state_in(refusal).slots if slot.role == "CANDIDATE"] == ["r2"]


def test_slots_in_use_cannot_be_retired(stack: Stack) -> None:
    """Neither the active slot nor, during a trial, the previous slot."""
    load_id = stack.control.trial(stack.answers.digest_of("r2"))

    for needed in (load_id, stack.control.status().trial.previous_load_id):
        refusal = refused(stack.control.retire, needed)
        assert refusal.brief == ("FAILED_PRECONDITION", "SLOT_IN_USE", ())
    assert stack.check(question()) == "r2"


@pytest.mark.fault("H19")
def test_a_load_that_is_retired_while_it_loads_ends_at_once(stack: Stack) -> None:
    """LoadSlot tells its caller why, the slot takes another bundle, and callers notice nothing."""
    said = stack.control.begin_load(stack.bundle("r-endless", load_seconds=3600.0).bundle_digest)
    load_id = next(said).load_id

    state = stack.control.retire(load_id)

    with pytest.raises(grpc.RpcError) as error:
        list(said)
    assert refusal_of(error.value).reason == "LOAD_RETIRED"
    assert load_id not in [slot.load_id for slot in state.slots]
    assert stack.check(question()) == "r1"
    stack.control.candidate(stack.answers.digest_of("r2"))
    assert [slot.revision for slot in stack.control.status().slots if slot.role == "CANDIDATE"] == ["r2"]


def test_a_probe_reports_the_outcome_of_each_item(stack: Stack) -> None:
    """On any slot; an invalid item fails alone, and the item limits are enforced."""
    load_id = stack.control.candidate(stack.answers.digest_of("r2"))
    good, wrong, failing = question("a"), question(""), question("!error@r2")

    rows = stack.control.probe([good, wrong, failing], load_id)
    assert scores_of(rows[0].entailment) == stack.answers.of("r2", good)
    assert status_refusal(rows[1].error).brief == ("INVALID_ARGUMENT", "STATEMENT_EMPTY", ("statements[0]",))
    assert status_refusal(rows[2].error).brief == ("INTERNAL", "ENGINE_FAILED", ())
    (active,) = stack.control.probe([good])
    assert active.entailment.served_by.revision == "r1"
    assert refused(stack.control.probe, []).reason == "ITEMS_MISSING"
    assert refused(stack.control.probe, [good] * 65).reason == "ITEMS_TOO_MANY"
    assert refused(stack.control.probe, [good], "no-such-load").brief[:2] == ("NOT_FOUND", "LOAD_UNKNOWN")


def test_a_candidate_answers_copies_then_a_part_of_the_calls_then_all(stack: Stack) -> None:
    """SetTraffic goes from shadow to canary; GetStatus reports each step, and what was compared."""
    control, limit, digest = stack.control, LIMIT_SECONDS, stack.answers.digest_of("r2")
    load_id = control.load(digest)[-1].load_id

    def set_traffic(mode: "pb.TrafficMode.ValueType", **fields: Any) -> pb.ModelState:  # noqa: ANN401  of the message
        request = pb.SetTrafficRequest(change=control.change(), load_id=load_id, mode=mode, **fields)
        state: pb.ModelState = control.stub.SetTraffic(request, timeout=limit).state
        return state

    def served(version: str) -> str:
        metadata = (("x-model-version", version), ("x-request-id", "order-1"))
        answer = stack.entailment.Predict(question().request(), timeout=limit, metadata=metadata)
        return str(answer.served_by.revision)

    missing = pb.SetTrafficRequest(change=control.change(), load_id=load_id)
    assert refused(control.stub.SetTraffic, missing, timeout=limit).brief[:2] == ("INVALID_ARGUMENT", "MODE_MISSING")

    shadowed = set_traffic(pb.TRAFFIC_MODE_SHADOW, shadow=pb.ShadowPolicy(share=1.0))
    assert (shadowed.shadow.load_id, shadowed.shadow.active, shadowed.shadow.policy.share) == (load_id, True, 1.0)
    assert served("stable") == "r1"
    eventually(lambda: control.status().shadow.comparison.requests_compared > 0, what="a request was compared")
    seen = control.status().shadow.comparison
    assert (seen.bundle_digest, seen.answers_compared) == (digest, 1)
    assert sum(row.count for row in seen.distances) == 1
    assert [row.request_id for row in seen.differing] == ["order-1"] * (1 - seen.answers_equal)

    change = pb.ActivateSlotRequest(change=control.change(), load_id=load_id, percent=0.0)
    change.trial_lease.FromSeconds(300)
    change.shadow.share = 0.5
    begun = control.stub.ActivateSlot(change, timeout=limit).state
    assert (begun.trial.percent, begun.trial.shadow.share, begun.HasField("shadow")) == (0.0, 0.5, False)
    assert [served(version) for version in ("", "canary", "stable", "r2", digest)] == ["r1", "r2", "r1", "r2", "r2"]
    unknown = refused(served, "r9")
    assert unknown.brief[:2] == ("NOT_FOUND", "VERSION_UNKNOWN")

    grown = set_traffic(pb.TRAFFIC_MODE_CANARY, percent=100.0)
    assert (grown.trial.percent, served("")) == (100.0, "r2")
    answered = next(row for row in control.status().stats if row.bundle_digest == digest)
    assert sum(row.count for row in answered.labels) == answered.answered


def test_bytes_that_do_not_parse_are_refused(stack: Stack) -> None:
    """The control socket answers them with INVALID_ARGUMENT."""
    for method in ("GetStatus", "LoadSlot", "ActivateSlot", "CommitSlot", "RetireSlot", "ProbeSlot"):
        channel: Any = stack.control.channel
        make = channel.unary_stream if method == "LoadSlot" else channel.unary_unary
        call = make(f"/hotslot.control.v1.ControlService/{method}")
        refusal = refused(lambda raw, call=call: list(call(raw, timeout=LIMIT_SECONDS)), b"\x0a\xff\xff\xff\xff\x0f")
        assert refusal.brief == ("INVALID_ARGUMENT", "MESSAGE_MALFORMED", ())


@pytest.mark.parametrize(("wanted", "computed_in"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_a_model_computes_in_the_configured_precision(wanted: str, computed_in: str, make_stack: MakeStack) -> None:
    """By default in that of its device; GetStatus reports it, so that the updater seals weights without a cast."""
    stack = make_stack(model={"precision": wanted})

    assert [
        (row.device, row.precision)
        for row in stack.control.stub.GetStatus(pb.GetStatusRequest(), timeout=LIMIT_SECONDS).devices
    ] == [("cpu", computed_in)]
    assert stack.control.active().precision == computed_in


def test_status_reports_devices_slots_and_counters(stack: Stack) -> None:
    """Answers, latency buckets and rows, by revision and device."""
    digest = stack.serve("r-counted").bundle_digest
    for _ in range(5):
        stack.check(question("a", "b"))
    with pytest.raises(grpc.RpcError):
        stack.predict(question("!error"))
    with pytest.raises(grpc.RpcError):
        stack.predict(question("!refuse"))

    whole = stack.control.stub.GetStatus(pb.GetStatusRequest(), timeout=LIMIT_SECONDS)
    assert [(row.device, row.precision) for row in whole.devices] == [("cpu", "float32")]
    assert not whole.draining
    row = stack.control.stats(digest)
    assert (row.device, row.answered, dict(row.failed)) == ("cpu", 5, {"ENGINE_FAILED": 1})
    assert sum(bucket.count for bucket in row.latency) == 5
    assert row.rows >= 10
    assert sum(bucket.batches for bucket in row.costs) >= 5
    assert min(bucket.row_seconds for bucket in row.costs) > 0
    assert [bucket.at_most_rows for bucket in row.costs] == sorted({bucket.at_most_rows for bucket in row.costs})
    assert row.computed.ToTimedelta().total_seconds() > 0
    active = stack.control.active()
    assert (active.state, active.device, active.revision, active.bundle_digest) == (
        "LOADED",
        "cpu",
        "r-counted",
        digest,
    )
    assert active.resident_bytes > 1 << 20
