"""A trial costs no answer: what the revision on trial fails, the previous one answers, and it is counted."""

import signal
import time
from functools import partial
from typing import Any

import grpc
import pytest

from dev.harness import Load, Stack, eventually, question
from dev.harness.answers import scores_of
from dev.harness.load import LoadReport
from dev.harness.metrics import value_of
from tests.stack.refusal import refusal_of


def asked_under_trial(stack: Stack, statement: str, count: int = 12, deadline: float = 10.0) -> LoadReport:
    """What callers see who ask a question again and again while r2 is on trial."""
    questions = tuple(question(statement) for _ in range(4)) + tuple(question() for _ in range(4))
    with Load(stack, ("r1", "r2"), clients=4, questions=questions, deadline=deadline) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        load.wait_answers(count)
    return load.report()


@pytest.mark.fault("S7")
@pytest.mark.parametrize(("statement", "reason"), [("!error@r2", "ENGINE_FAILED"), ("!nan@r2", "NOT_FINITE")])
def test_what_a_trial_fails_the_previous_slot_answers(stack: Stack, statement: str, reason: str) -> None:
    """An error or a NaN on trial is no error for the caller: r1 answers, and it counts against r2."""
    report = asked_under_trial(stack, statement, count=200)

    assert (report.failed, report.wrong) == ([], [])
    assert report.revisions["r2"] > 0
    counted = stack.control.stats(stack.answers.digest_of("r2"))
    assert counted.failed[reason] > 0
    assert counted.answered_by_previous >= counted.failed[reason]
    assert stack.process.events("request_handed_over", revision="r2", reason=reason)


def test_an_answer_by_the_previous_slot_says_so(stack: Stack) -> None:
    """served_by names the revision, digest and slot that really answered."""
    old = stack.control.active()
    stack.control.trial(stack.answers.digest_of("r2"))

    served = stack.predict(question("!error@r2")).served_by

    assert (served.revision, served.digest, served.slot) == ("r1", old.bundle_digest, old.slot)
    assert (served.model, served.device, served.node) == ("shapes", "cpu", "test-node")
    assert stack.predict(question()).served_by.revision == "r2"


@pytest.mark.fault("K7")
def test_a_trial_whose_runner_is_killed_costs_no_answer(stack: Stack) -> None:
    """When the runner on trial is killed under load the previous slot answers; it counts as one restart."""
    with Load(stack, ("r1", "r2")) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        load.wait_answers(100)
        stack.kill(stack.active_pid())
        load.wait_answers(200)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert stack.control.stats(stack.answers.digest_of("r2")).restarts == 1


@pytest.mark.fault("K7")
def test_a_trial_that_crashes_on_an_input_costs_no_answer(stack: Stack) -> None:
    """A revision that dies of inputs which the previous one can answer is blamed for them."""
    before = stack.control.stats(stack.answers.digest_of("r2"))
    stack.control.trial(stack.answers.digest_of("r2"))

    assert stack.check(question("!crash@r2")) == "r1"

    eventually(lambda: stack.control.active().state == "LOADED", what="the trial's slot answers again")
    counted = stack.control.stats(stack.answers.digest_of("r2"))
    assert counted.restarts == before.restarts + 1
    assert counted.failed["RUNNER_DIED"] == before.failed["RUNNER_DIED"] + 1
    assert counted.answered_by_previous == before.answered_by_previous + 1


def is_void(stack: Stack, digest: str) -> bool:
    """Whether a death of this revision's runner was found to be a caller's input."""
    return stack.control.stats(digest).void_restarts >= 1


@pytest.mark.fault("K13")
def test_poison_does_not_condemn_a_revision_on_trial(stack: Stack) -> None:
    """An input that kills both revisions is answered as poison, and counts against neither."""
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
@pytest.mark.parametrize("deadline", [0.9, 2.0])
def test_a_trial_that_hangs_is_answered_within_short_deadlines(stack: Stack, deadline: float) -> None:
    """The previous slot takes over early enough for callers who wait a second or so."""
    stack.control.trial(stack.answers.digest_of("r2"))

    assert stack.check(question("!hang@r2"), timeout=deadline) == "r1"

    counted = stack.control.stats(stack.answers.digest_of("r2"))
    assert counted.failed["TOO_SLOW"] >= 1
    assert counted.answered_by_previous >= 1


