"""A trial loses no request: the previous slot answers what the trial fails, and the failure is counted."""

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from dev.harness.answers import question, scores_of
from dev.harness.load import LoadReport
from dev.harness.metrics import value_of
from dev.harness.scripted_engine import holding
from dev.harness.stack import Stack
from dev.harness.waiting import eventually
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of

SHORT_SECONDS = 4.0  # a deadline
HANDOVER_SECONDS = 0.75 * SHORT_SECONDS  # about: a trial that hangs has a request for so long
LEASE_SECONDS = 3.0


def asked_under_trial(stack: Stack, statement: str, count: int = 12, deadline: float = 10.0) -> LoadReport:
    """Outcomes of a repeated question while r2 is on trial."""
    questions = tuple(question(statement) for _ in range(4)) + tuple(question() for _ in range(4))
    with stack.load(("r1", "r2"), clients=4, questions=questions, deadline=deadline) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        load.wait_answers(count)
    return load.report()


@pytest.mark.fault("S7")
@pytest.mark.parametrize(("statement", "reason"), [("!error@r2", "ENGINE_FAILED"), ("!nan@r2", "NOT_FINITE")])
def test_the_previous_slot_answers_what_a_trial_fails(stack: Stack, statement: str, reason: str) -> None:
    """The failure is counted against the trial; the caller gets the previous revision's answer."""
    report = asked_under_trial(stack, statement, count=200)

    assert (report.failed, report.wrong) == ([], [])
    assert report.revisions["r2"] > 0
    counted = stack.control.stats(stack.answers.digest_of("r2"))
    assert counted.failed[reason] > 0
    assert counted.answered_by_previous >= counted.failed[reason]
    stack.process.wait_event("request_handed_over", revision="r2", reason=reason)


def test_an_answer_by_the_previous_slot_names_it(stack: Stack) -> None:
    """served_by contains the revision, digest and slot that answered."""
    old = stack.control.active()
    stack.control.trial(stack.answers.digest_of("r2"))

    served = stack.predict(question("!error@r2")).served_by

    assert (served.revision, served.digest, served.slot) == ("r1", old.bundle_digest, old.slot)
    assert (served.model, served.device, served.node) == ("shapes", "cpu", "test-node")
    assert stack.predict(question()).served_by.revision == "r2"


@pytest.mark.fault("K7")
def test_a_trial_whose_runner_is_killed_loses_no_request(stack: Stack) -> None:
    """The previous slot answers under load; one restart is counted."""
    with stack.load(("r1", "r2")) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        load.wait_answers(100)
        stack.kill(stack.active_pid())
        load.wait_answers(200)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert stack.control.stats(stack.answers.digest_of("r2")).restarts == 1


@pytest.mark.fault("K7")
def test_a_trial_that_crashes_on_an_input_loses_no_request(stack: Stack) -> None:
    """The crash is counted against the trial, since the previous revision can answer the input."""
    before = stack.control.stats(stack.answers.digest_of("r2"))
    stack.control.trial(stack.answers.digest_of("r2"))

    assert stack.check(question("!crash@r2")) == "r1"

    eventually(lambda: stack.control.active().state == "LOADED", what="the trial's slot answers again")
    counted = stack.control.stats(stack.answers.digest_of("r2"))
    assert counted.restarts == before.restarts + 1
    assert counted.failed["RUNNER_DIED"] == before.failed["RUNNER_DIED"] + 1
    assert counted.answered_by_previous == before.answered_by_previous + 1


def is_void(stack: Stack, digest: str) -> bool:
    """Whether a death of this revision's runner was attributed to an input."""
    return stack.control.stats(digest).void_restarts >= 1


@pytest.mark.fault("K13")
def test_a_poison_input_is_not_counted_against_the_trial(stack: Stack) -> None:
    """An input that ends both runners fails as POISON_INPUT."""
    bundle = stack.bundle("r-good")
    stack.control.trial(bundle.bundle_digest)
    old = stack.answers.digest_of("r1")
    before = stack.control.stats(old)

    with pytest.raises(grpc.RpcError) as error:
        stack.predict(question("!crash"))
    assert refusal_of(error.value).reason == "POISON_INPUT"

    for digest, restarts in ((bundle.bundle_digest, 0), (old, before.restarts)):
        eventually(partial(is_void, stack, digest), what="the death is judged")
        assert stack.control.stats(digest).restarts == restarts
    assert not stack.control.stats(bundle.bundle_digest).failed
    assert stack.control.status().trial.bundle_digest == bundle.bundle_digest


