"""Small parts of the runner, without a process."""

import io
import os
import resource
import socket

import pytest
from PIL import Image

from common.clock import SystemClock
from common.engine_files import Task
from common.exit_codes import ExitCode
from hotslot.runner.v1 import runner_pb2
from inference.call_record import MAX_ITEMS, CallRecord, create_memory
from inference.runner import items, prepare
from inference.runner.engines.base import AddressItem, EntailmentItem
from inference.runner.hardware import CpuOnly, filter_devices
from inference.runner.loading import make_sample_item
from inference.runner.main import Runner, make_parser
from inference.runner.pictures.pool import DecoderPool
from inference.runner.process import can_lower_niceness
from inference.runner.reporting import DeviceProgress, EventLog, SleepWatch
from inference.runner.worker import SAMPLE_SECONDS, CardMemoryMonitor, Worker
from inference.wire import AddressSpan, EntailmentScores, frame
from tests.runner.test_device_calls import StandingClock

DEVICES = [("cuda:0", "bfloat16"), ("cuda:1", "float32"), ("cpu", "float32")]


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        ("auto", ["cuda:0", "cuda:1", "cpu"]),
        ("cuda", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:7", []),
        ("cpu", ["cpu"]),
    ],
)
def test_a_policy_filters_devices(policy: str, names: list[str]) -> None:
    """The order of devices stays."""
    assert names == [name for name, _ in filter_devices(DEVICES, policy)]


@pytest.mark.parametrize(
    ("niceness", "nice_limit", "capabilities", "may"),
    [
        (0, 0, 0, False),  # the usual container: raised once, never lowered
        (0, 20, 0, True),
        (0, 19, 0, False),
        (5, 15, 0, True),
        (0, 0, 1 << 23, True),  # CAP_SYS_NICE
        (0, resource.RLIM_INFINITY, 0, True),
    ],
)
def test_niceness_is_raised_only_if_it_can_be_lowered(
    niceness: int,
    nice_limit: int,
    capabilities: int,
    may: bool,  # noqa: FBT001
) -> None:
    """A candidate that could never be raised to normal priority again keeps it."""
    assert may == can_lower_niceness(niceness, nice_limit, capabilities)


def test_the_sample_picture_is_valid() -> None:
    """The picture for measuring decodes like a caller's picture."""
    item = make_sample_item(Task.VISUAL_ENTAILMENT)
    assert isinstance(item, EntailmentItem)
    with Image.open(io.BytesIO(item.image)) as picture:
        picture.load()
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (64, 64))
    assert isinstance(make_sample_item(Task.ADDRESS_TAGGING), AddressItem)


def test_items_are_read_and_results_written() -> None:
    """For both tasks."""
    row = runner_pb2.Item(item_id=1, address=runner_pb2.AddressTask(addresses=["a", "b"]))
    assert prepare.read_item(row) == AddressItem(("a", "b"))
    outcome = items.answer_outcome(1, [(AddressSpan("city", 0, 3, 0.5),), ()])
    assert [len(address.spans) for address in outcome.address.addresses] == [1, 0]
    assert outcome.address.addresses[0].spans[0].kind == "city"
    asked = runner_pb2.EntailmentTask(statements=["s"], premise="q")
    assert prepare.read_item(runner_pb2.Item(entailment=asked), memoryview(b"p")) == EntailmentItem(b"p", ("s",), "q")
    with pytest.raises(prepare.TaskMissing):
        prepare.read_item(runner_pb2.Item(item_id=1))


def test_the_items_of_the_device_call_outlive_their_runner() -> None:
    """The server reads those of the call that was running; none between two calls."""
    descriptor = create_memory()
    theirs, ours = CallRecord(descriptor), CallRecord(descriptor)
    os.close(descriptor)
    assert ours.read() == ()
    progress = DeviceProgress(StandingClock(), theirs)
    progress.begin(8, [3, 1 << 40])
    theirs.close()
    assert ours.read() == (3, 1 << 40)

    theirs = ours
    theirs.write(list(range(MAX_ITEMS + 1)))
    assert ours.read() == tuple(range(MAX_ITEMS))
    theirs.write(())
    assert ours.read() == ()


def test_a_cancellation_may_come_before_its_item() -> None:
    """They travel on two sockets."""
    received = items.ReceivedItems()
    received.cancel([1, 3])
    arrived = [received.add(runner_pb2.Item(item_id=number), 0.0) for number in (1, 2, 3)]
    received.cancel([2])
    received.remove([1, 2])
    assert [item.is_cancelled for item in arrived] == [True, True, True]
    assert len(received) == 1


