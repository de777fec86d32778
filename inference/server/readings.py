"""The metrics of the server that are read at each scrape, on the scrape's thread.

What is read is an attribute, an immutable record, or /proc: nothing that the event loop may be changing.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import logs
from common.clock import Clock
from common.metric_catalog import Reading
from common.process_metrics import ProcessUsage, read_usage
from inference.server import metric_catalog as catalog
from inference.server.access import Access
from inference.server.health import HealthRegistry, LoopLag, read_resources
from inference.server.model.manager import ModelManager
from inference.server.model.models import Models
from inference.server.runner_client.fork_server import ForkServer
from inference.server.scheduling.held_bytes import HeldBytes

Values = dict[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class ServerReader:
    """Reads the server's metrics that are not counted by events."""

    models: Models
    health: HealthRegistry
    lag: LoopLag
    is_draining: Callable[[], bool]
    held: HeldBytes
    access: Access
    clock: Clock
    state_dir: Path
    forks: ForkServer

    def read(self) -> list[Reading]:
        """All values now."""
        return [
            *self._read_process(),
            *self._read_access(),
            *self._read_requests(),
            *self._read_runners(),
            *self._read_fork_server(),
            *self._read_pictures(),
            *self._read_devices(),
            *self._read_machine(),
        ]

    def _read_process(self) -> list[Reading]:
        ready: Values = {(name,): float(is_serving) for name, is_serving in self.health.snapshot().items()}
        given_up: Values = {(manager.options.model,): float(manager.has_given_up) for manager in self.models.all()}
        return [
            Reading(catalog.READY, ready),
            Reading(catalog.MODEL_GIVEN_UP, given_up),
            Reading(catalog.DRAINING, {(): float(self.is_draining())}),
            Reading(catalog.LOOP_LAG, {(): self.lag.worst_seconds}),
            Reading(catalog.LOOP_TASKS, {(): float(self.lag.tasks)}),
            Reading(catalog.LOG_LINES_DROPPED, {(): float(logs.count_dropped_lines())}),
        ]

    def _read_access(self) -> list[Reading]:
        state = self.access.state(self.clock.now())
        expiry: Values = {} if state.certificate is None else {(): state.certificate.not_after.timestamp()}
        return [
            Reading(catalog.CERTIFICATE_EXPIRY, expiry),
            Reading(catalog.TOKENS, {(): float(state.tokens)} if state.needs_token else {}),
            Reading(catalog.RELOAD_SUCCESSFUL, {(name,): float(good) for name, good in state.reloads.items()}),
        ]

    def _read_requests(self) -> list[Reading]:
        unanswered: Values = {}
        requests: Values = {}
        rows: Values = {}
        overloaded: Values = {}
        poison: Values = {}
        canaries: Values = {}
        for manager in self.models.all():
            model = manager.options.model
            unanswered[(model,)] = float(manager.requests.waiting)
            canaries[(model,)] = manager.pair.trial_percent
            poison[(model,)] = float(manager.requests.poison.count(manager.options.clock.monotonic()))
            overloaded[(model,)] = float(manager.requests.intake.admission.overload.is_overloaded)
            for priority, depth in manager.read_queue().items():
                requests[model, priority], rows[model, priority] = float(depth.requests), float(depth.rows)
        return [
            Reading(catalog.UNANSWERED_REQUESTS, unanswered),
            Reading(catalog.WAITING_REQUESTS, requests),
            Reading(catalog.WAITING_ROWS, rows),
            Reading(catalog.OVERLOADED, overloaded),
            Reading(catalog.POISON_INPUTS, poison),
            Reading(catalog.CANARY_PERCENT, canaries),
            Reading(catalog.HELD_BYTES, {(): float(self.held.total)}),
            Reading(catalog.MAX_HELD_BYTES, {(): float(self.held.rules.max_bytes)}),
        ]

    def _read_runners(self) -> list[Reading]:
        usages = {key: usage for manager in self.models.all() for key, usage in _read_usages(manager).items()}
        return [
            Reading(catalog.RUNNER_CPU, {key: usage.cpu_seconds for key, usage in usages.items()}),
            Reading(catalog.RUNNER_MEMORY, {key: float(usage.resident_bytes) for key, usage in usages.items()}),
            Reading(catalog.RUNNER_FILES, {key: float(usage.open_files) for key, usage in usages.items()}),
            Reading(catalog.RUNNER_THREADS, {key: float(usage.threads) for key, usage in usages.items()}),
            self._read_kernels(),
        ]

    def _read_fork_server(self) -> list[Reading]:
        """Nothing where runners are not forked."""
        pid = self.forks.pid
        usage = read_usage(pid) if pid else None
        memory: Values = {} if usage is None or usage.parent != os.getpid() else {(): float(usage.resident_bytes)}
        is_used = self.forks.is_watched
        return [
            Reading(catalog.FORK_SERVER_MEMORY, memory),
            Reading(catalog.FORK_SERVER_READY, {(): float(self.forks.is_ready)} if is_used else {}),
            Reading(catalog.FORK_SERVER_FAILURES, {(): float(self.forks.failures)} if is_used else {}),
        ]

    def _read_kernels(self) -> Reading:
        """Of loaded models that have a use for compiled kernels."""
        slots = (
            (manager.options.model, slot) for manager in self.models.all() for slot in manager.machine.slots.values()
        )
        return Reading(
            catalog.COMPILED_KERNELS,
            {(model, slot.name, slot.kernels): float(slot.kernels != "none") for model, slot in slots if slot.kernels},
        )

    def _read_pictures(self) -> list[Reading]:
        counts: Values = {}
        seconds: Values = {}
        queued: Values = {}
        held: Values = {}
        for manager in self.models.all():
            for slot in manager.machine.slots.values():
                beat, runner = slot.heartbeat, (manager.options.model, slot.name)
                if slot.process is None:
                    continue
                queued[runner], held[runner] = float(beat.queued_preparations), float(beat.picture_bytes)
                for row in beat.pictures:
                    counts[*runner, row.format, row.outcome] = float(row.count)
                    seconds[*runner, row.format, row.outcome] = row.seconds
        return [
            Reading(catalog.PICTURES, counts),
            Reading(catalog.PICTURE_SECONDS, seconds),
            Reading(catalog.QUEUED_PREPARATIONS, queued),
            Reading(catalog.PICTURE_BYTES, held),
        ]

    def _read_devices(self) -> list[Reading]:
        used: Values = {}
        total: Values = {}
        for manager in self.models.all():
            for record in manager.pair:
                beat = manager.machine.slots[record.name].heartbeat
                if record.load is not None and beat.device_total_bytes:
                    used[(record.load.device,)] = float(beat.device_used_bytes)
                    total[(record.load.device,)] = float(beat.device_total_bytes)
        return [Reading(catalog.DEVICE_MEMORY_USED, used), Reading(catalog.DEVICE_MEMORY_TOTAL, total)]

    def _read_machine(self) -> list[Reading]:
        """Memory and disk; what cannot be read has no sample."""
        found = read_resources(self.state_dir)
        rows = (
            (catalog.MEMORY_USED, found.memory_used, found.memory_total),
            (catalog.MEMORY_TOTAL, found.memory_total, found.memory_total),
            (catalog.DISK_FREE, found.disk_free, found.disk_total),
            (catalog.DISK_TOTAL, found.disk_total, found.disk_total),
        )
        return [Reading(spec, {(): float(value)} if total else {}) for spec, value, total in rows]


def _read_usages(manager: ModelManager) -> dict[tuple[str, str], ProcessUsage]:
    """CPU time and memory of runners, by model and slot; a process that is gone has no row."""
    found = {}
    for slot in manager.machine.slots.values():
        process = slot.process
        usage = None if process is None else read_usage(process.pid)
        if usage is not None and usage.parent == os.getpid():  # or the id was given to another process
            found[manager.options.model, slot.name] = usage
    return found