@pytest.mark.fault("K15")
def test_a_trial_that_hangs_under_load_loses_no_request(make_stack: MakeStack) -> None:
    """The previous slot takes over in time for deadlines shorter than what the runner is given.

    The model is not ready before the runner is killed.
    """
    stack = make_stack(runner={"min_timeout_seconds": 1.2 * HANDOVER_SECONDS})
    trial = stack.bundle("r2").bundle_digest
    with stack.load(("r1", "r2"), clients=8, deadline=SHORT_SECONDS) as load:
        stack.control.trial(trial)
        ready = len(stack.process.events("health_changed"))
        assert stack.check(question("!hang@r2"), timeout=SHORT_SECONDS) == "r1"
        load.wait_answers(200)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    counted = stack.control.stats(trial)
    assert counted.failed["TOO_SLOW"] >= 1
    assert counted.answered_by_previous >= 1
    unready = next(row for row in stack.process.events("health_changed")[ready:] if not row["serving"])
    assert unready["at"] < stack.process.wait_event("runner_died")["at"]


@pytest.mark.fault("K15")
def test_a_trial_that_is_stopped_loses_no_request(stack: Stack) -> None:
    """After SIGSTOP the previous slot answers, and the stopped process is killed."""
    with stack.load(("r1", "r2"), clients=8, deadline=3.0) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        stopped = stack.active_pid()
        stack.kill(stopped, signal.SIGSTOP)
        load.wait_answers(200)
        eventually(lambda: stack.active_pid() not in (0, stopped), what="the stopped process is replaced")

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


@pytest.mark.fault("K15")
def test_requests_of_a_hung_trial_are_answered_after_a_rollback(stack: Stack) -> None:
    """Within their deadlines."""
    stack.control.trial(stack.answers.digest_of("r2"))
    previous = stack.control.status().trial.previous_load_id
    asked = question("!hang@r2")
    call: Any = stack.entailment.Predict.future(asked.request(), timeout=SHORT_SECONDS)
    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="the trial holds it")

    stack.control.activate(previous)

    served = call.result().served_by
    assert (served.revision, scores_of(call.result())) == ("r1", stack.answers.of("r1", asked))


def test_late_results_of_a_slow_trial_are_ignored(make_stack: MakeStack, tmp_path: Path) -> None:
    """The previous slot has taken over and answered."""
    stack, held = make_stack(runner={"min_timeout_seconds": 20.0}), tmp_path / "held"
    stack.control.trial(stack.bundle("r2", held_by=str(held)).bundle_digest)

    with holding(held):
        assert stack.check(question("!held@r2"), timeout=SHORT_SECONDS) == "r1"
    eventually(lambda: stack.check(question()) == "r2", what="the trial answers again")


@pytest.mark.fault("K17")
def test_an_expired_trial_lease_rolls_back(stack: Stack) -> None:
    """Under load, without an error."""
    with stack.load(("r1", "r2"), clients=4) as load:
        load_id = stack.control.candidate(stack.answers.digest_of("r2"))
        state = stack.control.activate(load_id, trial_lease_seconds=1.0)
        assert (state.active_load_id, state.trial.load_id) == (load_id, load_id)
        eventually(lambda: stack.control.active().revision == "r1", what="the trial lease runs out")
        load.wait_answers(20)

    state = stack.control.status()
    assert (state.last_trial.outcome, state.HasField("trial")) == ("LEASE_EXPIRED", False)
    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


def test_activating_the_trial_again_extends_its_lease(stack: Stack) -> None:
    """The generation does not change."""
    load_id = stack.control.trial(stack.answers.digest_of("r2"), trial_lease_seconds=LEASE_SECONDS)
    generation = stack.control.status().generation
    end = time.monotonic() + LEASE_SECONDS + 0.5
    while time.monotonic() < end:
        assert stack.control.activate(load_id, LEASE_SECONDS).generation == generation
        assert stack.check(question()) == "r2"


def test_a_rollback_takes_effect_at_once(stack: Stack) -> None:
    """Under load; the process that answered before the trial has kept its model, and answers the next call."""
    before = stack.control.active()
    with stack.load(("r1", "r2"), clients=4) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        load.wait_answers(20)
        state = stack.control.activate(stack.control.status().trial.previous_load_id)
        assert stack.check(question()) == "r1"
        after = stack.control.active()
        load.wait_answers(20)

    assert (after.load_id, after.pid) == (before.load_id, before.pid)

    assert state.last_trial.outcome == "ROLLED_BACK"
    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


def test_the_baseline_is_frozen_when_a_trial_begins(stack: Stack) -> None:
    """Later counts of the previous revision do not change it."""
    for _ in range(3):
        stack.check(question())
    stack.control.trial(stack.answers.digest_of("r2"))
    baseline = stack.control.status().trial.baseline

    assert stack.check(question("!error@r2")) == "r1"

    assert stack.control.status().trial.baseline == baseline
    assert stack.control.stats(stack.answers.digest_of("r1")).answered == baseline.answered + 1
