"""Faults of the drill that callers see: a stack with a folder hub and a golden set, and one with a card."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil

from dev.harness.answers import question
from dev.harness.memory_group import NO_LIMIT, NoMemoryGroup
from dev.harness.settings import Sections
from dev.watch.drill_callers import ask_once, asking
from dev.watch.drill_faults import DrillFault
from dev.watch.drill_stack import OFFSETS, DrillStack, pause

MIB = 1 << 20
CONNECTIONS = 80
BALLAST_BYTES = 2048 * MIB  # so that the rest of the limit has room for a command


def settings(_folder: Path) -> Sections:
    """No standby, so that a death is seen; little memory for requests; a runner that is given up soon."""
    return {
        "runner": {
            "standby": False,
            "respawn_give_up": 2,
            "respawn_first_seconds": 0.2,
            "respawn_cap_seconds": 1.0,
            "min_timeout_seconds": 30.0,
        },
        "server": {"max_waiting_bytes": 64 * MIB, "poison_seconds": 60.0},
    }


@contextlib.contextmanager
def failing_calls(drill: DrillStack) -> Iterator[None]:
    """Every third request fails in the engine."""
    with asking(drill.stack, "!error one", "two", "three", callers=3):
        yield


@contextlib.contextmanager
def slow_calls(drill: DrillStack) -> Iterator[None]:
    """Each answer takes three seconds."""
    with asking(drill.stack, "!slow 3 one", callers=2):
        yield


@contextlib.contextmanager
def crowd(drill: DrillStack) -> Iterator[None]:
    """Forty callers of an engine that computes one row in half a second."""
    with asking(drill.stack, "!slow 0.5 one", callers=40, pause=0.0):
        yield


@contextlib.contextmanager
def impatient(drill: DrillStack) -> Iterator[None]:
    """Deadlines shorter than an answer, beside callers that are answered."""
    with asking(drill.stack, "!slow 1 one", callers=3, timeout=0.5), asking(drill.stack, "two", callers=1):
        yield


@contextlib.contextmanager
def large_pictures(drill: DrillStack) -> Iterator[None]:
    """Pictures that wait fill the memory for requests."""
    with asking(drill.stack, "!slow 4 one", callers=20, pause=0.0, image=os.urandom(4_000_000)):
        yield


@contextlib.contextmanager
def killed_runner(drill: DrillStack) -> Iterator[None]:
    """SIGKILL for the runner that answers; its bundle takes six seconds to load."""
    drill.stack.publish("v1.1.0", load_seconds=6.0)
    drill.stack.wait_committed("v1.1.0")
    with asking(drill.stack, "one", callers=1):
        drill.wait_data('sum(rate(hotslot_items_total{revision="v1.1.0"}[5s])) > 0')  # alerts compare with before
        os.kill(drill.stack.control.active().pid, signal.SIGKILL)
        yield


@contextlib.contextmanager
def poison(drill: DrillStack) -> Iterator[None]:
    """One input that ends the runner, sent until it is refused."""
    asked = question("!crash one", image=b"poison")
    for _ in range(2):
        ask_once(drill.stack, asked)
    yield


@contextlib.contextmanager
def other_answers(drill: DrillStack) -> Iterator[None]:
    """One answer until the rule can compare with a time before, then another one."""
    yes, no = _find_statements(drill)
    with asking(drill.stack, yes, callers=6, image=b"p"):
        drill.wait_data(f"max(model_label:hotslot_answers:share1h {OFFSETS['offset 1d']}) > 0.9")
    with asking(drill.stack, no, callers=6, image=b"p"):
        yield


@contextlib.contextmanager
def frozen_server(drill: DrillStack) -> Iterator[None]:
    """SIGSTOP for two seconds."""
    pid = drill.stack.send_signal("server", signal.SIGSTOP)
    pause(2)
    os.kill(pid, signal.SIGCONT)
    yield


@contextlib.contextmanager
def few_descriptors(drill: DrillStack) -> Iterator[None]:
    """Many connections, and a limit that is a sixth more than what is open: the server must stay able to work."""
    with contextlib.ExitStack() as connections:
        for _ in range(CONNECTIONS):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = connections.enter_context(grpc.insecure_channel(drill.stack.address, options=options))
            grpc.channel_ready_future(channel).result(20)
        with _limited_files(drill):
            yield


@contextlib.contextmanager
def _limited_files(drill: DrillStack) -> Iterator[None]:
    pid = drill.stack.wait(lambda: drill.stack.pid("server"), "there is a server")
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = psutil.Process(pid).num_fds()
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + used // 6, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def full_memory(drill: DrillStack) -> Iterator[None]:
    """Another process of the container takes memory, until 93 % of its limit are in use."""
    group = drill.stack.group
    if group is None:
        raise NoMemoryGroup("the stack has no control group of its own")
    hold = f"held = bytearray(b'.') * {BALLAST_BYTES}; print(flush=True); import time; time.sleep(600)"
    command = group.wrap([sys.executable, "-c", hold])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as ballast:
        try:
            if ballast.stdout is not None:
                ballast.stdout.readline()
            group.limit(int(group.used / 0.93))
            yield
        finally:
            group.limit(NO_LIMIT)
            ballast.kill()


@contextlib.contextmanager
def frozen_reader(drill: DrillStack) -> Iterator[None]:
    """supervisord, which reads the log, is stopped, and many calls are made."""
    pid = drill.stack.send_signal("supervisord", signal.SIGSTOP)
    try:
        with asking(drill.stack, "one", callers=12, pause=0.0):
            yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def refusing_chat(drill: DrillStack) -> Iterator[None]:
    """The robot's key is wrong: code 93000 for everything, HTTP 200."""
    drill.chat.codes.extend([93000] * 400)
    os.kill(drill.stack.control.active().pid, signal.SIGKILL)  # something to tell
    try:
        yield
    finally:
        drill.chat.codes.clear()


