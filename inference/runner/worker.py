"""The device thread: imports the engine, loads one model and computes items; no other code runs on it."""

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.clock import Clock
from common.exit_codes import ExitCode
from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost
from inference.runner.calls import DeviceCalls, DeviceLost, ExecutionContext
from inference.runner.engines.base import Engine, kernels_of, loader_for
from inference.runner.hardware import CpuOnly, Hardware, hardware_for, measure_own_bytes
from inference.runner.items import PendingItem, ReceivedItems
from inference.runner.loading import LoadContext, LoadedModel, LoadRefused, load_bundle
from inference.runner.plan import CallLimits, choose_max_rows, should_clear
from inference.runner.reporting import DeviceProgress, ThreadMeter, describe_error

# While not serving, a runner computes on one thread: the threads of one call synchronise several hundred times, and
# beside a busy process each synchronisation waits for the scheduler. A load of 2 s took minutes that way.
STANDBY_THREADS = 1
SAMPLE_SECONDS = 1.0  # between two samples of a card's memory; each calls the driver
PROGRESS_SECONDS = 0.05  # least interval between two progress reports of one phase


@dataclass(frozen=True, slots=True)
class WorkerCallbacks:
    """Outputs of the device thread. All may be called from any thread."""

    send_data: Callable[[runner_pb2.RunnerReply], None]
    send_control: Callable[[runner_pb2.RunnerReply], None]
    log: Callable[..., None]
    exit: Callable[[ExitCode], None]  # does not return
    on_ready: Callable[[Hardware], None]  # called when the engine is imported


@dataclass(slots=True)
class Work:
    """Requests that have arrived for the device thread since its last step."""

    loads: list[runner_pb2.LoadBundle] = field(default_factory=list)
    items: list[PendingItem] = field(default_factory=list)  # prepared
    is_last: bool = False  # no more will come


class WorkQueue:
    """The queue of the device thread. Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._work = Work()

    def put_load(self, request: runner_pb2.LoadBundle) -> None:
        """Add a load."""
        with self._changed:
            self._work.loads.append(request)
            self._changed.notify()

    def put_item(self, item: PendingItem) -> None:
        """Add a prepared item."""
        with self._changed:
            self._work.items.append(item)
            self._changed.notify()

    def close(self) -> None:
        """Record that no more will come."""
        with self._changed:
            self._work.is_last = True
            self._changed.notify()

    def take(self, wait_seconds: float | None) -> Work:
        """Remove and return what has come; waits for something so long, without limit for None."""
        with self._changed:
            self._changed.wait_for(lambda: self._work.loads or self._work.items or self._work.is_last, wait_seconds)
            work, self._work = self._work, Work()
            return work

    def take_items(self, wait_seconds: float) -> list[PendingItem]:
        """Remove and return the items that have come; waits for one so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._work.items or self._work.is_last, wait_seconds)
            items, self._work.items = self._work.items, []
            return items


class MemoryTaken:
    """Measures what a load takes of its device."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._before = measure_own_bytes(device)

    def measure(self) -> int:
        """Bytes that this process has taken since."""
        return max(0, measure_own_bytes(self._device) - self._before)


class CardMemoryMonitor:
    """Samples a card's memory and frees cached memory before the card is full. Device thread only."""

    def __init__(self, hardware: Hardware, clock: Clock) -> None:
        self._hardware = hardware
        self._clock = clock
        self._sampled_at = float("-inf")

    def sample(self, device: str) -> tuple[int, int] | None:
        """Return used and total bytes; None on a CPU or within `SAMPLE_SECONDS` of the last sample."""
        now = self._clock.monotonic()
        if not device.startswith("cuda") or now - self._sampled_at < SAMPLE_SECONDS:
            return None
        self._sampled_at = now
        used, total = self._hardware.memory_bytes(device)
        if should_clear(used, total):
            self._hardware.clear_cache()
            used, total = self._hardware.memory_bytes(device)
        return used, total


