"""StatusService: the served models, and the health of process, resources and models."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc

from common import usage_limits
from common.clock import Clock
from common.settings_reload import SettingsState, describe_restarts
from hotslot.status.v1 import status_pb2
from inference.server import health
from inference.server.access import Access, AccessState
from inference.server.api.convert import parse
from inference.server.api.reading import Context
from inference.server.health import LoopLag
from inference.server.model.manager import ModelManager
from inference.server.model.models import Models
from inference.server.model.pair import SlotRecord
from inference.server.scheduling.admission import Drain

SERVICE = status_pb2.DESCRIPTOR.services_by_name["StatusService"].full_name
_LEVELS = (status_pb2.HEALTH_LEVEL_OK, status_pb2.HEALTH_LEVEL_DEGRADED, status_pb2.HEALTH_LEVEL_FAILED)
_LAG_LIMITS = (0.5, 5.0)  # seconds: DEGRADED, FAILED


@dataclass(frozen=True, slots=True)
class SettingsFacts:
    """The settings in use, for the status."""

    state: SettingsState
    warnings: tuple[str, ...] = ()
    has_failed: bool = False  # a model could not take over its settings


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Constants of the server process, and the sources of its process health."""

    node: str
    version: str
    started_at: datetime
    state_dir: Path
    limits: status_pb2.Limits
    lag: LoopLag
    dropped_lines: Callable[[], int]
    access: Access
    settings: Callable[[], SettingsFacts]


class StatusApi:
    """The handlers of StatusService. Not subject to admission."""

    def __init__(self, models: Models, facts: ServerFacts, clock: Clock, drain: Drain) -> None:
        self._models = models
        self.facts = facts  # may be replaced
        self._clock = clock
        self._drain = drain

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetServerStatus": grpc.unary_unary_rpc_method_handler(
                    self.get_server_status, None, status_pb2.GetServerStatusResponse.SerializeToString
                ),
                "ListModels": grpc.unary_unary_rpc_method_handler(
                    self.list_models, None, status_pb2.ListModelsResponse.SerializeToString
                ),
            },
        )

    async def get_server_status(self, raw: bytes, _context: Context) -> status_pb2.GetServerStatusResponse:
        """Health of the process, of its resources and of each model."""
        parse(status_pb2.GetServerStatusRequest, raw)
        managers = self._models.all()
        return status_pb2.GetServerStatusResponse(
            node=self.facts.node,
            version=self.facts.version,
            process=self._process(),
            resources=_resources(health.read_resources(self.facts.state_dir), managers),
            capabilities=[self._capability(manager) for manager in managers],
            limits=self.facts.limits,
            access=_access(self.facts.access.state(self._clock.now())),
            settings=_settings(self.facts.settings()),
        )

    async def list_models(self, raw: bytes, _context: Context) -> status_pb2.ListModelsResponse:
        """All configured models with their slots."""
        parse(status_pb2.ListModelsRequest, raw)
        return status_pb2.ListModelsResponse(models=[self._model(manager) for manager in self._models.all()])

    def _process(self) -> status_pb2.ProcessHealth:
        lag = self.facts.lag.worst_seconds
        level = 2 if lag >= _LAG_LIMITS[1] else 1 if lag >= _LAG_LIMITS[0] or self._drain.is_draining else 0
        process = status_pb2.ProcessHealth(
            level=_LEVELS[level],
            draining=self._drain.is_draining,
            dropped_log_lines=self.facts.dropped_lines(),
        )
        process.started_at.FromDatetime(self.facts.started_at)
        process.loop_lag.FromNanoseconds(int(lag * 1e9))
        return process

    def _capability(self, manager: ModelManager) -> status_pb2.CapabilityHealth:
        is_ready = manager.is_ready and not self._drain.is_leaving
        level, reason = judge_model(manager, is_ready=is_ready)
        capability = status_pb2.CapabilityHealth(
            model=manager.options.model,
            level=_LEVELS[level],
            ready=is_ready,
            waiting=manager.requests.waiting,
            reason=reason,
            poison_inputs=manager.requests.poison.count(self._clock.monotonic()),
        )
        row = manager.pair.cpu_fallback
        if row is not None:
            capability.fallback.device, capability.fallback.fallback_device = row.device, row.fallback_device
            capability.fallback.digest, capability.fallback.reason = row.bundle_digest, row.reason
            capability.fallback.since.FromDatetime(row.since)
        if manager.requests.last_good_at is not None:
            age = self._clock.monotonic() - manager.requests.last_good_at
            capability.last_inference_at.FromNanoseconds(int((self._clock.now().timestamp() - age) * 1e9))
            capability.last_inference_latency.FromNanoseconds(int(manager.requests.last_good_seconds * 1e9))
        return capability

    def _model(self, manager: ModelManager) -> status_pb2.Model:
        pair = manager.pair
        answering = pair.answering_slot()
        model = status_pb2.Model(
            name=manager.options.model,
            task=manager.options.task.value,
            active_slot="" if answering is None else answering.name,
            slots=[_slot(manager, slot) for slot in pair],
        )
        if pair.trial is not None:
            model.trial.slot = pair.trial.slot
            model.trial.started_at.FromDatetime(pair.trial.started_at)
            left = max(0.0, pair.trial.lease_ends - self._clock.monotonic())
            model.trial.term_left.FromNanoseconds(int(left * 1e9))
            model.trial.percent = pair.trial_percent
        if manager.committed is not None:
            committed = manager.committed
            model.committed.revision = committed.revision
            model.committed.digest = committed.bundle_digest
            model.committed.origin = committed.origin.value
        return model


