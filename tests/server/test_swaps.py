"""A new model never costs a request: swaps under load, good and bad ones, and deaths in the middle."""

import signal

import grpc
import pytest

from dev.harness import Load, Stack, eventually, question
from dev.harness.answers import scores_of
from dev.harness.metrics import value_of
from hotslot.entailment.v1 import entailment_pb2 as pb
from tests.stack.refusal import refusal_of
from tests.stack.wire import results_of

SWAPS = 20
ENDED = r"twice|[Dd]eadline"  # what a caller is told whose input ends its runner slowly


def swap(stack: Stack, load: Load, revision: str) -> None:
    """The whole way of a good revision, with callers at every step."""
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
    """A revision that does not load, or is taken back."""
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
def test_twenty_swaps_under_load_lose_nothing(stack: Stack) -> None:
    """20 swaps and 5 bad candidates under 16 clients without retries: none failed, each answer its own revision's."""
    stack.bundle("r-bad")
    bad = ["crash", "error", "rolled back", "refused", "oom"]
    with Load(stack, ("r1", "r2", "r-bad")) as load:
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
    """The swap test could not tell a mixed-up answer if both revisions said the same."""
    asked = [question() for _ in range(50)]

    known = stack.answers.compute(asked, ["r1", "r2"])

    assert all(known["r1", one] != known["r2", one] for one in asked)


@pytest.mark.fault("S12")
def test_a_large_request_in_a_swap_is_answered_by_one_slot(stack: Stack) -> None:
    """32 statements that are being computed when the swap comes: all from one revision, as before."""
    slow = question(*[f"!slow 0.02 part {number}" for number in range(32)])
    call = stack.entailment.Predict.future(slow.request(), timeout=20)
    eventually(lambda: value_of(stack, "hotslot_queue_requests") == 1, what="it is on its way")
    load_id = stack.control.trial(stack.answers.digest_of("r2"))
    stack.control.commit(load_id)

    response = call.result()

    assert scores_of(response) == stack.answers.of(response.served_by.revision, slow)


@pytest.mark.fault("S12")
def test_a_large_request_whose_runner_dies_is_answered_by_one_slot(stack: Stack) -> None:
    """32 statements of which some are computed when the runner is killed: the whole request is sent again."""
    slow = question(*[f"!slow 0.02 part {number}" for number in range(32)])
    rows = stack.control.stats(stack.answers.digest_of("r1")).rows
    call = stack.entailment.Predict.future(slow.request(), timeout=20)
    eventually(lambda: value_of(stack, "hotslot_queue_requests") == 1, what="it is on its way")
    stack.kill(stack.active_pid())

    response = call.result()

    assert scores_of(response) == stack.answers.of("r1", slow)
    assert stack.control.stats(stack.answers.digest_of("r1")).rows >= rows + 32


@pytest.mark.fault("K5")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_killed_runner_costs_no_answer(stack: Stack, number: signal.Signals) -> None:
    """However the active runner dies under load: the process that stands ready takes over, and nobody sees it."""
    slot = stack.control.active().slot
    with Load(stack) as load:
        stack.kill(stack.active_pid(), number)
        load.wait_answers(100)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert stack.control.active().slot != slot
    assert stack.process.events("slot_took_over")
    assert stack.control.other().restarts >= 1
    print(f"longest gap {report.longest_gap * 1000:.0f} ms")  # noqa: T201


@pytest.mark.fault("K8")
def test_a_stopped_runner_costs_no_answer(stack: Stack) -> None:
    """SIGSTOP of the active runner under load: after its batch's limit it is ended and its callers are answered."""
    stopped = stack.active_pid()
    with Load(stack) as load:
        stack.kill(stopped, signal.SIGSTOP)
        load.wait_answers(100)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert stopped not in stack.process.living()
    print(f"longest gap {report.longest_gap * 1000:.0f} ms")  # noqa: T201


@pytest.mark.fault("K8")
def test_an_idle_runner_that_is_stopped_is_noticed(stack: Stack) -> None:
    """Without any caller a stopped runner is found by its missing heartbeat."""
    stopped = stack.active_pid()
    stack.kill(stopped, signal.SIGSTOP)

    eventually(lambda: stopped not in stack.process.living(), what="it is ended")
    eventually(lambda: stack.is_serving("shapes"), what="another one serves")
    assert stack.check(question()) == "r1"


@pytest.mark.fault("K8")
@pytest.mark.parametrize("statement", ["!hang", "!gil 20"])
def test_a_blocked_device_thread_costs_only_the_one_who_blocks_it(stack: Stack, statement: str) -> None:
    """A call that never returns, or holds the interpreter: others are answered, the cause is told that it is poison."""
    with Load(stack, clients=4) as load:
        with pytest.raises(grpc.RpcError, match=ENDED):
            stack.predict(question(statement), timeout=9)
        load.wait_answers(50)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


@pytest.mark.fault("K9")
@pytest.mark.parametrize("statement", ["!garbage", "!half"])
def test_a_runner_that_cannot_be_understood_is_ended(stack: Stack, statement: str) -> None:
    """A garbage frame, or half a frame, ends the runner; other callers are answered."""
    with Load(stack, clients=4) as load:
        with pytest.raises(grpc.RpcError, match=ENDED):
            stack.predict(question(statement), timeout=12)
        load.wait_answers(50)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert stack.process.events("runner_died")


@pytest.mark.fault("K13")
@pytest.mark.parametrize("fault", ["!crash", "!exit", "!lost"])
def test_poison_is_answered_as_such(stack: Stack, fault: str) -> None:
    """An input that ends every process that computes it is found by the second one, alone, and named."""
    before = stack.control.stats(stack.answers.digest_of("r1"))
    with pytest.raises(grpc.RpcError) as error:
        stack.predict(question(fault))

    assert refusal_of(error.value).brief == ("INTERNAL", "POISON_INPUT", ())
    after = stack.control.stats(stack.answers.digest_of("r1"))
    assert after.restarts == before.restarts, "no model is blamed for a caller's input"
    stack.wait_ready()


@pytest.mark.fault("K13")
def test_poison_in_a_batch_of_sixteen_hurts_nobody_else(stack: Stack) -> None:
    """Of 16 items that were together in the runner's hands 15 are answered."""
    named = {str(number): question() for number in range(15)}
    rows = [pb.StreamItem(item_id=name, request=asked.request()) for name, asked in named.items()]
    rows.insert(7, pb.StreamItem(item_id="poison", request=question("!crash").request()))
    busy = pb.StreamItem(item_id="busy", request=question("!slow 0.2").request())  # so that the others meet in a batch
    messages = [pb.StreamPredictRequest(items=[busy, busy, *rows])]

    results = results_of(stack.entailment.StreamPredict(iter(messages), timeout=30))

    outcome = {result.item_id: result for result in results if result.item_id != "busy"}
    assert outcome["poison"].error.message == "this input ended the process that computed it, twice"
    for name, asked in named.items():
        assert scores_of(outcome[name].response) == stack.answers.of("r1", asked)
