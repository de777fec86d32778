"""CPU, memory, descriptors and threads of a process, and the version that runs, as metrics."""

import importlib.metadata
import os
import platform
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.metric_catalog import MetricSpec, Reading, counter, gauge

_TICKS = os.sysconf("SC_CLK_TCK")  # per second
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

PROCESS_CPU = counter(
    "process_cpu_seconds_total",
    "CPU time of this process.",
    use="Its rate is the number of CPUs used.",
)
PROCESS_MEMORY = gauge(
    "process_resident_memory_bytes", "Resident memory of this process.", use="Alert when it grows without end."
)
PROCESS_START = gauge(
    "process_start_time_seconds", "When this process started, seconds since 1970.", use="A change is a restart."
)
PROCESS_FILES = gauge("process_open_fds", "Open file descriptors of this process.", use="Compare with process_max_fds.")
PROCESS_MAX_FILES = gauge("process_max_fds", "Limit of open file descriptors.", use="See process_open_fds.")
PROCESS_THREADS = gauge("process_threads", "Threads of this process.", use="Alert when it grows without end.")
BUILD_INFO = gauge(
    "hotslot_build_info",
    "1; the versions are its labels.",
    "version",
    "python",
    "grpc",
    use="Which build runs where; join it to see an effect of a new one.",
)
PROCESS_METRICS: tuple[MetricSpec, ...] = (
    PROCESS_CPU,
    PROCESS_MEMORY,
    PROCESS_START,
    PROCESS_FILES,
    PROCESS_MAX_FILES,
    PROCESS_THREADS,
    BUILD_INFO,
)
PROCESS_LABELS = {
    "version": "Of hotslot.",
    "python": "Version of Python.",
    "grpc": "Version of grpcio.",
}


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """A process's parent, CPU time, memory, threads and open files."""

    parent: int  # process id
    cpu_seconds: float
    resident_bytes: int
    threads: int
    open_files: int
    started_seconds: float  # since the machine started


def read_usage(pid: int | str = "self") -> ProcessUsage | None:
    """The present usage of a process; None if it has ended or cannot be read."""
    folder = Path("/proc") / str(pid)
    try:
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        open_files = sum(1 for _ in (folder / "fd").iterdir())
    except OSError:
        return None
    return ProcessUsage(
        parent=int(fields[1]),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        threads=int(fields[17]),
        open_files=open_files,
        started_seconds=int(fields[19]) / _TICKS,
    )


def make_process_reader(version: str) -> Callable[[], list[Reading]]:
    """A function that reads PROCESS_METRICS of this process; `version` is hotslot's."""
    labels = (version, platform.python_version(), importlib.metadata.version("grpcio"))
    booted = _boot_time()

    def read() -> list[Reading]:
        readings = [Reading(BUILD_INFO, {labels: 1.0})]
        usage = read_usage()
        if usage is not None:
            values = {
                PROCESS_CPU: usage.cpu_seconds,
                PROCESS_MEMORY: usage.resident_bytes,
                PROCESS_START: booted + usage.started_seconds,
                PROCESS_FILES: usage.open_files,
                PROCESS_MAX_FILES: resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                PROCESS_THREADS: usage.threads,
            }
            readings += [Reading(metric, {(): float(value)}) for metric, value in values.items()]
        return readings

    return read


def installed_version() -> str:
    """The installed version of hotslot; "0" for a checkout that is not installed."""
    try:
        return importlib.metadata.version("hotslot")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def _boot_time() -> float:
    """When the machine started, seconds since 1970; 0 if it cannot be read."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), 0.0)