@pytest.mark.fault("K15")
def test_a_trial_that_hangs_under_load_costs_no_answer(stack: Stack) -> None:
    """While the runner on trial hangs, callers with 1.5 s deadlines are all answered."""
    with Load(stack, ("r1", "r2"), clients=8, deadline=1.5) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        assert stack.check(question("!hang@r2"), timeout=1.5) == "r1"
        load.wait_answers(200)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


@pytest.mark.fault("K15")
def test_a_trial_that_is_stopped_costs_no_answer(stack: Stack) -> None:
    """SIGSTOP of the runner on trial: the previous slot answers every caller; the stopped process is ended."""
    with Load(stack, ("r1", "r2"), clients=8, deadline=3.0) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        stopped = stack.active_pid()
        stack.kill(stopped, signal.SIGSTOP)
        load.wait_answers(200)
        eventually(lambda: stack.active_pid() not in (0, stopped), what="the stopped process is replaced")

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


@pytest.mark.fault("K15")
def test_what_a_hung_trial_holds_is_answered_after_a_rollback(stack: Stack) -> None:
    """A rollback takes the callers along whom the hung revision holds, within their short deadlines."""
    stack.control.trial(stack.answers.digest_of("r2"))
    previous = stack.control.status().trial.previous_load_id
    asked = question("!hang@r2")
    call: Any = stack.entailment.Predict.future(asked.request(), timeout=1.5)
    eventually(lambda: value_of(stack, "hotslot_queue_requests") == 1, what="the trial holds it")

    stack.control.activate(previous)

    served = call.result().served_by
    assert (served.revision, scores_of(call.result())) == ("r1", stack.answers.of("r1", asked))


def test_a_slow_trial_is_overtaken_and_late_results_are_ignored(stack: Stack) -> None:
    """What the trial computes after the previous slot has taken over is nobody's answer."""
    stack.control.trial(stack.answers.digest_of("r2"))

    for _ in range(3):
        assert stack.check(question("!slow@r2 1.0"), timeout=1.0) == "r1"
    eventually(lambda: stack.check(question()) == "r2", what="the trial answers again")


@pytest.mark.fault("K17")
def test_a_term_that_runs_out_puts_the_previous_slot_back(stack: Stack) -> None:
    """Without an updater that extends it, a trial ends by itself, under load, without an error."""
    with Load(stack, ("r1", "r2"), clients=4) as load:
        stack.control.trial(stack.answers.digest_of("r2"), trial_lease_seconds=1.0)
        assert stack.control.active().revision == "r2"
        eventually(lambda: stack.control.active().revision == "r1", what="the trial lease runs out")
        load.wait_answers(20)

    state = stack.control.status()
    assert (state.last_trial.outcome, state.HasField("trial")) == ("LEASE_EXPIRED", False)
    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


def test_an_extended_term_lasts(stack: Stack) -> None:
    """The same ActivateSlot again extends the trial lease, and is no new generation."""
    load_id = stack.control.trial(stack.answers.digest_of("r2"), trial_lease_seconds=1.0)
    generation = stack.control.status().generation
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert stack.control.activate(load_id, 1.0).generation == generation
        assert stack.check(question()) == "r2"


def test_a_rollback_takes_under_a_second(stack: Stack) -> None:
    """The previous slot is warm: naming its load during a trial puts it back at once, under load."""
    with Load(stack, ("r1", "r2"), clients=4) as load:
        stack.control.trial(stack.answers.digest_of("r2"))
        load.wait_answers(20)
        begun = time.monotonic()
        state = stack.control.activate(stack.control.status().trial.previous_load_id)
        assert stack.check(question()) == "r1"
        assert time.monotonic() - begun < 1.0
        load.wait_answers(20)

    assert state.last_trial.outcome == "ROLLED_BACK"
    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


def test_the_baseline_is_frozen_when_a_trial_begins(stack: Stack) -> None:
    """What the previous revision had counted does not move while the trial is compared with it."""
    for _ in range(3):
        stack.check(question())
    stack.control.trial(stack.answers.digest_of("r2"))
    baseline = stack.control.status().trial.baseline

    assert stack.check(question("!error@r2")) == "r1"

    assert stack.control.status().trial.baseline == baseline
    assert stack.control.stats(stack.answers.digest_of("r1")).answered == baseline.answered + 1
