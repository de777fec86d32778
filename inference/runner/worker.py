"""The device thread: imports the engine, loads one model, computes batches in order, and nothing else runs there."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.clock import Clock
from common.exit_codes import ExitCode
from hotslot.runner.v1 import runner_pb2
from inference.row_cost import RowCost
from inference.runner import plan
from inference.runner.batch import BatchRun, Bench, DeviceLost
from inference.runner.engines.base import Engine
from inference.runner.engines.catalog import loader_for
from inference.runner.hardware import CardMemory, CpuOnly, Hardware, hardware_for
from inference.runner.plan import CallLimits
from inference.runner.prepare import PendingBatch
from inference.runner.reporting import Pulse, describe
from inference.runner.warmup import Loaded, LoadRefused, Surroundings, load

# Threads of one call wait for each other many hundred times. Behind those that serve each would also wait for its
# turn, again and again: a load that takes 2 s alone was seen to take minutes beside one busy process.
WAITING_THREADS = 1
PROGRESS_SECONDS = 0.05  # at least, between two reports of one phase

Job = runner_pb2.LoadBundle | PendingBatch | None  # None: nothing more will come


@dataclass(frozen=True, slots=True)
class Ways:
    """What the device thread is given to speak and to end with. All may be called from any thread."""

    data: Callable[[runner_pb2.RunnerReply], None]
    control: Callable[[runner_pb2.RunnerReply], None]
    log: Callable[..., None]
    leave: Callable[[ExitCode], None]  # does not return
    stand: Callable[[Hardware], None]  # the imports are done


class Worker:
    """The device thread and its queue.

    Args:
        engine: whose imports are done first; "" for none.
        extra: more engines, name to "module:function".
    """

    def __init__(self, engine: str, extra: Mapping[str, str], pulse: Pulse, clock: Clock, ways: Ways) -> None:
        self._engine_name = engine
        self._extra = extra
        self._pulse = pulse
        self._clock = clock
        self._ways = ways
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._hardware: Hardware = CpuOnly()
        self._memory = CardMemory(self._hardware, clock)
        self._bench: Bench | None = None
        self._reported = ("", float("-inf"))
        self._is_serving = False
        self._threads = 0  # of a CPU, once it serves
        self._used_threads = WAITING_THREADS
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)

    @property
    def engine(self) -> Engine | None:
        """The loaded model, for preparing; None before."""
        return self._bench.engine if self._bench else None

    def start(self) -> None:
        """Begin with the imports."""
        self._thread.start()

    def put(self, job: Job) -> None:
        """The next job; in order. Any thread."""
        self._jobs.put(job)

    def serve(self, *, is_serving: bool) -> None:
        """Say whether callers wait for this runner; the next call computes on as many threads. Any thread."""
        self._is_serving = is_serving

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether memory ran out."""
        return plan.is_out_of_memory(error)

    def is_device_lost(self, error: BaseException) -> bool:
        """Whether nothing will succeed any more."""
        return plan.is_device_lost(error)

    def clear_cache(self) -> None:
        """Give back what memory can be given back."""
        self._hardware.clear_cache()

    def _work(self) -> None:
        self._stand_up()
        while (job := self._jobs.get()) is not None:
            if isinstance(job, PendingBatch):
                self._compute(job)
                job.is_done = True
            else:
                self._load(job)
            self._pulse.rest()
        if self._bench is not None:
            self._bench.engine.close()
        self._ways.leave(ExitCode.DONE)

    def _stand_up(self) -> None:
        try:
            loader = loader_for(self._engine_name, self._extra) if self._engine_name else None
            self._hardware = hardware_for(self._engine_name, self._extra, loader)
            self._memory = CardMemory(self._hardware, self._clock)
            self._ways.stand(self._hardware)
        except Exception as error:  # noqa: BLE001  whatever an import can raise
            self._ways.log("engine_import_failed", level="error", engine=self._engine_name, error=repr(error))
            self._ways.leave(ExitCode.ENGINE_MISSING)

    def _load(self, request: runner_pb2.LoadBundle) -> None:
        self._pulse.begin(0)
        if self._bench is None:
            outcome = self._try_load(request)
        else:
            outcome = _not_loaded(request, LoadRefused("LOAD_FAILED", "this runner has loaded a bundle before"))
        self._ways.control(runner_pb2.RunnerReply(load_outcome=outcome))

    def _try_load(self, request: runner_pb2.LoadBundle) -> runner_pb2.LoadOutcome:
        try:
            self._threads = request.threads
            self._used_threads = self._wanted_threads()
            around = Surroundings(self._extra, self._hardware, self._clock, self._ways.log, self._used_threads)
            loaded = load(request, around, self._progress)
        except LoadRefused as refusal:
            return _not_loaded(request, refusal)
        return self._take(loaded, request)

    def _take(self, loaded: Loaded, request: runner_pb2.LoadBundle) -> runner_pb2.LoadOutcome:
        engine = loaded.engine
        limits = CallLimits(max(1, request.max_call_rows or engine.max_call_rows), request.max_call_seconds)
        cost = RowCost(loaded.row_seconds)
        self._bench = Bench(engine, limits, cost, self, self._pulse, self._clock, self._ways.log)
        self._look_at_memory(self._bench)
        return runner_pb2.LoadOutcome(
            device=engine.device,
            precision=engine.precision,
            row_seconds=loaded.row_seconds,
            needed_bytes=loaded.needed_bytes,
        )

    def _compute(self, batch: PendingBatch) -> None:
        self._pulse.begin(batch.batch_id)
        bench = self._bench
        if bench is None:
            self._refuse(batch)
            return
        threads = self._wanted_threads()
        if threads != self._used_threads:
            self._hardware.use_threads(threads)
            self._used_threads = threads
        try:
            BatchRun(bench, batch, lambda reply: self._ways.data(runner_pb2.RunnerReply(batch=reply))).run()
        except DeviceLost as error:
            self._ways.log(
                "device_lost", level="error", device=bench.engine.device, error=describe(error.__cause__ or error)
            )
            self._ways.leave(ExitCode.DEVICE_LOST)
        self._look_at_memory(bench)

    def _wanted_threads(self) -> int:
        return self._threads if self._is_serving else WAITING_THREADS

    def _refuse(self, batch: PendingBatch) -> None:
        batch.is_prepared.wait()  # without a model that only says so, item by item
        outcomes = [item.outcome for item in batch.items if item.outcome is not None]
        reply = runner_pb2.BatchReply(batch_id=batch.batch_id, outcomes=outcomes, done=True)
        self._ways.data(runner_pb2.RunnerReply(batch=reply))

    def _look_at_memory(self, bench: Bench) -> None:
        seen = self._memory.look(bench.engine.device)
        if seen is not None:
            self._pulse.device_used_bytes, self._pulse.device_total_bytes = seen

    def _progress(self, phase: str, fraction: float) -> None:
        self._pulse.step()
        now = self._clock.monotonic()
        last_phase, at = self._reported
        if phase == last_phase and fraction < 1 and now - at < PROGRESS_SECONDS:
            return
        self._reported = (phase, now)
        progress = runner_pb2.LoadProgress(phase=phase, fraction=fraction)
        self._ways.control(runner_pb2.RunnerReply(load_progress=progress))


def _not_loaded(request: runner_pb2.LoadBundle, refusal: LoadRefused) -> runner_pb2.LoadOutcome:
    failure = runner_pb2.Failure(reason=refusal.reason, message=str(refusal))
    return runner_pb2.LoadOutcome(
        failure=failure, device=request.device, needed_bytes=refusal.needed_bytes, free_bytes=refusal.free_bytes
    )