def test_a_result_is_finite_if_all_its_numbers_are() -> None:
    """Checked for both tasks."""
    assert items.is_finite(EntailmentScores(0.2, 0.3, 0.5))
    assert not items.is_finite(EntailmentScores(0.2, 0.3, float("nan")))
    assert items.is_finite(())
    assert not items.is_finite((AddressSpan("city", 0, 1, float("inf")),))


def test_a_heartbeat_reports_seconds_since_the_last_step() -> None:
    """Seconds on a step restart with each device call and each step of a load; an idle runner reports zero."""
    clock = StandingClock()
    progress = DeviceProgress(clock)
    assert progress.make_heartbeat() == runner_pb2.Heartbeat()
    progress.begin(7)
    clock.time += 2.0
    assert progress.make_heartbeat() == runner_pb2.Heartbeat(rows_on_step=7, seconds_on_step=2.0)
    progress.advance()
    clock.time += 1.0
    assert progress.make_heartbeat() == runner_pb2.Heartbeat(progress=1, rows_on_step=7, seconds_on_step=1.0)
    progress.end()
    assert progress.make_heartbeat() == runner_pb2.Heartbeat(progress=2)


@pytest.mark.fault("L12")
def test_a_thread_sleeps_while_it_neither_computes_nor_could() -> None:
    """A thread that waits for a CPU does not sleep, nor does one that uses little of one; a new call starts at zero."""
    watch = SleepWatch()
    samples = [
        (1, 0.0, 0.0, False),  # step, now, CPU seconds, whether it is ready to run
        (1, 1.0, 0.0, False),
        (1, 2.0, 0.0, True),
        (1, 3.0, 0.0, False),
        (1, 4.0, 0.02, False),
        (1, 5.0, 0.025, False),  # it wakes up to see that there is nothing to do
        (2, 6.0, 0.025, False),
    ]
    asleep = [watch.sample(step, now, cpu, is_runnable=is_runnable) for step, now, cpu, is_runnable in samples]
    assert asleep == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]


class GrowingCache(CpuOnly):
    """A card whose cache is half of what is in use."""

    def __init__(self, used: int) -> None:
        self.used = used

    def memory_bytes(self, device: str) -> tuple[int, int]:
        assert device == "cuda:0"
        return self.used, 100

    def clear_cache(self) -> None:
        self.used //= 2


def test_cached_memory_of_a_full_card_is_freed() -> None:
    """Above 90 %, sampled at most once a second, and never on a CPU."""
    clock, card = StandingClock(), GrowingCache(80)
    memory = CardMemoryMonitor(card, clock)
    assert memory.sample("cpu") is None
    assert memory.sample("cuda:0") == (80, 100)
    card.used = 95
    assert memory.sample("cuda:0") is None
    clock.time += SAMPLE_SECONDS
    assert memory.sample("cuda:0") == (47, 100)


def test_a_load_goes_on_although_no_thread_is_left_for_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture tries again; the runner ended, and so did each that was started in its place."""

    def refuse(_: DecoderPool) -> None:
        raise RuntimeError("can't start new thread")

    loads: list[runner_pb2.LoadBundle] = []
    exits: list[ExitCode] = []
    monkeypatch.setattr(DecoderPool, "start", refuse)
    monkeypatch.setattr(Worker, "load", lambda _, request: loads.append(request))
    monkeypatch.setattr(Runner, "_exit", lambda _, code: exits.append(code))
    (data, their_data), (control, server) = socket.socketpair(), socket.socketpair()
    memory = create_memory()
    with their_data, server:
        ends = [f"--data-fd={data.detach()}", f"--control-fd={control.detach()}", f"--call-record-fd={memory}"]
        options = [*ends, f"--parent={os.getpid()}", "--engine=ofa", "--prepare-processes=1"]
        runner = Runner(make_parser().parse_args(options), EventLog(SystemClock()))
        os.close(memory)
        for directory in ("first", "second"):
            request = runner_pb2.RunnerRequest(load=runner_pb2.LoadBundle(directory=directory))
            server.sendall(b"".join(frame(request.SerializeToString())))
        server.close()
        runner._receive_control()  # noqa: SLF001  `run` starts threads that do not end
    for connection in (runner._data, runner._control):  # noqa: SLF001
        connection.close()

    assert [load.directory for load in loads] == ["first", "second"]
    assert exits == [ExitCode.PARENT_GONE]
