"""UpdatesService for operators. Reads the published status and the journal; commands go to the models' threads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from common.bundle import Provenance
from common.errors import Conflict, Failed, HotslotError, InputRefused, NotFound, NotReady, to_status
from common.logs import Logger
from hotslot.updates.v1 import updates_pb2 as pb
from updater.commands import CommandQueue
from updater.core.breaker import BreakerState
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import Event, ModelRecord
from updater.service import convert
from updater.service.convert import advice_for_past
from updater.stages.commands import CommandResult
from updater.status import Progress, StatusPublisher, StatusSnapshot
from updater.store.database import JournalUnreadable
from updater.store.journal import Journal

SERVICE = pb.DESCRIPTOR.services_by_name["UpdatesService"].full_name
MAX_PAGE, DEFAULT_PAGE = 200, 20
MAX_REASON_CHARS = 200
COMMAND_SECONDS = 25.0
LOOK_SECONDS = 90.0  # until the hub has been looked at
_SPARE_SECONDS = 1.0
M = TypeVar("M", bound=Message)
# What became of a revision that was asked for by name, when it became nothing.
_NOT_TAKEN: Mapping[str, tuple[type[HotslotError], str]] = {
    "revision_unknown": (NotFound, "REVISION_UNKNOWN"),
    "revision_quarantined": (Conflict, "QUARANTINED"),
    "revision_committed": (Conflict, "BELOW_MIN_VERSION"),
    "revision_not_ready": (Conflict, "NOT_READY"),
}


@dataclass(frozen=True, slots=True)
class Served:
    """One model, as it is told about."""

    publisher: StatusPublisher
    commands: CommandQueue
    progress: Progress = field(default_factory=Progress)


class UpdatesApi:
    """The handlers of UpdatesService. Called in the server's own threads."""

    def __init__(
        self,
        models: Mapping[str, Served],
        names: tuple[str, ...],
        journal: Callable[[], Journal],
        provenance: Callable[[str], Provenance | None],
        log: Logger,
    ) -> None:
        """Tell about these.

        Args:
            models: what is updated, by name; empty while the journal cannot be trusted.
            names: all configured models, in order.
            journal: gives the journal.
                Raises JournalUnreadable while it cannot be trusted.
            provenance: what the bundle of a digest says of where it came from.
            log: told what went wrong here.
        """
        self._models = models
        self._names = names
        self._journal = journal
        self._provenance = provenance
        self._log = log

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        methods: dict[str, tuple[type[Message], Callable[[Any, float], Message]]] = {
            "GetStatus": (pb.GetStatusRequest, self._get_status),
            "CheckNow": (pb.CheckNowRequest, self._check_now),
            "Update": (pb.UpdateRequest, self._update),
            "Rollback": (pb.RollbackRequest, self._rollback),
            "Pause": (pb.PauseRequest, self._pause),
            "Resume": (pb.ResumeRequest, self._resume),
            "Approve": (pb.ApproveRequest, self._approve),
            "Unquarantine": (pb.UnquarantineRequest, self._release_quarantine),
            "ResetBreaker": (pb.ResetBreakerRequest, self._reset_breaker),
            "ListHistory": (pb.ListHistoryRequest, self._list_history),
            "GetUpdate": (pb.GetUpdateRequest, self._get_update),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._answering(name, kind, answer), None, _serialize)
            for name, (kind, answer) in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _answering(
        self, name: str, kind: type[M], answer: Callable[[M, float], Message]
    ) -> Callable[[bytes, grpc.ServicerContext], Message]:
        """A handler that parses, answers, and says errors in gRPC's words."""

        def handle(raw: bytes, context: grpc.ServicerContext) -> Message:
            left = context.time_remaining()
            seconds = COMMAND_SECONDS if left is None else max(0.0, left - _SPARE_SECONDS)
            try:
                return answer(_parse(kind, raw), seconds)
            except HotslotError as error:
                failure = error
            except JournalUnreadable as error:
                failure = NotReady(str(error), reason=error.reason)
            except Exception as error:  # noqa: BLE001  a bug here is told, not snapshot
                self._log.error("call_crashed", rpc=name, exc_info=error)
                failure = Failed("something went wrong here; the log says more")
            context.abort_with_status(rpc_status.to_status(to_status(failure)))
            raise RuntimeError("an aborted call goes on")

        return handle

    # What is told.

    def _get_status(self, request: pb.GetStatusRequest, _seconds: float) -> pb.GetStatusResponse:
        if request.model and request.model not in self._names:
            raise _unknown(request.model)
        names = [request.model] if request.model else list(self._names)
        return pb.GetStatusResponse(models=[self._status_of(name) for name in names])

    def _status_of(self, name: str) -> pb.ModelUpdates:
        served = self._models.get(name)
        if served is not None:
            message = convert.model_updates(served.publisher.snapshot, served.progress.share)
            committed = served.publisher.snapshot.record.committed
            if committed is not None:
                convert.fill_provenance(message.committed_provenance, self._provenance(committed.bundle_digest))
            return message
        try:
            self._journal()
        except JournalUnreadable as error:
            advice = f"{error}; the server goes on serving; restore {'the journal'} from a backup, or move it away"
            return pb.ModelUpdates(model=name, stage=pb.UPDATE_STAGE_HELD, advice=advice)
        return pb.ModelUpdates(model=name, stage=pb.UPDATE_STAGE_IDLE, advice="the updater is starting")

    def _list_history(self, request: pb.ListHistoryRequest, _seconds: float) -> pb.ListHistoryResponse:
        if request.model and request.model not in self._names:
            raise _unknown(request.model)
        size = request.page_size or DEFAULT_PAGE
        if not 1 <= size <= MAX_PAGE:
            raise InputRefused(f"page_size is 1 to {MAX_PAGE}, not {size}", field="page_size")
        if request.page_token and not (request.page_token.isdecimal() and len(request.page_token) < MAX_PAGE // 10):
            raise InputRefused("page_token is none that was given out", field="page_token")
        rows = self._journal().history(request.model, size + 1, int(request.page_token or 0))
        more = rows[size - 1][0] if len(rows) > size else 0
        return pb.ListHistoryResponse(
            updates=[convert.past_summary(past) for _, past in rows[:size]], next_page_token=str(more) if more else ""
        )

    def _get_update(self, request: pb.GetUpdateRequest, _seconds: float) -> pb.GetUpdateResponse:
        journal = self._journal()
        past = journal.update(request.update_id)
        if past is None:
            message = f"there is no update {request.update_id[:64]!r}"
            raise NotFound(message, reason="UPDATE_UNKNOWN", field="update_id")
        served = self._models.get(past.model)
        record = None if served is None else served.publisher.snapshot.record
        response = pb.GetUpdateResponse(
            update=convert.past_summary(past),
            events=[convert.past_event(event) for event in journal.events(request.update_id)],
            advice=advice_for_past(past, record),
        )
        convert.fill_provenance(response.provenance, self._provenance(past.update.bundle_digest))
        for evidence in journal.evidence(request.update_id):
            convert.fill_evidence(response, evidence)
        return response

    # What is asked for.

    def _check_now(self, request: pb.CheckNowRequest, seconds: float) -> pb.CheckNowResponse:
        served = self._named(request.model)
        record = served.publisher.snapshot.record
        if record.hub.state is not BreakerState.CLOSED and record.hub.left_seconds > 0:
            left = record.hub.left_seconds
            message = f"the hub did not answer several times; it is asked again in {left:.0f} s"
            raise NotReady(message, reason="BREAKER_OPEN", retry_after_seconds=left)
        before = record.watch
        result = self._command(served, CommandKind.CHECK_NOW, "", seconds)
        failures = result.record.hub.failures

        def has_looked(snapshot: StatusSnapshot) -> bool:
            now = snapshot.record
            return now.watch.polls > before.polls or now.hub.failures > failures

        snapshot = served.publisher.wait(has_looked, min(seconds, LOOK_SECONDS))
        if snapshot is None:
            raise NotReady("the updater has not looked yet: a step is in progress", reason="UPDATER_BUSY")
        watch = snapshot.record.watch
        if watch.polls == before.polls:
            raise NotReady(watch.message or "the hub did not answer", reason="HUB_UNREACHABLE")
        message = watch.message or (f"{watch.newest} is the newest" if watch.newest else "nothing newer is published")
        return pb.CheckNowResponse(newest_revision=watch.newest, message=message)

    def _update(self, request: pb.UpdateRequest, seconds: float) -> pb.UpdateResponse:
        if not request.revision or len(request.revision) > MAX_REASON_CHARS:
            raise InputRefused("revision is required", field="revision")
        served = self._named(request.model)
        before = served.publisher.snapshot
        self._command(served, CommandKind.UPDATE, request.revision, seconds)

        def is_answered(snapshot: StatusSnapshot) -> bool:
            record = snapshot.record
            return record.requested_revision != request.revision and bool(_since(before, snapshot) or record.update)

        snapshot = served.publisher.wait(is_answered, min(seconds, LOOK_SECONDS))
        if snapshot is None:
            message = "the hub has not answered yet; the update begins when it does"
            raise NotReady(message, reason="HUB_UNREACHABLE", retry_after_seconds=LOOK_SECONDS)
        for event in _since(before, snapshot):
            if event.name in _NOT_TAKEN:
                kind, reason = _NOT_TAKEN[event.name]
                raise kind(event.message, reason=reason, field="revision")
            if event.name == "update_started" and event.update is not None:
                return pb.UpdateResponse(update=convert.summary(event.model, event.update, event.stage))
        return pb.UpdateResponse(update=convert.current_of(snapshot.record))

    def _rollback(self, request: pb.RollbackRequest, seconds: float) -> pb.RollbackResponse:
        result = self._command(self._named(request.model), CommandKind.ROLLBACK, "", seconds)
        return pb.RollbackResponse(update=convert.current_of(result.record))

    def _pause(self, request: pb.PauseRequest, seconds: float) -> pb.PauseResponse:
        if len(request.reason) > MAX_REASON_CHARS:
            raise InputRefused(f"a reason has at most {MAX_REASON_CHARS} characters", field="reason")
        result = self._command(self._named(request.model), CommandKind.PAUSE, request.reason, seconds)
        return pb.PauseResponse(state=convert.model_updates(StatusSnapshot(result.record)))

    def _resume(self, request: pb.ResumeRequest, seconds: float) -> pb.ResumeResponse:
        result = self._command(self._named(request.model), CommandKind.RESUME, "", seconds)
        return pb.ResumeResponse(state=convert.model_updates(StatusSnapshot(result.record)))

    def _approve(self, request: pb.ApproveRequest, seconds: float) -> pb.ApproveResponse:
        result = self._command(self._named(request.model), CommandKind.APPROVE, request.source_digest, seconds)
        return pb.ApproveResponse(update=convert.current_of(result.record))

    def _release_quarantine(self, request: pb.UnquarantineRequest, seconds: float) -> pb.UnquarantineResponse:
        served = self._named(request.model)
        result = self._command(served, CommandKind.UNQUARANTINE, request.source_digest, seconds)
        return pb.UnquarantineResponse(state=convert.model_updates(StatusSnapshot(result.record)))

    def _reset_breaker(self, request: pb.ResetBreakerRequest, seconds: float) -> pb.ResetBreakerResponse:
        result = self._command(self._named(request.model), CommandKind.RESET_BREAKER, request.breaker, seconds)
        return pb.ResetBreakerResponse(breaker=convert.breaker(_breaker_of(result.record, request.breaker)))

    # Helpers.

    def _named(self, model: str) -> Served:
        if model and model not in self._names:
            raise _unknown(model)
        if not model and len(self._names) != 1:
            message = f"name one of {', '.join(self._names)}"
            raise InputRefused(message, reason="MODEL_REQUIRED", field="model")
        served = self._models.get(model or self._names[0])
        if served is None:
            self._journal()  # says why, if that is it
            raise NotReady("the updater is starting", reason="UPDATER_BUSY", retry_after_seconds=1.0)
        return served

    def _command(self, served: Served, kind: CommandKind, argument: str, seconds: float) -> CommandResult:
        result = served.commands.ask(OperatorCommand(kind, argument), min(seconds, COMMAND_SECONDS))
        refused = result.refusal
        if refused is not None:
            raise (NotFound if refused.is_not_found else Conflict)(refused.message, reason=refused.reason)
        return result


def _since(before: StatusSnapshot, now: StatusSnapshot) -> list[Event]:
    """Events that were snapshot later; as far as the publisher still has them."""
    seen = {id(event) for event in before.events}
    return [event for event in now.events if id(event) not in seen]


def _breaker_of(record: ModelRecord, name: str) -> Any:  # noqa: ANN401  one of three breakers
    return {"hub": record.hub, "activation": record.activation}.get(name, record.device)


def _unknown(model: str) -> NotFound:
    return NotFound("no such model is configured", field="model", resource=("model", model[:128]))


def _parse(kind: type[M], raw: bytes) -> M:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InputRefused("the message does not parse", reason="MESSAGE_MALFORMED") from error


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
