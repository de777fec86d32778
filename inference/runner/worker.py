"""The device thread: imports the engine, loads one model and computes batches in order; no other code runs on it."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.clock import Clock
from common.exit_codes import ExitCode
from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.runner.batch import BatchRun, DeviceLost, ExecutionContext
from inference.runner.engines.base import Engine, loader_for
from inference.runner.hardware import CardMemoryMonitor, CpuOnly, Hardware, hardware_for
from inference.runner.loading import LoadContext, LoadedModel, LoadRefused, load_bundle
from inference.runner.plan import CallLimits
from inference.runner.prepare import PendingBatch
from inference.runner.reporting import DeviceProgress, describe_error

# While not serving, a runner computes on one thread: the threads of one call synchronise several hundred times, and
# beside a busy process each synchronisation waits for the scheduler. A load of 2 s took minutes that way.
STANDBY_THREADS = 1
PROGRESS_SECONDS = 0.05  # least interval between two progress reports of one phase

Job = runner_pb2.LoadBundle | PendingBatch | None  # None: no more jobs will follow


@dataclass(frozen=True, slots=True)
class WorkerCallbacks:
    """Outputs of the device thread. All may be called from any thread."""

    send_data: Callable[[runner_pb2.RunnerReply], None]
    send_control: Callable[[runner_pb2.RunnerReply], None]
    log: Callable[..., None]
    exit: Callable[[ExitCode], None]  # does not return
    on_ready: Callable[[Hardware], None]  # called when the engine is imported


class Worker:
    """The device thread and its queue of jobs.

    Args:
        engine: imported before `on_ready` is called; "" for none.
        extra: additional engines, name to "module:function".
    """

    def __init__(
        self, engine: str, extra: Mapping[str, str], progress: DeviceProgress, clock: Clock, callbacks: WorkerCallbacks
    ) -> None:
        self._engine_name = engine
        self._extra = extra
        self._progress = progress
        self._clock = clock
        self._callbacks = callbacks
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._hardware: Hardware = CpuOnly()
        self._memory = CardMemoryMonitor(self._hardware, clock)
        self._context: ExecutionContext | None = None
        self._last_report = ("", float("-inf"))  # phase, time
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

    def put(self, job: Job) -> None:
        """Queue a job; jobs run in order. Any thread."""
        self._jobs.put(job)

    def set_serving(self, *, is_serving: bool) -> None:
        """Set whether the runner serves callers, which decides the threads of later calls. Any thread."""
        self._is_serving = is_serving

    def _work(self) -> None:
        self._import_engine()
        while (job := self._jobs.get()) is not None:
            if isinstance(job, PendingBatch):
                self._compute(job)
                job.is_done = True
            else:
                self._load(job)
            self._progress.end()
        if self._context is not None:
            self._context.engine.close()
        self._callbacks.exit(ExitCode.DONE)

    def _import_engine(self) -> None:
        try:
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
        self._callbacks.send_control(runner_pb2.RunnerReply(load_outcome=outcome))

    def _try_load(self, request: runner_pb2.LoadBundle) -> runner_pb2.LoadOutcome:
        try:
            self._serving_threads = request.threads
            self._used_threads = self._choose_threads()
            context = LoadContext(self._extra, self._hardware, self._clock, self._callbacks.log, self._used_threads)
            loaded = load_bundle(request, context, self._report_progress)
        except LoadRefused as refusal:
            return _refuse_load(request, refusal)
        return self._keep(loaded, request)

    def _keep(self, loaded: LoadedModel, request: runner_pb2.LoadBundle) -> runner_pb2.LoadOutcome:
        engine = loaded.engine
        self._context = ExecutionContext(
            engine,
            CallLimits(max(1, request.max_call_rows or engine.max_call_rows), request.max_call_seconds),
            RowCost(loaded.row_seconds),
            self._hardware.clear_cache,
            self._progress,
            self._clock,
            self._callbacks.log,
        )
        self._sample_memory(self._context)
        return runner_pb2.LoadOutcome(
            device=engine.device,
            precision=engine.precision,
            row_seconds=loaded.row_seconds,
            needed_bytes=loaded.needed_bytes,
        )

    def _compute(self, batch: PendingBatch) -> None:
        self._progress.begin(batch.batch_id)
        context = self._context
        if context is None:
            self._refuse_batch(batch)
            return
        threads = self._choose_threads()
        if threads != self._used_threads:
            self._hardware.use_threads(threads)
            self._used_threads = threads
        try:
            BatchRun(context, batch, self._send_reply).run()
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

    def _refuse_batch(self, batch: PendingBatch) -> None:
        batch.is_prepared.wait()  # without a model, preparing fails every item
        outcomes = [item.outcome for item in batch.items if item.outcome is not None]
        self._send_reply(runner_pb2.BatchReply(batch_id=batch.batch_id, outcomes=outcomes, done=True))

    def _send_reply(self, reply: runner_pb2.BatchReply) -> None:
        self._callbacks.send_data(runner_pb2.RunnerReply(batch=reply))

    def _sample_memory(self, context: ExecutionContext) -> None:
        sample = self._memory.sample(context.engine.device)
        if sample is not None:
            self._progress.device_used_bytes, self._progress.device_total_bytes = sample

    def _report_progress(self, phase: str, fraction: float) -> None:
        self._progress.advance()
        now = self._clock.monotonic()
        last_phase, last_time = self._last_report
        if phase == last_phase and fraction < 1 and now - last_time < PROGRESS_SECONDS:
            return
        self._last_report = (phase, now)
        progress = runner_pb2.LoadProgress(phase=phase, fraction=fraction)
        self._callbacks.send_control(runner_pb2.RunnerReply(load_progress=progress))


def _refuse_load(request: runner_pb2.LoadBundle, refusal: LoadRefused) -> runner_pb2.LoadOutcome:
    failure = runner_pb2.Failure(reason=refusal.reason, message=str(refusal))
    return runner_pb2.LoadOutcome(
        failure=failure, device=request.device, needed_bytes=refusal.needed_bytes, free_bytes=refusal.free_bytes
    )
