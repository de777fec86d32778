"""ControlService: the updater's commands on the slots, and the state of the models as protobuf."""

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.message import Message

from common.clock import Clock
from common.engine_files import Task
from common.errors import Conflict, HotslotError, InputRefused, NotFound, to_status
from hotslot.control.v1 import control_pb2
from inference.server.api.convert import parse
from inference.server.api.interceptors import current_call
from inference.server.api.reading import Context
from inference.server.api.task import InputLimits, TaskApi
from inference.server.api.tasks import TASK_APIS
from inference.server.control.report import build_model_state, list_devices
from inference.server.model.commands import SlotCommands
from inference.server.model.effects import PairMachine
from inference.server.model.models import Models
from inference.server.model.pair import ShadowPolicy
from inference.server.model.slot import LoadProgress
from inference.server.request import PendingRequest

SERVICE = control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name
MAX_TRANSACTION_CHARS = 64
MAX_PROBE_ITEMS = 64
_RETIRE_LIMIT_SECONDS = 60.0
_PHASES = {
    "starting": control_pb2.LOAD_PHASE_STARTING,
    "reading": control_pb2.LOAD_PHASE_READING,
    "compiling": control_pb2.LOAD_PHASE_COMPILING,
    "warming_up": control_pb2.LOAD_PHASE_WARMING_UP,
    "loaded": control_pb2.LOAD_PHASE_LOADED,
}


