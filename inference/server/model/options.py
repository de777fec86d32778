"""The options and dependencies of a model's manager."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock
from common.engine_files import Task
from hotslot.runner.v1 import runner_pb2
from inference.server.events import Emit
from inference.server.model.fallback_file import CpuFallbackFile
from inference.server.model.pair import Load
from inference.server.model.policy import SlotRules
from inference.server.model.samples import SampleFiles
from inference.server.request import Payload
from inference.server.runner_client.protocol import RunnerHandle, RunnerListener
from inference.server.scheduling.admission import Capacity, Drain
from inference.server.scheduling.device_memory import DeviceMemories
from inference.server.scheduling.device_share import DeviceShares
from inference.server.scheduling.limits import LimitRules


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Settings of one model, and what its manager needs from the rest of the server."""

    model: str
    task: Task
    rules: SlotRules
    precision: str  # "float32", "bfloat16"; empty: the default of each device
    cpu_fallback_file: CpuFallbackFile
    node: str
    state_dir: Path
    clock: Clock
    emit: Emit
    drain: Drain
    capacity: Capacity
    limits: LimitRules
    device_shares: DeviceShares
    device_memories: DeviceMemories
    interactive_share: float  # of the rows, while both priorities wait
    threads: int
    max_call_rows: int  # 0: chosen by the engine
    max_call_seconds: float
    pictures: runner_pb2.PictureRules
    poison_seconds: float  # for which an input that ended two runners is refused; 0: not at all
    self_test: Payload
    self_test_seconds: float
    make_process: Callable[[RunnerListener], RunnerHandle]
    engines: Mapping[str, Task]  # engines that this build (with its settings) can load
    prepare_process: Callable[[], None] = lambda: None  # starts one that a later call of make_process takes
    samples: SampleFiles | None = None  # keeps requests whose answers differ; None: they are not kept
    is_memory_tight: Callable[[], bool] = lambda: False  # whether callers' messages need what copies of requests hold

    def make_load_request(self, load: Load, reserved_bytes: int) -> runner_pb2.LoadBundle:
        """The message that makes a runner load a bundle; `reserved_bytes` of the free memory others have planned."""
        return runner_pb2.LoadBundle(
            directory=str(load.folder),
            device=load.device,
            precision=self.precision,
            max_call_rows=self.max_call_rows,
            max_call_seconds=self.max_call_seconds,
            threads=self.threads,
            pictures=self.pictures,
            reserved_bytes=reserved_bytes,
        )
