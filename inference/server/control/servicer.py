"""ControlService: the updater's hand on the slots. Decides nothing itself; asks, reports."""

import asyncio
from datetime import datetime
from typing import Any

import grpc
from google.protobuf.message import Message

from common.clock import Clock
from common.errors import Conflict, HotslotError, InputRefused, NotBuilt, NotFound, to_status
from hotslot.control.v1 import control_pb2
from inference.server.api.convert import InputLimits, entailment_input, entailment_response, parse
from inference.server.api.interceptors import Context, current_call
from inference.server.control.report import devices_of, model_state
from inference.server.model.commands import SlotCommands, find_slot
from inference.server.model.models import Models
from inference.server.model.roles import Roles
from inference.server.model.slot import Load
from inference.server.request import PendingRequest

SERVICE = control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name
MAX_TRANSACTION_CHARS = 64
MAX_PROBE_ITEMS = 64
_RETIRE_LIMIT_SECONDS = 60.0
_PHASES = {
    "starting": control_pb2.LOAD_PHASE_STARTING,
    "reading": control_pb2.LOAD_PHASE_READING,
    "warming_up": control_pb2.LOAD_PHASE_WARMING_UP,
    "loaded": control_pb2.LOAD_PHASE_LOADED,
}


class ControlApi:
    """The handlers of ControlService."""

    def __init__(self, models: Models, limits: InputLimits, clock: Clock, started_at: datetime) -> None:
        self._models = models
        self._limits = limits
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
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(behaviour, None, _serialize) for name, behaviour in unary.items()
        }
        handlers["LoadSlot"] = grpc.unary_stream_rpc_method_handler(self.load_slot, None, _serialize)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def get_status(self, raw: bytes, _context: Context) -> control_pb2.GetStatusResponse:
        """The whole state."""
        request = parse(control_pb2.GetStatusRequest, raw)
        managers = [self._models.get(request.model)] if request.model else self._models.all()
        response = control_pb2.GetStatusResponse(
            models=[model_state(manager, self._clock) for manager in managers],
            devices=devices_of(managers),
            draining=managers[0].options.drain.is_draining,
        )
        response.server_started_at.FromDatetime(self._started_at)
        return response

    async def load_slot(self, raw: bytes, context: Context) -> None:
        """Load a bundle into the free slot, and tell how it goes."""
        request = parse(control_pb2.LoadSlotRequest, raw)
        commands = self._begin(request.change)
        with _TrueState(commands, self._clock):
            load = commands.load(
                request.bundle_digest,
                request.device,
                request.change.transaction_id,
                request.change.expected_generation,
            )
            await self._follow(commands, load, context)

    async def probe_slot(self, raw: bytes, context: Context) -> control_pb2.ProbeSlotResponse:
        """Run items on one slot."""
        request = parse(control_pb2.ProbeSlotRequest, raw)
        if request.WhichOneof("items") == "address":
            raise NotBuilt("this build has no engine for address tagging")
        items = request.entailment.requests
        if not 1 <= len(items) <= MAX_PROBE_ITEMS:
            raise InputRefused(
                f"{len(items)} items, 1 to {MAX_PROBE_ITEMS} are allowed",
                reason="ITEMS_MISSING" if not items else "ITEMS_TOO_MANY",
                field="entailment.requests",
            )
        manager = self._models.get(request.model)
        slot = find_slot(manager.roles, request.load_id)
        if slot is None:
            raise NotFound("no slot holds this load", reason="LOAD_UNKNOWN", field="load_id")
        left = context.time_remaining()
        deadline = self._clock.monotonic() + (600.0 if left is None else left)
        stats = None if slot.load is None else manager.stats.get(slot.load.key)
        before = 0.0 if stats is None else stats.computed_seconds
        asked: list[PendingRequest | HotslotError] = []
        for item in items:
            try:
                asked.append(manager.probe_slot(slot, entailment_input(item, self._limits), deadline))
            except InputRefused as error:
                asked.append(error)
        response = control_pb2.ProbeSlotResponse(outcomes=[await _outcome(pending) for pending in asked])
        if stats is not None:
            response.computed.FromNanoseconds(int(max(0.0, stats.computed_seconds - before) * 1e9))
        return response

    async def activate_slot(self, raw: bytes, _context: Context) -> control_pb2.ActivateSlotResponse:
        """Begin a trial, extend its lease, or go back."""
        request = parse(control_pb2.ActivateSlotRequest, raw)
        commands = self._begin(request.change)
        with _TrueState(commands, self._clock):
            seconds = request.trial_lease.ToTimedelta().total_seconds()
            change = request.change
            commands.activate(request.load_id, seconds, change.transaction_id, change.expected_generation)
        return control_pb2.ActivateSlotResponse(state=model_state(commands.manager, self._clock))

    async def commit_slot(self, raw: bytes, _context: Context) -> control_pb2.CommitSlotResponse:
        """End a trial for good."""
        request = parse(control_pb2.CommitSlotRequest, raw)
        commands = self._begin(request.change)
        with _TrueState(commands, self._clock):
            commands.commit(request.load_id, request.change.transaction_id, request.change.expected_generation)
        return control_pb2.CommitSlotResponse(state=model_state(commands.manager, self._clock))

    async def retire_slot(self, raw: bytes, _context: Context) -> control_pb2.RetireSlotResponse:
        """Empty a slot, and wait until it is empty."""
        request = parse(control_pb2.RetireSlotRequest, raw)
        commands = self._begin(request.change)
        with _TrueState(commands, self._clock):
            slot = find_slot(commands.manager.roles, request.load_id) if request.load_id else None
            process = None if slot is None else slot.process
            commands.retire(request.load_id, request.change.expected_generation)
            if process is not None:
                await asyncio.wait_for(process.wait_ended(), _RETIRE_LIMIT_SECONDS)
        return control_pb2.RetireSlotResponse(state=model_state(commands.manager, self._clock))

    async def set_traffic(self, _raw: bytes, _context: Context) -> control_pb2.SetTrafficResponse:
        """Shares of traffic are not built."""
        raise NotBuilt("shares of traffic are not built in this version", reason="TRAFFIC_NOT_AVAILABLE")

    def _begin(self, change: control_pb2.Change) -> SlotCommands:
        if not 1 <= len(change.transaction_id) <= MAX_TRANSACTION_CHARS:
            raise InputRefused(
                f"transaction_id needs 1 to {MAX_TRANSACTION_CHARS} characters",
                reason="TRANSACTION_MISSING",
                field="change.transaction_id",
            )
        current_call.get().fields.update(model=change.model, transaction_id=change.transaction_id)
        return self._models.get_commands(change.model)

    async def _follow(self, commands: SlotCommands, load: Load, context: Context) -> None:
        """Write progress until the load has ended; a load goes on if its caller hangs up."""
        roles = commands.manager.roles
        while True:
            changed = load.changed.next()
            if load.failure is not None:
                await _emptied(roles, load)
                raise load.failure
            slot = roles.slot_holding(load.load_id)
            progress = control_pb2.LoadSlotResponse(
                load_id=load.load_id,
                phase=_PHASES.get(load.phase, control_pb2.LOAD_PHASE_UNSPECIFIED),
                fraction=load.fraction,
                slot="" if slot is None else slot.name,
                generation=roles.generation,
            )
            is_last = load.is_loaded  # as it is told: while that is written, the load goes on
            await context.write(progress)
            if is_last:
                return
            await changed.wait()


async def _emptied(roles: Roles, load: Load) -> None:
    """Wait until the slot of a failed load is free: who is told may load something else at once."""
    for slot in roles.slots.values():
        if slot.load is load and slot.process is not None:
            await asyncio.wait_for(slot.process.wait_ended(), _RETIRE_LIMIT_SECONDS)


class _TrueState:
    """Puts the true state beside a conflict's details, so that the caller need not ask again."""

    def __init__(self, commands: SlotCommands, clock: Clock) -> None:
        self._commands = commands
        self._clock = clock

    def __enter__(self) -> None:
        """Nothing to do before."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """A conflict leaves with the state."""
        del kind, trace
        if isinstance(error, Conflict):
            current_call.get().details.append(model_state(self._commands.manager, self._clock))


async def _outcome(asked: PendingRequest | HotslotError) -> control_pb2.ProbeOutcome:
    try:
        if isinstance(asked, HotslotError):
            raise asked
        return control_pb2.ProbeOutcome(entailment=entailment_response(await asked.outcome))
    except HotslotError as error:
        return control_pb2.ProbeOutcome(error=to_status(error))


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