class ControlApi:
    """The handlers of ControlService."""

    def __init__(
        self,
        models: Models,
        limits: InputLimits,
        clock: Clock,
        started_at: datetime,
        reload: Callable[..., Awaitable[control_pb2.SettingsReload]],
    ) -> None:
        self._models = models
        self._reload = reload
        self.limits = limits  # may be replaced
        self._clock = clock
        self._started_at = started_at

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        unary = {
            "GetStatus": self.get_status,
            "ProbeSlot": self.probe_slot,
            "ActivateSlot": self.activate_slot,
            "CommitSlot": self.commit_slot,
            "RetireSlot": self.retire_slot,
            "SetTraffic": self.set_traffic,
            "ReloadSettings": self.reload_settings,
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(behaviour, None, _serialize) for name, behaviour in unary.items()
        }
        handlers["LoadSlot"] = grpc.unary_stream_rpc_method_handler(self.load_slot, None, _serialize)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def get_status(self, raw: bytes, _context: Context) -> control_pb2.GetStatusResponse:
        """The state of one or all models."""
        request = parse(control_pb2.GetStatusRequest, raw)
        managers = [self._models.get(request.model)] if request.model else self._models.all()
        response = control_pb2.GetStatusResponse(
            models=[build_model_state(manager, self._clock) for manager in managers],
            devices=list_devices(managers),
            draining=managers[0].options.drain.is_draining,
        )
        response.server_started_at.FromDatetime(self._started_at)
        return response

    async def load_slot(self, raw: bytes, context: Context) -> None:
        """Load a bundle into the free slot and write its progress."""
        request = parse(control_pb2.LoadSlotRequest, raw)
        commands = self._begin(request.change)
        with _Command(commands, self._clock):
            load = commands.load(
                request.bundle_digest,
                request.device,
                request.change.transaction_id,
                request.change.expected_generation,
            )
            await self._follow(commands, load, context)

    async def probe_slot(self, raw: bytes, context: Context) -> control_pb2.ProbeSlotResponse:
        """Compute items on one slot."""
        request = parse(control_pb2.ProbeSlotRequest, raw)
        manager = self._models.get(request.model)
        api, items = _find_items(request, manager.options.task)
        slot = manager.pair.find_slot(request.load_id)
        if slot is None:
            raise NotFound("no slot holds this load", reason="LOAD_UNKNOWN", field="load_id")
        left = context.time_remaining()
        deadline = self._clock.monotonic() + (600.0 if left is None else left)
        stats = None if slot.load is None else manager.stats.get(slot.load.key)
        before = 0.0 if stats is None else stats.computed_seconds
        probes: list[PendingRequest | HotslotError] = []
        try:
            for item in items:
                try:
                    payload = api.check(api.wrap(item), self.limits)
                    probes.append(manager.requests.probe(slot.name, payload, deadline))
                except InputRefused as error:
                    probes.append(error)
            with self._models.get_commands(request.model).under_way():
                outcomes = [await _outcome(api, pending) for pending in probes]
        finally:  # its caller may be gone
            for pending in probes:
                if not isinstance(pending, HotslotError) and (not pending.is_done or pending.outcome.cancelled()):
                    manager.requests.cancel(pending, has_expired=False)
        response = control_pb2.ProbeSlotResponse(outcomes=outcomes)
        if stats is not None:
            response.computed.FromNanoseconds(int(max(0.0, stats.computed_seconds - before) * 1e9))
        return response

    async def activate_slot(self, raw: bytes, _context: Context) -> control_pb2.ActivateSlotResponse:
        """Begin a trial, extend its lease, or roll back."""
        request = parse(control_pb2.ActivateSlotRequest, raw)
        commands = self._begin(request.change)
        with _Command(commands, self._clock):
            seconds = request.trial_lease.ToTimedelta().total_seconds()
            change = request.change
            commands.activate(
                request.load_id,
                seconds,
                change.transaction_id,
                change.expected_generation,
                percent=request.percent if request.HasField("percent") else None,
                shadow=_read_shadow(request.shadow) if request.HasField("shadow") else None,
            )
        return control_pb2.ActivateSlotResponse(state=build_model_state(commands.manager, self._clock))

    async def commit_slot(self, raw: bytes, _context: Context) -> control_pb2.CommitSlotResponse:
        """End a trial and keep its revision."""
        request = parse(control_pb2.CommitSlotRequest, raw)
        commands = self._begin(request.change)
        with _Command(commands, self._clock):
            commands.commit(request.load_id, request.change.transaction_id, request.change.expected_generation)
        return control_pb2.CommitSlotResponse(state=build_model_state(commands.manager, self._clock))

    async def retire_slot(self, raw: bytes, _context: Context) -> control_pb2.RetireSlotResponse:
        """Empty a slot and wait until its process has ended, or is given up because SIGKILL does not end it."""
        request = parse(control_pb2.RetireSlotRequest, raw)
        commands = self._begin(request.change)
        with _Command(commands, self._clock):
            machine = commands.manager.machine
            held_by = [one.name for one in machine.pair if one.load is not None and one.load.load_id == request.load_id]
            process = machine.slots[held_by[0]].process if held_by else None  # a slot that retires already has one, too
            generation = request.change.expected_generation
            lease = request.gap_lease.ToTimedelta().total_seconds() if request.HasField("gap_lease") else None
            commands.retire(request.load_id, generation, gap_lease_seconds=lease)
            if process is not None:
                try:
                    await asyncio.wait_for(process.wait_ended(), _RETIRE_LIMIT_SECONDS)
                except TimeoutError as error:  # a long `retire_seconds` lets it finish a long call
                    raise Conflict("the slot's process has not ended yet", reason="SLOT_IN_USE") from error
        return control_pb2.RetireSlotResponse(state=build_model_state(commands.manager, self._clock))

    async def set_traffic(self, raw: bytes, _context: Context) -> control_pb2.SetTrafficResponse:
        """Change the requests that a load gets: to answer callers, or copies for comparison."""
        request = parse(control_pb2.SetTrafficRequest, raw)
        commands, change = self._begin(request.change), request.change
        with _Command(commands, self._clock):
            by = (change.transaction_id, change.expected_generation)
            if request.mode == control_pb2.TRAFFIC_MODE_CANARY:
                commands.set_percent(request.load_id, request.percent, *by)
            elif request.mode == control_pb2.TRAFFIC_MODE_SHADOW:
                commands.set_shadow(request.load_id, _read_shadow(request.shadow), *by)
            else:
                raise InputRefused("mode must be SHADOW or CANARY", reason="MODE_MISSING", field="mode")
        return control_pb2.SetTrafficResponse(state=build_model_state(commands.manager, self._clock))

    async def reload_settings(self, raw: bytes, _context: Context) -> control_pb2.ReloadSettingsResponse:
        """Take over the settings file, or say what it would change."""
        request = parse(control_pb2.ReloadSettingsRequest, raw)
        return control_pb2.ReloadSettingsResponse(reload=await self._reload(check_only=request.check_only))

    def _begin(self, change: control_pb2.Change) -> SlotCommands:
        if not 1 <= len(change.transaction_id) <= MAX_TRANSACTION_CHARS:
            raise InputRefused(
                f"transaction_id needs 1 to {MAX_TRANSACTION_CHARS} characters",
                reason="TRANSACTION_MISSING",
                field="change.transaction_id",
            )
        current_call.get().fields.update(model=change.model, transaction_id=change.transaction_id)
        return self._models.get_commands(change.model)

    async def _follow(self, commands: SlotCommands, load: LoadProgress, context: Context) -> None:
        """Write progress until the load has ended; the load continues if the caller hangs up."""
        machine = commands.manager.machine
        while True:
            changed = load.changed.next()
            if load.failure is not None:
                await _wait_until_emptied(machine, load)
                raise load.failure
            slot = machine.pair.slot_holding(load.load_id)
            progress = control_pb2.LoadSlotResponse(
                load_id=load.load_id,
                phase=_PHASES.get(load.phase, control_pb2.LOAD_PHASE_UNSPECIFIED),
                fraction=load.fraction,
                slot="" if slot is None else slot.name,
                generation=machine.pair.generation,
            )
            is_last = load.is_loaded  # read before the write, during which the load continues
            await context.write(progress)
            if is_last:
                return
            await changed.wait()


