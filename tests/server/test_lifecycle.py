"""The server process: drain, second signal, kill, a second server, stale files."""

import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common.exit_codes import ExitCode
from common.paths import CONTROL_SOCKET, RUN_FOLDER
from dev.harness.answers import question, scores_of
from dev.harness.metrics import value_of
from dev.harness.process import ServerProcess
from dev.harness.scripted_engine import holding
from dev.harness.stack import Stack
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of
from tests.stack.wire import one_item

HURRY_SECONDS = 10.0  # of an end without waiting, on a busy machine; calls have 20 s of grace
BUDGET_SECONDS = 12.0  # of a drain, on a busy machine; there is little to finish
DELAY_SECONDS = 4.0  # in which it still answers


class OpenStream:
    """An open stream, read by its own thread."""

    def __init__(self, stack: Stack) -> None:
        self.messages: queue.Queue[Any] = queue.Queue()
        self.answered: Counter[str] = Counter()
        self.error: grpc.RpcError | None = None
        self._call = stack.entailment.StreamPredict(iter(self.messages.get, None), timeout=60)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, item_id: str, statement: str = "a") -> None:
        """Send one item."""
        self.messages.put(one_item(item_id, question(statement).request()))

    def wait_end(self) -> None:
        """Wait until the server has ended the stream."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "the stream is still open"
        self.messages.put(None)

    def _read(self) -> None:
        try:
            for answer in self._call:
                self.answered.update(result.item_id for result in answer.results if result.WhichOneof("outcome"))
        except grpc.RpcError as error:
            self.error = error


def watch(stack: Stack) -> list[int]:
    """Open a Watch; the returned list collects its states."""
    seen: list[int] = []
    call = stack.health.Watch(health_pb2.HealthCheckRequest(service="shapes"), timeout=60)
    seen.append(next(call).status)

    def read() -> None:
        seen.extend(row.status for row in call)
        seen.append(-1)

    threading.Thread(target=read, daemon=True).start()
    return seen


@pytest.mark.fault("K12")
@pytest.mark.parametrize("to_all", [False, True], ids=["server", "everything"])
def test_sigterm_under_load_answers_all_accepted_requests(
    make_stack: MakeStack,
    tmp_path: Path,
    to_all: bool,  # noqa: FBT001
) -> None:
    """With a unary call, two streams and a Watch open: all are answered, the exit code is 0, no process remains."""
    held = tmp_path / "held"
    stack = make_stack(runner={"min_timeout_seconds": 60.0}, script={"held_by": str(held)})
    states, idle, busy = watch(stack), OpenStream(stack), OpenStream(stack)
    idle.send("early")
    eventually(lambda: idle.answered["early"], what="a stream is idle")
    asked = question("!held")
    with holding(held):
        unary: Any = stack.entailment.Predict.future(asked.request(), timeout=60)
        eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="the call is inside")
        for number in range(20):
            busy.send(str(number), "!slow 0.02")
        eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 21, what="all items are inside")
        begun = time.monotonic()
        (stack.process.send_all if to_all else stack.process.send)(signal.SIGTERM)
    busy.wait_end()
    idle.wait_end()

    assert scores_of(unary.result()) == stack.answers.of("r1", asked)
    assert busy.answered == Counter({str(number): 1 for number in range(20)})
    for stream in (busy, idle):
        assert stream.error is not None
        refusal = refusal_of(stream.error)
        assert (refusal.brief, refusal.retry_seconds) == (("UNAVAILABLE", "DRAINING", ()), 1.0)
    assert stack.process.wait_exit(BUDGET_SECONDS) == 0
    assert time.monotonic() - begun < BUDGET_SECONDS
    eventually(lambda: states[-1] == -1, what="the Watch ends")
    assert states == [1, 2, -1]
    stack.process.wait_gone()


@pytest.mark.fault("K12")
def test_a_draining_server_refuses_with_unavailable(make_stack: MakeStack) -> None:
    """During the delay health is NOT_SERVING and calls are answered; then they fail with UNAVAILABLE."""
    stack = make_stack(server={"drain_delay_seconds": DELAY_SECONDS})
    with stack.load(clients=8, deadline=5.0) as load:
        stack.process.send(signal.SIGTERM)
        eventually(lambda: not stack.is_serving(), what="it says that it leaves")
        assert stack.is_serving("liveness")
        assert stack.check(question()) == "r1"
        load.wait_answers(50)
        assert stack.process.wait_exit(DELAY_SECONDS + BUDGET_SECONDS) == 0

    report = load.report()
    assert report.wrong == []
    # gRPC itself ends a call CANCELLED that comes on an open connection in the moment of its own shutdown; clients that
    # retry wait then (`make bench-restart`), these do not.
    codes = Counter(line.split()[0] for line in report.failed)
    assert set(codes) <= {"UNAVAILABLE", "CANCELLED"}, Counter(report.failed).most_common(3)
    assert codes["CANCELLED"] <= 8, "at most the one call of each client that was on the wire"
    names = [row["event"] for row in stack.process.events()]
    assert names.index("drain_begun") < names.index("server_stopped")
    stack.process.wait_gone()


def test_status_and_health_agree_during_the_drain_delay(make_stack: MakeStack) -> None:
    """The control socket and the status service report the model as not ready."""
    stack = make_stack(server={"drain_delay_seconds": 60.0})
    stack.process.send(signal.SIGTERM)
    eventually(lambda: not stack.is_serving(), what="it says that it leaves")

    assert not stack.control.status().ready
    told = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=10)
    assert not told.capabilities[0].ready
    stack.process.send(signal.SIGTERM)  # the second one ends the delay
    assert stack.process.wait_exit(BUDGET_SECONDS) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(make_stack: MakeStack, second: signal.Signals) -> None:
    """The process and its runners end without waiting for calls."""
    stack = make_stack(runner={"min_timeout_seconds": 60.0})
    call: Any = stack.entailment.Predict.future(question("!slow 30").request(), timeout=40)
    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="the call is inside")
    stack.process.send(signal.SIGTERM)
    stack.process.wait_event("drain_begun")

    begun = time.monotonic()
    stack.process.send(second)

    assert stack.process.wait_exit(HURRY_SECONDS) == 0
    assert time.monotonic() - begun < HURRY_SECONDS
    assert call.exception() is not None
    stack.process.wait_gone()


def test_a_hung_runner_does_not_delay_the_drain(make_stack: MakeStack) -> None:
    """It is killed after its time limit; the exit code is still 0."""
    stack = make_stack(server={"grace_seconds": 15.0})
    call: Any = stack.entailment.Predict.future(question("!hang").request(), timeout=40)
    eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="the call is inside")
    stack.process.send(signal.SIGTERM)

    assert stack.process.wait_exit(13.0) == 0
    assert call.exception() is not None
    stack.process.wait_gone()


@pytest.mark.fault("U3")
def test_after_sigkill_no_runner_remains_and_the_next_server_serves(make_stack: MakeStack) -> None:
    """Runners end with their server; the next one removes the stale socket and serves."""
    stack = make_stack()
    stack.control.candidate(stack.bundle("r2").bundle_digest)
    socket_path = stack.folder / RUN_FOLDER / CONTROL_SOCKET
    with stack.load(clients=4, deadline=2.0):
        stack.process.send(signal.SIGKILL)
        assert stack.process.wait_exit() == -signal.SIGKILL
        stack.process.wait_gone()
    assert socket_path.exists(), "nothing cleaned up: the socket is stale"

    stack.hang_up()
    stack.start()

    assert stack.check(question()) == "r1"
    assert stack.control.status().generation >= 1


def test_stopped_runners_die_with_a_killed_server(make_stack: MakeStack) -> None:
    """The kernel ends a stopped runner too."""
    stack = make_stack()
    stack.wait_calm()
    for slot in stack.control.status().slots:
        stack.kill(slot.pid, signal.SIGSTOP)

    stack.process.send(signal.SIGKILL)

    assert stack.process.wait_exit() == -signal.SIGKILL
    stack.process.wait_gone()


@pytest.mark.fault("U1")
def test_a_second_server_on_the_same_state_dir_exits(make_stack: MakeStack) -> None:
    """It reports the held lock and its exit code; the first one keeps serving."""
    stack = make_stack()

    second = ServerProcess(stack.folder, stack.config)

    try:
        assert second.wait_exit() == ExitCode.BUSY
        assert second.events("server_refused")
        assert "Traceback" not in second.tail()
    finally:
        second.destroy()
    assert stack.check(question()) == "r1"
    assert stack.control.status().ready


@pytest.mark.fault("U1")
@pytest.mark.parametrize("setting", ["port", "metrics_port"])
def test_a_server_exits_if_its_port_is_in_use(make_stack: MakeStack, setting: str) -> None:
    """No runner of it remains."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stack = make_stack(is_started=False, server={setting: taken.getsockname()[1]})
        second = ServerProcess(stack.folder, stack.config)
        try:
            assert second.wait_exit() == ExitCode.BUSY
            assert second.events("server_refused")
            second.wait_gone()
        finally:
            second.destroy()


