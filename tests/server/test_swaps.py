"""Swaps under load, with good and bad revisions and killed runners, lose no request."""

import signal

import grpc
import pytest

from dev.harness.answers import question, scores_of
from dev.harness.load import Load
from dev.harness.metrics import value_of
from dev.harness.stack import Stack
from dev.harness.waiting import eventually
from hotslot.entailment.v1 import entailment_pb2 as pb
from tests.stack.refusal import refusal_of
from tests.stack.wire import results_of

SWAPS = 20
ENDED = r"two runner|[Dd]eadline"  # errors of a caller whose input ends its runner slowly


def swap(stack: Stack, load: Load, revision: str) -> None:
    """Load, probe, activate, commit and retire a good revision, under load."""
    control = stack.control
    old = control.status().active_load_id
    load_id = control.candidate(stack.answers.digest_of(revision))
    (probed,) = control.probe([question()], load_id)
    assert probed.entailment.served_by.revision == revision
    control.activate(load_id)
    load.wait_answers(20)
    control.commit(load_id)
    control.retire(old)


def try_bad(stack: Stack, fault: str) -> None:
    """Try a revision that does not load, or is rolled back."""
    if fault == "rolled back":
        stack.control.candidate(stack.bundle("r-bad").bundle_digest)
        state = stack.control.activate(stack.control.other().load_id)
        stack.control.activate(state.trial.previous_load_id)
        stack.control.retire(stack.control.other().load_id)
        return
    with pytest.raises(grpc.RpcError) as error:
        stack.control.load(stack.bundle(f"r-{fault}", fail_load=fault).bundle_digest)
    assert refusal_of(error.value).reason in ("LOAD_FAILED", "OUT_OF_MEMORY", "BUNDLE_BROKEN")


@pytest.mark.fault("S1")
def test_twenty_swaps_under_load_lose_no_request(stack: Stack) -> None:
    """20 swaps and 5 bad candidates under 16 clients without retries: no failure, each answer is its revision's own."""
    stack.bundle("r-bad")
    bad = ["crash", "error", "rolled back", "refused", "oom"]
    with stack.load(("r1", "r2", "r-bad")) as load:
        for number in range(SWAPS):
            if number % 4 == 0:
                try_bad(stack, bad[number // 4])
            swap(stack, load, "r1" if number % 2 else "r2")

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert report.answered == report.attempts
    assert min(report.revisions["r1"], report.revisions["r2"]) > 100
    print(f"{report.attempts} answers over {SWAPS} swaps, longest gap {report.longest_gap * 1000:.0f} ms")  # noqa: T201


def test_the_two_revisions_disagree(stack: Stack) -> None:
    """Otherwise the swap test could not detect mixed-up answers."""
    asked = [question() for _ in range(50)]

    known = stack.answers.compute(asked, ["r1", "r2"])

    assert all(known["r1", one] != known["r2", one] for one in asked)


@pytest.mark.fault("S12")
def test_a_large_request_in_a_swap_is_answered_by_one_slot(stack: Stack) -> None:
    """All 32 statements are answered by the same revision."""
    slow = question(*[f"!slow 0.06 part {number}" for number in range(32)])
    call = stack.entailment.Predict.future(slow.request(), timeout=20)
    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="it is on its way")
    load_id = stack.control.trial(stack.answers.digest_of("r2"))
    stack.control.commit(load_id)

    response = call.result()

    assert scores_of(response) == stack.answers.of(response.served_by.revision, slow)


@pytest.mark.fault("S12")
def test_a_large_request_whose_runner_dies_is_answered_by_one_slot(stack: Stack) -> None:
    """The whole request of 32 statements is sent again."""
    slow = question(*[f"!slow 0.06 part {number}" for number in range(32)])
    rows = stack.control.stats(stack.answers.digest_of("r1")).rows
    call = stack.entailment.Predict.future(slow.request(), timeout=20)
    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="it is on its way")
    stack.kill(stack.active_pid())

    response = call.result()

    assert scores_of(response) == stack.answers.of("r1", slow)
    assert stack.control.stats(stack.answers.digest_of("r1")).rows >= rows + 32