async def _wait_until_emptied(machine: PairMachine, load: LoadProgress) -> None:
    """Wait until the slot of a failed load is free, so that the caller can load another bundle at once."""
    for slot in machine.pair:
        process = machine.slots[slot.name].process
        if slot.load is not None and slot.load.load_id == load.load_id and process is not None:
            with contextlib.suppress(TimeoutError):  # why the load has failed is told all the same
                await asyncio.wait_for(process.wait_ended(), _RETIRE_LIMIT_SECONDS)


class _Command:
    """A command while it is under way: keeps the lease of a gap; adds the ModelState, without counters, to a conflict.

    The details are in the trailers. gRPC replaces a status whose trailers exceed 8 KiB with RESOURCE_EXHAUSTED, at
    random up to 16 KiB; the counters of 32 revisions need more than that.
    """

    def __init__(self, commands: SlotCommands, clock: Clock) -> None:
        self._commands = commands
        self._clock = clock
        self._under_way = commands.under_way()

    def __enter__(self) -> None:
        """Keep the lease."""
        self._under_way.__enter__()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Add the state if the error is a conflict."""
        del kind, trace
        self._under_way.__exit__(None, None, None)
        if isinstance(error, Conflict):
            state = build_model_state(self._commands.manager, self._clock, with_stats=False)
            current_call.get().details.append(state)


def _find_items(request: control_pb2.ProbeSlotRequest, task: Task) -> tuple[TaskApi, Sequence[Any]]:
    """The items of a probe.

    Raises:
        InputRefused: there are none or too many, or they are of another task than the model.
    """
    api = TASK_APIS[task]
    given = request.WhichOneof("items") or api.probe_field
    items: Sequence[Any] = getattr(request, given).requests
    if given != api.probe_field:
        raise InputRefused(
            f"the model is for {task}: its items are in {api.probe_field!r}", reason="ITEMS_MISSING", field=given
        )
    if not 1 <= len(items) <= MAX_PROBE_ITEMS:
        raise InputRefused(
            f"{len(items)} items, 1 to {MAX_PROBE_ITEMS} are allowed",
            reason="ITEMS_MISSING" if not items else "ITEMS_TOO_MANY",
            field=f"{given}.requests",
        )
    return api, items


async def _outcome(api: TaskApi, probe: PendingRequest | HotslotError) -> control_pb2.ProbeOutcome:
    try:
        if isinstance(probe, HotslotError):
            raise probe
        response = {api.probe_field: api.build_response(await probe.outcome)}
        return control_pb2.ProbeOutcome(**response)
    except HotslotError as error:
        return control_pb2.ProbeOutcome(error=to_status(error))


def _read_shadow(message: control_pb2.ShadowPolicy) -> ShadowPolicy:
    has_limit = message.HasField("max_duration")
    seconds = message.max_duration.ToTimedelta().total_seconds() if has_limit else math.inf
    return ShadowPolicy(message.share, message.busy_share or 1.0, seconds)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
