"""What the latency of callers beside a batch consists of, and how much of the machine other programs took meanwhile."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from dev.harness.loadgen import Group, Played
from dev.harness.metrics import read_families
from dev.harness.numbers import percentile
from dev.harness.stack import Stack
from hotslot.entailment.v1 import entailment_pb2 as pb

REFUSED = Group("refused", [pb.PredictRequest()], clients=1, pause=0.1)  # calls without device work, beside the others
QUIET_CORES = 0.1  # of other programs; above it a figure is about them too


@dataclass(slots=True)
class Parts:
    """Of one load. Cores are processor seconds a second."""

    refused_p50: float = 0.0  # seconds of a call that needs no device: network, server, the machine's turns
    refused_p99: float = 0.0
    device_call: float = 0.0  # mean seconds
    server_cores: float = 0.0  # with its runners
    batch_cores: float = 0.0
    other_cores: float = 0.0  # of programs that are none of this measurement

    @property
    def is_quiet(self) -> bool:
        """Whether nothing else computed."""
        return self.other_cores <= QUIET_CORES

    def note_calls(self, played: Played) -> None:
        """Take the latencies of the refused calls."""
        took = [one.took for one in played.of(REFUSED.name)]
        self.refused_p50, self.refused_p99 = percentile(took, 0.5), percentile(took, 0.99)

    def describe(self) -> str:
        """For a table."""
        return (
            f"a call without device work {1000 * self.refused_p50:.1f} ms, p99 {1000 * self.refused_p99:.0f};"
            f" a device call {1000 * self.device_call:.1f} ms; cores: server {self.server_cores:.2f},"
            f" batch {self.batch_cores:.2f}, other programs {self.other_cores:.2f}"
        )


@contextmanager
def measure_parts(stack: Stack, batch: int | None = None) -> Iterator[Parts]:
    """Measure while the `with` lasts.

    Args:
        stack: the server.
        batch: the process id of the batch, if one runs.
    """
    parts = Parts()
    before, began = _Counters(stack, batch), time.monotonic()
    yield parts
    after, seconds = _Counters(stack, batch), time.monotonic() - began
    calls = after.calls - before.calls
    parts.device_call = (after.device - before.device) / calls if calls else 0.0
    parts.server_cores = (after.server - before.server) / seconds
    parts.batch_cores = (after.batch - before.batch) / seconds
    parts.other_cores = max(0.0, (after.machine - before.machine) - (after.ours - before.ours)) / seconds


class _Counters:
    """What is counted, now: seconds, and device calls."""

    def __init__(self, stack: Stack, batch: int | None) -> None:
        families = read_families(stack.metrics_port)
        samples = {one.name: one.value for one in families["hotslot_device_call_seconds"].samples}
        self.calls, self.device = (samples.get(f"hotslot_device_call_seconds_{end}", 0.0) for end in ("count", "sum"))
        self.server = sum(map(_used, stack.process.living()))
        self.batch = 0.0 if batch is None else _used(batch)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        me = psutil.Process()
        living = sum(_used(one.pid) for one in [me, *me.children(recursive=True)])
        self.ours = living + ended.ru_utime + ended.ru_stime
        machine = psutil.cpu_times()
        self.machine = machine.user + machine.nice + machine.system + machine.irq + machine.softirq


def _used(pid: int) -> float:
    """Processor seconds of a process; 0 if it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