@pytest.mark.fault("U4")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_reach_the_control_socket(stack: Stack) -> None:
    """The socket's folder is accessible to its owner only."""
    folder = stack.folder / RUN_FOLDER
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / CONTROL_SOCKET).stat().st_mode & 0o177 == 0
    script = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "way = socket.socket(socket.AF_UNIX)\n"
        "try: way.connect(sys.argv[1])\n"
        "except PermissionError: print('refused')\n"
    )
    for parent in folder.parents:  # pytest's own folders are closed as well: open them, or this proves nothing
        if parent != folder and str(parent).startswith("/tmp/pytest-of-"):  # noqa: S108
            parent.chmod(parent.stat().st_mode | 0o055)

    done = subprocess.run(
        ["/usr/bin/env", "python3", "-c", script, str(folder / CONTROL_SOCKET)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert (done.stdout.strip(), done.stderr) == ("refused", "")


@pytest.mark.fault("U5")
def test_an_oversized_frame_and_a_hung_peer_do_not_block_the_control_socket(stack: Stack) -> None:
    """A message over the limit ends its own call; silent peers delay no other call."""
    path = str(stack.folder / RUN_FOLDER / CONTROL_SOCKET)
    hung = []
    for _ in range(20):
        way = socket.socket(socket.AF_UNIX)
        way.connect(path)
        way.send(b"PRI * HTTP/2")
        hung.append(way)
    huge = control_pb2.ProbeSlotRequest(model="shapes")
    huge.entailment.requests.add().image.content = bytes(40 << 20)
    with pytest.raises(grpc.RpcError) as error:
        stack.control.stub.ProbeSlot(huge, timeout=20)

    assert refusal_of(error.value).code == "RESOURCE_EXHAUSTED"
    assert stack.control.status().ready
    for way in hung:
        way.close()


def test_invalid_settings_are_reported_at_start(make_stack: MakeStack) -> None:
    """The process exits with its own code and names each mistake."""
    stack = make_stack(is_started=False, server={"port": 70000, "grace_seconds": -1})
    process = ServerProcess(stack.folder, stack.config)

    try:
        assert process.wait_exit() == ExitCode.WRONG_USE
        text = process.errors()
        assert "server.port" in text
        assert "server.grace_seconds" in text
        assert "Traceback" not in text
    finally:
        process.destroy()