@pytest.mark.fault("K5")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_runner_loses_no_request(stack: Stack, number: signal.Signals) -> None:
    """However the active runner ends under load, the standby process takes over."""
    slot = stack.control.active().slot
    with stack.load() as load:
        stack.kill(stack.active_pid(), number)
        load.wait_answers(100)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert stack.control.active().slot != slot
    stack.process.wait_event("slot_took_over")
    assert stack.control.other().restarts >= 1
    print(f"longest gap {report.longest_gap * 1000:.0f} ms")  # noqa: T201


@pytest.mark.fault("K8")
def test_a_stopped_runner_loses_no_request(stack: Stack) -> None:
    """After SIGSTOP the runner exceeds its time limit, is killed, and its requests are answered."""
    stopped = stack.active_pid()
    with stack.load() as load:
        stack.kill(stopped, signal.SIGSTOP)
        load.wait_answers(100)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    eventually(lambda: stopped not in stack.process.living(), what="it is ended")
    print(f"longest gap {report.longest_gap * 1000:.0f} ms")  # noqa: T201


@pytest.mark.fault("K8")
def test_an_idle_runner_that_is_stopped_is_detected(stack: Stack) -> None:
    """By its missing heartbeat."""
    stopped = stack.active_pid()
    stack.kill(stopped, signal.SIGSTOP)

    eventually(lambda: stopped not in stack.process.living(), what="it is ended")
    eventually(lambda: stack.is_serving("shapes"), what="another one serves")
    assert stack.check(question()) == "r1"


@pytest.mark.fault("K8")
@pytest.mark.parametrize("statement", ["!hang", "!gil 20"])
def test_a_blocked_device_thread_fails_only_the_request_that_blocks_it(stack: Stack, statement: str) -> None:
    """The call never returns, or holds the interpreter lock: its request fails as POISON_INPUT, others are answered."""
    died = len(stack.process.events("runner_died"))
    with stack.load(clients=4) as load:
        with pytest.raises(grpc.RpcError, match=ENDED):
            stack.predict(question(statement), timeout=9)
        load.wait_answers(50)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    eventually(lambda: stack.process.events("runner_died")[died:], what="a runner has died")


@pytest.mark.fault("K9")
@pytest.mark.parametrize("statement", ["!garbage", "!half"])
def test_a_runner_that_sends_invalid_data_is_killed(stack: Stack, statement: str) -> None:
    """An invalid or incomplete frame; other requests are answered."""
    with stack.load(clients=4) as load:
        with pytest.raises(grpc.RpcError, match=ENDED):
            stack.predict(question(statement), timeout=12)
        load.wait_answers(50)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    stack.process.wait_event("runner_died")


@pytest.mark.fault("K13")
@pytest.mark.parametrize("fault", ["!crash", "!exit", "!lost"])
def test_a_poison_input_is_reported_as_such(stack: Stack, fault: str) -> None:
    """After it has ended the second process, computed alone."""
    before = stack.control.stats(stack.answers.digest_of("r1"))
    with pytest.raises(grpc.RpcError) as error:
        stack.predict(question(fault))

    assert refusal_of(error.value).brief == ("INTERNAL", "POISON_INPUT", ())
    after = stack.control.stats(stack.answers.digest_of("r1"))
    assert after.restarts == before.restarts, "no model is blamed for a caller's input"
    stack.wait_ready()


@pytest.mark.fault("K13")
def test_a_poison_input_in_a_batch_of_sixteen_fails_alone(stack: Stack) -> None:
    """The other 15 items are answered."""
    named = {str(number): question() for number in range(15)}
    rows = [pb.StreamItem(item_id=name, request=asked.request()) for name, asked in named.items()]
    rows.insert(7, pb.StreamItem(item_id="poison", request=question("!crash").request()))
    busy = pb.StreamItem(
        item_id="busy", request=question("!slow 0.2").request()
    )  # so that the others meet in a device call
    messages = [pb.StreamPredictRequest(items=[busy, busy, *rows])]

    results = results_of(stack.entailment.StreamPredict(iter(messages), timeout=30))

    outcome = {result.item_id: result for result in results if result.item_id != "busy"}
    assert outcome["poison"].error.message == "this input ended two runner processes"
    for name, asked in named.items():
        assert scores_of(outcome[name].response) == stack.answers.of("r1", asked)