def judge_model(manager: ModelManager, *, is_ready: bool) -> tuple[int, str]:
    """Health level (0 OK, 1 DEGRADED, 2 FAILED) and reason of one model."""
    pair, active = manager.pair, manager.pair.active_slot
    if not is_ready:
        if active is None:
            why = manager.boot_failure or ("nothing is committed yet" if manager.committed is None else "")
            return 2, "; ".join(filter(None, ("no model is loaded", why)))
        last = f"; {active.last_failure}" if active.last_failure else ""
        if manager.requests.is_stalled:
            return 2, f"slot {active.name} does not answer in time"
        if manager.has_given_up:
            last = f", failed {active.failures} times in a row and restarts continue{last}"
        return 2, f"slot {active.name} is {active.state.lower()}{last}"
    if active is not None and pair.answering_slot() is not active:
        return 1, f"slot {active.name} is on trial and not loaded; the previous slot answers"
    row = manager.pair.cpu_fallback
    if row is not None:
        return 1, f"runs on {row.fallback_device} because {row.device} ran out of memory ({row.reason})"
    return 0, ""


def _access(state: AccessState) -> status_pb2.AccessStatus:
    message = status_pb2.AccessStatus(
        level=_LEVELS[state.level],
        tls=state.certificate is not None,
        client_certificates=state.needs_client_certificate,
        tokens=state.needs_token,
        warnings=state.warnings,
    )
    if state.certificate is not None:
        message.certificate.names.extend(state.certificate.names)
        message.certificate.fingerprint = state.certificate.fingerprint
        message.certificate.not_before.FromDatetime(state.certificate.not_before)
        message.certificate.not_after.FromDatetime(state.certificate.not_after)
    return message


def _settings(facts: SettingsFacts) -> status_pb2.SettingsStatus:
    state = facts.state
    # Without `state.failure`: that may have paths and values of the file, and any caller may ask for the status.
    why = describe_restarts(state.restarts) if state.restarts else "`hotslot reload --check` and the log say why"
    refused = [f"the settings file was refused: {why}"] if state.failure else []
    message = status_pb2.SettingsStatus(
        level=_LEVELS[1 if refused or facts.has_failed else 0],
        digest=state.digest,
        warnings=[*refused, *facts.warnings],
    )
    message.loaded_at.FromDatetime(state.loaded_at)
    if state.failed_at is not None:
        message.refused_at.FromDatetime(state.failed_at)
    return message


def _slot(manager: ModelManager, slot: SlotRecord) -> status_pb2.Slot:
    message = status_pb2.Slot(
        name=slot.name,
        state=status_pb2.SlotState.Value(f"SLOT_STATE_{slot.state.value}"),
        role=status_pb2.SlotRole.Value(f"SLOT_ROLE_{manager.pair.role_of(slot.name).value}"),
        restarts=slot.deaths,
        last_failure=slot.last_failure,
    )
    process = manager.machine.slots[slot.name].process
    if process is not None:
        message.pid, message.resident_bytes = process.pid, process.resident_bytes
    if slot.load is not None:
        bundle = slot.load.bundle
        message.revision, message.digest = bundle.revision, bundle.bundle_digest
        message.device, message.precision = slot.load.device, slot.load.precision
        message.notes.extend(bundle.notes)
    return message


def _resources(machine: health.MachineResources, managers: list[ModelManager]) -> status_pb2.ResourceHealth:
    found = [
        usage_limits.judge_usage(usage_limits.MEMORY, machine.memory_used, machine.memory_total),
        usage_limits.judge_usage(usage_limits.DISK, machine.disk_total - machine.disk_free, machine.disk_total),
        usage_limits.judge_usage(usage_limits.DESCRIPTORS, machine.descriptors_used, machine.descriptors_limit),
    ]
    gpus: dict[str, status_pb2.GpuMemory] = {}
    for manager in managers:
        for slot in manager.pair:
            load, beat = slot.load, manager.machine.slots[slot.name].heartbeat
            if load is not None and beat.device_total_bytes:
                gpus[load.device] = status_pb2.GpuMemory(
                    device=load.device, used_bytes=beat.device_used_bytes, total_bytes=beat.device_total_bytes
                )
    found += [
        usage_limits.judge_usage(usage_limits.GPU_MEMORY, gpu.used_bytes, gpu.total_bytes) for gpu in gpus.values()
    ]
    return status_pb2.ResourceHealth(
        level=_LEVELS[max(level for level, _ in found)],
        memory_used_bytes=machine.memory_used,
        memory_total_bytes=machine.memory_total,
        disk_free_bytes=machine.disk_free,
        disk_total_bytes=machine.disk_total,
        descriptors_used=machine.descriptors_used,
        descriptors_limit=machine.descriptors_limit,
        gpus=gpus.values(),
        warnings=[sentence for level, sentence in found if level],
    )
