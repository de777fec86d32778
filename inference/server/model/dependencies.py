"""What a model's manager is given: rules and doors to the outside, in one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.clock import Clock
from common.engine_files import Task
from hotslot.runner.v1 import runner_pb2
from inference.server.events import Emit
from inference.server.model.fallback_file import FallbackFile
from inference.server.model.load import Load
from inference.server.request import Payload
from inference.server.runner_client.protocol import RunnerHandle, RunnerListener
from inference.server.scheduling.admission import Capacity, Drain
from inference.server.scheduling.cost import LimitRules
from inference.server.scheduling.queue import BatchBudget


@dataclass(frozen=True, slots=True)
class RespawnRules:
    """How pauses grow."""

    first_seconds: float  # pause after the second death in a row; after the first there is none
    cap_seconds: float
    give_up: int  # deaths in a row after which liveness fails; starts go on at the cap's pace
    steady_seconds: float = 60.0  # a model that answered for so long has no deaths in a row


def pause_seconds(deaths_in_row: int, rules: RespawnRules) -> float:
    """How long to wait before the next start: none after the first death, then doubling to the cap."""
    if deaths_in_row <= 1:
        return 0.0
    return min(rules.cap_seconds, rules.first_seconds * 2.0 ** min(deaths_in_row - 2, 32))


@dataclass(frozen=True, slots=True)
class ManagerKit:
    """Everything that one model's manager needs from the composition root."""

    model: str
    task: Task
    device: str  # policy: "auto", "cpu", "cuda", "cuda:N"
    precision: str  # "float32", "bfloat16"; empty: each device's own
    cpu_fallback: bool  # whether the CPU may answer when a card is out of memory
    fallbacks: FallbackFile
    node: str
    state_dir: Path
    clock: Clock
    emit: Emit
    drain: Drain
    capacity: Capacity
    budget: BatchBudget
    limits: LimitRules
    respawn: RespawnRules
    standby: bool  # whether a process without a model stands ready
    threads: int
    max_call_seconds: float
    max_image_pixels: int
    max_image_side: int  # pixels
    self_test: Payload
    self_test_seconds: float
    make_process: Callable[[RunnerListener], RunnerHandle]
    engines: Mapping[str, Task]  # engines that this build (with its settings) can load
    is_stopping: Callable[[], bool]

    def load_request(self, load: Load) -> runner_pb2.LoadBundle:
        """What a runner is asked to load."""
        return runner_pb2.LoadBundle(
            directory=str(load.folder),
            device=load.device,
            precision=self.precision,
            max_call_seconds=self.max_call_seconds,
            threads=self.threads,
            max_image_pixels=self.max_image_pixels,
            max_image_side_pixels=self.max_image_side,
        )
