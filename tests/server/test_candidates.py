"""A candidate that fails: LoadSlot returns the reason, and callers are not affected."""

import signal
from typing import Any

import grpc
import pytest

from dev.harness.answers import question
from dev.harness.stack import DEADLINE_SECONDS, Stack
from dev.harness.waiting import eventually
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of


def load_refused(stack: Stack, digest: str) -> tuple[str, str]:
    """Code and reason of a failed load."""
    with pytest.raises(grpc.RpcError) as error:
        stack.control.load(digest)
    refusal = refusal_of(error.value)
    assert refusal.domain == "hotslot"
    return refusal.code, refusal.reason


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("refused", ("FAILED_PRECONDITION", "BUNDLE_BROKEN")),
        ("error", ("ABORTED", "LOAD_FAILED")),
        ("crash", ("ABORTED", "LOAD_FAILED")),
        ("oom", ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")),
    ],
)
def test_a_candidate_that_cannot_load_is_refused_with_its_reason(
    stack: Stack, fault: str, told: tuple[str, str]
) -> None:
    """LoadSlot returns the reason, the slot is free again, and the active model is not affected."""
    bad = stack.bundle(f"r-{fault}", fail_load=fault)
    generation = stack.control.status().generation

    with stack.load(clients=4) as load:
        assert load_refused(stack, bad.bundle_digest) == told
        eventually(lambda: stack.control.other().state == "READY", what="the slot is free again")
        load.wait_answers(40)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    state = stack.control.status()
    assert (state.generation, stack.control.other().load_id) == (generation, "")
    assert load_refused(stack, bad.bundle_digest) == told, "it may be tried again, with the same end"
    assert stack.control.candidate(stack.answers.digest_of("r2"))


@pytest.mark.fault("K8")
@pytest.mark.parametrize("fault", ["hang", "gil"])
def test_a_candidate_that_hangs_while_loading_is_killed(make_stack: MakeStack, fault: str) -> None:
    """A load without progress ends as LOAD_STALLED, even if it holds the interpreter lock."""
    stack = make_stack(runner={"load_stall_seconds": 1.0})
    bad = stack.bundle("r-stuck", fail_load=fault)

    assert load_refused(stack, bad.bundle_digest) == ("ABORTED", "LOAD_STALLED")
    stack.wait_calm()
    assert stack.check(question()) == "r1"


@pytest.mark.fault("K6")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_candidate_killed_while_loading_frees_its_slot(stack: Stack, number: signal.Signals) -> None:
    """The load is aborted and the slot is free again."""
    call: Any = stack.control.begin_load(stack.bundle("r-long", load_seconds=20.0).bundle_digest)
    eventually(lambda: stack.control.other().state == "LOADING", what="the load has begun")
    stack.kill(stack.control.other().pid, number)

    with pytest.raises(grpc.RpcError) as error:
        list(call)
    assert refusal_of(error.value).brief == ("ABORTED", "LOAD_FAILED", ())
    stack.wait_calm()
    assert stack.check(question()) == "r1"


@pytest.mark.fault("K6")
def test_a_candidate_killed_after_loading_has_an_unknown_load_id(stack: Stack) -> None:
    """It can be neither probed nor activated; a new load gets a new id."""
    digest = stack.answers.digest_of("r2")
    load_id = stack.control.candidate(digest)

    stack.kill(stack.control.other().pid)
    stack.wait_calm()

    for act in (lambda: stack.control.probe([question()], load_id), lambda: stack.control.activate(load_id)):
        with pytest.raises(grpc.RpcError) as error:
            act()
        assert refusal_of(error.value).brief[:2] == ("NOT_FOUND", "LOAD_UNKNOWN")
    assert stack.control.candidate(digest) != load_id
    assert stack.check(question()) == "r1"


@pytest.mark.fault("K6")
def test_a_probe_whose_runner_dies_reports_it(stack: Stack) -> None:
    """The death is the outcome of the probe and affects no caller."""
    load_id = stack.control.candidate(stack.answers.digest_of("r2"))

    (row,) = stack.control.probe([question("!crash@r2")], load_id)

    assert row.error.code == grpc.StatusCode.INTERNAL.value[0]
    assert stack.check(question()) == "r1"
    stack.wait_calm()


@pytest.mark.fault("S3")
def test_deadlines_are_met_while_a_candidate_loads(stack: Stack) -> None:
    """A slow, CPU-heavy load does not delay callers with short deadlines, nor health."""
    slow = stack.bundle("r-heavy", load_seconds=1.0, warm_up_seconds=0.5, cpu_row_seconds=0.2)

    with stack.load(clients=4, deadline=2.0) as load:
        call = stack.control.begin_load(slow.bundle_digest)
        for _ in call:
            assert stack.is_serving()
        load.wait_answers(20)

    report = load.report()
    assert (report.failed, report.wrong) == ([], [])


@pytest.mark.fault("S4")
def test_a_candidate_without_memory_does_not_affect_the_active_model(stack: Stack) -> None:
    """LoadSlot fails with OUT_OF_MEMORY; the active process keeps running."""
    pid = stack.active_pid()
    assert load_refused(stack, stack.bundle("r-big", fail_load="oom").bundle_digest)[1] == "OUT_OF_MEMORY"

    assert stack.active_pid() == pid
    assert stack.predict(question(), timeout=DEADLINE_SECONDS).served_by.revision == "r1"