class Worker:
    """The device thread.

    Args:
        engine: imported before `on_ready` is called; "" for none.
        extra: additional engines, name to "module:function".
        received: the items without an outcome.
        kernels: folder of compiled kernels; None: none are used.
    """

    def __init__(
        self,
        engine: str,
        extra: Mapping[str, str],
        progress: DeviceProgress,
        clock: Clock,
        callbacks: WorkerCallbacks,
        received: ReceivedItems,
        kernels: Path | None = None,
    ) -> None:
        self._engine_name = engine
        self._extra = extra
        self._progress = progress
        self._clock = clock
        self._callbacks = callbacks
        self._received = received
        self._kernels = kernels
        self._queue = WorkQueue()
        self._is_finishing = False
        self._hardware: Hardware = CpuOnly()
        self._memory = CardMemoryMonitor(self._hardware, clock)
        self._context: ExecutionContext | None = None
        self._calls: DeviceCalls | None = None
        self._last_report = ("", float("-inf"))  # phase, time
        self._needed_bytes = 0  # by the plan of the load
        self._taken = MemoryTaken("cpu")
        self._is_serving = False
        self._serving_threads = 0
        self._used_threads = STANDBY_THREADS
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    @property
    def engine(self) -> Engine | None:
        """The loaded engine, for preparing; None before a load. Any thread."""
        return self._context.engine if self._context else None

    def start(self) -> None:
        """Start the thread, which imports the engine first."""
        self._thread.start()

    def load(self, request: runner_pb2.LoadBundle) -> None:
        """Load a bundle. Any thread."""
        self._queue.put_load(request)

    def on_prepared(self, item: PendingItem) -> None:
        """Compute an item whose preparation has succeeded; send the outcome of one that has failed. Any thread."""
        item.ready_at = self._clock.monotonic()
        if item.outcome is None:
            self._queue.put_item(item)
            return
        item.outcome.prepared_seconds = item.prepared_seconds
        self._send_reply(runner_pb2.ItemsReply(outcomes=[item.outcome]))
        if self._is_finishing:
            self._queue.close()

    def finish(self) -> None:
        """End the process when every received item has its outcome; no more will be received. Any thread."""
        self._is_finishing = True
        self._queue.close()

    def set_serving(self, *, is_serving: bool) -> None:
        """Set whether the runner serves callers, which decides the threads of later calls. Any thread."""
        self._is_serving = is_serving

    def _work(self) -> None:
        self._progress.use_meter(ThreadMeter())
        self._import_engine()
        while True:
            work = self._take_work()
            for request in work.loads:
                self._load(request)
            if self._context is not None and self._calls is not None:
                for item in work.items:
                    self._calls.add(item)
                self._gather(self._calls)
                if self._calls:
                    self._compute(self._context, self._calls)
            if self._is_finishing and not self._received:
                break
        if self._context is not None:
            self._context.engine.close()
        self._callbacks.exit(ExitCode.DONE)

    def _take_work(self) -> Work:
        """Take what has come; waits for something while there is nothing to compute."""
        if self._calls:
            return self._queue.take(0.0)
        began = self._clock.monotonic()
        work = self._queue.take(None)
        if self._calls is not None:
            self._calls.idle_seconds += self._clock.monotonic() - began
        return work

    def _gather(self, calls: DeviceCalls) -> None:
        """Wait a moment for further items where that pays."""
        while not self._is_finishing and (wait := calls.choose_wait()) > 0:
            for item in self._queue.take_items(wait):
                calls.add(item)

    def _import_engine(self) -> None:
        try:
            with without_garbage_collection():
                loader = loader_for(self._engine_name, self._extra) if self._engine_name else None
                self._hardware = hardware_for(self._engine_name, self._extra, loader)
                self._memory = CardMemoryMonitor(self._hardware, self._clock)
                self._callbacks.on_ready(self._hardware)
        except Exception as error:  # noqa: BLE001  an import can raise anything
            self._callbacks.log("engine_import_failed", level="error", engine=self._engine_name, error=repr(error))
            self._callbacks.exit(ExitCode.ENGINE_MISSING)

    def _load(self, request: runner_pb2.LoadBundle) -> None:
        self._progress.begin(0)
        if self._context is None:
            outcome = self._try_load(request)
        else:
            outcome = _refuse_load(request, LoadRefused("LOAD_FAILED", "this runner has loaded a bundle before"))
        self._progress.end()
        self._callbacks.send_control(runner_pb2.RunnerReply(load_outcome=outcome))

    def _try_load(self, request: runner_pb2.LoadBundle) -> runner_pb2.LoadOutcome:
        try:
            self._serving_threads = request.threads
            self._used_threads = self._choose_threads()
            self._taken = MemoryTaken(request.device)
            context = LoadContext(
                self._extra,
                self._hardware,
                self._clock,
                self._callbacks.log,
                self._used_threads,
                self._report_plan,
                self._kernels,
            )
            loaded = load_bundle(request, context, self._report_progress)
        except LoadRefused as refusal:
            return _refuse_load(request, refusal)
        return self._keep(loaded, request)

    def _keep(self, loaded: LoadedModel, request: runner_pb2.LoadBundle) -> runner_pb2.LoadOutcome:
        engine = loaded.engine
        self._context = ExecutionContext(
            engine,
            CallLimits(choose_max_rows(request.max_call_rows, engine.max_call_rows), request.max_call_seconds),
            CallCost(loaded.row_seconds),
            self._hardware.clear_cache,
            self._progress,
            self._clock,
            self._callbacks.log,
        )
        self._calls = DeviceCalls(self._context, self._send_reply)
        self._sample_memory(self._context)
        return runner_pb2.LoadOutcome(
            device=engine.device,
            precision=engine.precision,
            row_seconds=loaded.row_seconds,
            needed_bytes=loaded.needed_bytes,
            call_rows=self._context.call_rows,
            taken_bytes=self._taken.measure(),
            kernels=kernels_of(engine),
        )

    def _compute(self, context: ExecutionContext, calls: DeviceCalls) -> None:
        threads = self._choose_threads()
        if threads != self._used_threads:
            self._hardware.use_threads(threads)
            self._used_threads = threads
        try:
            calls.run_one()
        except DeviceLost as error:
            self._callbacks.log(
                "device_lost",
                level="error",
                device=context.engine.device,
                error=describe_error(error.__cause__ or error),
            )
            self._callbacks.exit(ExitCode.DEVICE_LOST)
        self._sample_memory(context)

    def _choose_threads(self) -> int:
        return self._serving_threads if self._is_serving else STANDBY_THREADS

    def _send_reply(self, reply: runner_pb2.ItemsReply) -> None:
        self._callbacks.send_data(runner_pb2.RunnerReply(items=reply))
        self._received.remove([outcome.item_id for outcome in reply.outcomes])

    def _sample_memory(self, context: ExecutionContext) -> None:
        sample = self._memory.sample(context.engine.device)
        if sample is not None:
            self._progress.device_used_bytes, self._progress.device_total_bytes = sample

    def _report_plan(self, needed_bytes: int) -> None:
        """Report the plan before anything is read: the loads of other models wait for it."""
        self._needed_bytes = needed_bytes
        self._report_progress("reading", 0.0)

    def _report_progress(self, phase: str, fraction: float) -> None:
        self._progress.advance()
        now = self._clock.monotonic()
        last_phase, last_time = self._last_report
        if phase == last_phase and fraction < 1 and now - last_time < PROGRESS_SECONDS:
            return
        self._last_report = (phase, now)
        progress = runner_pb2.LoadProgress(
            phase=phase, fraction=fraction, needed_bytes=self._needed_bytes, taken_bytes=self._taken.measure()
        )
        self._callbacks.send_control(runner_pb2.RunnerReply(load_progress=progress))


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect nothing meanwhile: what an import creates stays. Torch's takes a fifth less time this way."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _refuse_load(request: runner_pb2.LoadBundle, refusal: LoadRefused) -> runner_pb2.LoadOutcome:
    failure = runner_pb2.Failure(reason=refusal.reason, message=str(refusal))
    return runner_pb2.LoadOutcome(
        failure=failure, device=request.device, needed_bytes=refusal.needed_bytes, free_bytes=refusal.free_bytes
    )