@contextlib.contextmanager
def long_drain(drill: DrillStack) -> Iterator[None]:
    """The server is told to stop while calls take long."""
    with asking(drill.stack, "!slow 8 one", callers=2):
        drill.wait_data("sum(hotslot_unanswered_requests) > 0")  # a server without calls ends at once
        drill.stack.send_signal("server", signal.SIGTERM)
        yield


@contextlib.contextmanager
def dying_runner(drill: DrillStack) -> Iterator[None]:
    """SIGKILL for each process of the active slot, as soon as it is there."""
    stopping = threading.Event()

    def kill() -> None:
        while not stopping.wait(0.05):
            with contextlib.suppress(grpc.RpcError, OSError, StopIteration):
                state = drill.stack.control.status()
                pid = next(slot.pid for slot in state.slots if slot.load_id == state.active_load_id)
                if pid:
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)


@contextlib.contextmanager
def stopped_server(drill: DrillStack) -> Iterator[None]:
    """SIGSTOP for as long as it takes."""
    pid = drill.stack.send_signal("server", signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _find_statements(drill: DrillStack) -> tuple[str, str]:
    """Two statements about one picture with different answers."""
    answers = drill.stack.answers
    revision = drill.stack.wait(drill.stack.serving, "a revision serves")
    found: dict[int, str] = {}
    for number in range(50):
        asked = question(f"statement {number}", image=b"p")
        (scores,) = answers.of(revision, asked)
        found.setdefault(scores.index(max(scores)), f"statement {number}")
    first, second, *_ = found.values()
    return first, second


FAULTS = (
    DrillFault(
        "every third request fails in the engine",
        failing_calls,
        {"HotslotErrorShareHigh": "ENGINE", "HotslotErrorShareRising": ""},
    ),
    DrillFault("each answer takes three seconds", slow_calls, {"HotslotLatencyHigh": "compute"}),
    DrillFault("40 callers, two rows a second", crowd, {"HotslotQueueLong": "waiting"}),
    DrillFault("deadlines of 0.5 s, answers of 1 s", impatient, {"HotslotRefusals": "DeadlineExceeded"}),
    DrillFault("pictures that wait fill the memory for requests", large_pictures, {"HotslotHeldMemoryHigh": "waiting"}),
    DrillFault("one input that ends the runner twice", poison, {"HotslotPoisonInputs": "died"}),
    DrillFault(
        "SIGKILL for the runner; a load takes 6 s, no standby",
        killed_runner,
        {"HotslotRunnerDied": "SIGKILL", "HotslotModelNotReady": "shapes", "HotslotLoadSlow": "SIGKILL"},
    ),
    DrillFault("the server is frozen for 2 s", frozen_server, {"HotslotLoopLag": "late"}),
    DrillFault("the server may open few files", few_descriptors, {"HotslotDescriptorsHigh": "wrong limits"}),
    DrillFault("another process of the container takes memory", full_memory, {"HotslotMemoryHigh": "wrong memory"}),
    DrillFault("callers ask what has another answer", other_answers, {"HotslotLabelMixShifted": "v1.0.0"}),
    DrillFault("the reader of the log is frozen", frozen_reader, {"HotslotLogLinesDropped": "dropped"}),
    DrillFault(
        "the robot refuses every message (93000)", refusing_chat, {"HotslotAlertsNotDelivered": "93000"}, told_late=True
    ),
    DrillFault("the runner is killed at every start", dying_runner, {"HotslotModelGivenUp": "died"}),
    DrillFault("SIGTERM while calls take 8 s", long_drain, {"HotslotDrainStuck": "unanswered"}),
    DrillFault("the server is frozen", stopped_server, {"HotslotTargetDown": ""}),
)


@contextlib.contextmanager
def card_in_use(drill: DrillStack) -> Iterator[None]:
    """The stack was started on a card with 97 percent in use."""
    del drill
    yield


@contextlib.contextmanager
def no_memory(drill: DrillStack) -> Iterator[None]:
    """The card has no memory for a request."""
    with asking(drill.stack, "!oom@cuda:0 one", callers=1):
        yield


CARD_FAULTS = (
    DrillFault(
        "a card with 97 % in use",
        card_in_use,
        {"HotslotGpuMemoryHigh": "GPU memory", "HotslotGpuMemoryFull": "GPU memory"},
        is_from_start=True,
    ),
    DrillFault("a card has no memory for a request", no_memory, {"HotslotCpuFallback": "cuda:0"}),
)
