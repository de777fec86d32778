"""The gRPC service for operators: reads the published status and the journal; sends commands to the models' threads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from common.bundle import Provenance
from common.errors import Conflict, Failed, HotslotError, InputRefused, NotFound, NotReady, to_status
from common.logs import Logger
from common.paths import run_folder
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from updater.commands import CommandQueue
from updater.core.breaker import BreakerState
from updater.core.facts import CommandKind, OperatorCommand
from updater.core.record import Event, ModelRecord
from updater.service import convert
from updater.service.callers import COMMAND_SECONDS, Caller, CommandGroup, CommandPlaces, build_caller
from updater.service.golden import GoldenApi
from updater.service.history import HistoryApi, build_unknown_error
from updater.stages.commands import CommandResult
from updater.status import Progress, StatusPublisher, StatusSnapshot
from updater.store.database import JournalNotWritten, JournalUnreadable
from updater.store.journal import Journal

JOURNAL_COPY = "journal-copy-{}.db"  # in the run folder
MAX_COPIES = 16  # callers move them away; one that did not leaves its copy until so many others were made
SERVICE = pb.DESCRIPTOR.services_by_name["UpdatesService"].full_name
MAX_REASON_CHARS, MAX_NAME_CHARS = 200, 64
POLL_SECONDS = 90.0  # longest wait for the hub's answer
M = TypeVar("M", bound=Message)
# Events that answer Update with an error.
_NOT_STARTED: Mapping[str, tuple[type[HotslotError], str]] = {
    "revision_unknown": (NotFound, "REVISION_UNKNOWN"),
    "revision_quarantined": (Conflict, "QUARANTINED"),
    "revision_committed": (Conflict, "COMMITTED"),
    "revision_too_old": (Conflict, "BELOW_MIN_VERSION"),
    "revision_ambiguous": (Conflict, "AMBIGUOUS"),
    "revision_not_ready": (Conflict, "NOT_READY"),
}


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """The part of a model's updater that the service uses."""

    publisher: StatusPublisher
    commands: CommandQueue
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class SettingsCalls:
    """The part of the settings that the service uses."""

    names: Callable[[], tuple[str, ...]]  # of the configured models, in order
    status: Callable[[], status_pb2.SettingsStatus]
    reload: Callable[..., control_pb2.SettingsReload]


class UpdatesApi:
    """The handlers of UpdatesService. Called in threads of the gRPC server."""

    def __init__(
        self,
        handle_of: Callable[[str], ModelHandle | None],
        settings: SettingsCalls,
        journal: Callable[[], Journal],
        provenance: Callable[[str], Provenance | None],
        log: Logger,
        golden: GoldenApi,
        fault_of: Callable[[str], str] = lambda _model: "",
        state: Path = Path(),
    ) -> None:
        """Read nothing yet.

        Args:
            handle_of: returns the handle of a model's loop; None while it has no loop, or the journal cannot be
                trusted.
            settings: of the process.
            journal: returns the journal; raises JournalUnreadable while it cannot be trusted.
            provenance: returns the provenance of the bundle with a digest.
            log: of the process.
            golden: the golden sets of all models.
            fault_of: returns why a model has no loop; empty if it will have one in a moment.
            state: state folder: copies of the journal go to its run folder, the server keeps requests in it.
        """
        self._state = state
        self._copies = run_folder(state)
        self._copy_numbers = count()
        self._golden = golden
        self._history = HistoryApi(settings.names, journal, self._find_record, provenance, state)
        self._handle_of = handle_of
        self._fault_of = fault_of
        self._settings = settings
        self._journal = journal
        self._provenance = provenance
        self._log = log
        self._places = CommandPlaces()

    @property
    def _names(self) -> tuple[str, ...]:
        return self._settings.names()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers to register with a gRPC server."""
        queries: dict[str, tuple[type[Message], Callable[[Any, float], Message]]] = {
            "GetStatus": (pb.GetStatusRequest, self._get_status),
            "ListHistory": (pb.ListHistoryRequest, self._history.list_updates),
            "GetUpdate": (pb.GetUpdateRequest, self._history.get_update),
            "ListDifferingItems": (pb.ListDifferingItemsRequest, self._history.list_differing),
            "CopyJournal": (pb.CopyJournalRequest, self._copy_journal),
            "ReloadSettings": (pb.ReloadSettingsRequest, self._reload_settings),
            "ListGoldenItems": (pb.ListGoldenItemsRequest, self._golden.list_items),
            "GetKeptPicture": (pb.GetKeptPictureRequest, self._history.get_kept_picture),
            "GetGoldenPicture": (pb.GetGoldenPictureRequest, self._golden.picture),
            "AddGoldenItem": (pb.AddGoldenItemRequest, self._golden.add),
        }
        urgent, step, hub = CommandGroup.URGENT, CommandGroup.STEP, CommandGroup.HUB
        commands: dict[str, tuple[type[Message], Callable[[Any, Caller], Message], CommandGroup]] = {
            "CheckNow": (pb.CheckNowRequest, self._check_now, hub),
            "Update": (pb.UpdateRequest, self._update, hub),
            "Rollback": (pb.RollbackRequest, self._rollback, urgent),
            "Pause": (pb.PauseRequest, self._pause, urgent),
            "Resume": (pb.ResumeRequest, self._resume, step),
            "Step": (pb.StepRequest, self._step, step),
            "Promote": (pb.PromoteRequest, self._promote, step),
            "Approve": (pb.ApproveRequest, self._approve, step),
            "Unquarantine": (pb.UnquarantineRequest, self._unquarantine, step),
            "ResetBreaker": (pb.ResetBreakerRequest, self._reset_breaker, step),
        }
        calls: dict[str, tuple[type[Message], Callable[[Any, Caller], Message]]] = {
            **{name: (kind, partial(_query, answer)) for name, (kind, answer) in queries.items()},
            **{name: (kind, partial(self._command, answer, group)) for name, (kind, answer, group) in commands.items()},
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(self._build_handler(name, kind, answer), None, _serialize)
            for name, (kind, answer) in calls.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _build_handler(
        self, name: str, kind: type[M], answer: Callable[[M, Caller], Message]
    ) -> Callable[[bytes, grpc.ServicerContext], Message]:
        """A handler that parses the request, calls `answer`, and converts exceptions to gRPC statuses."""

        def handle(raw: bytes, context: grpc.ServicerContext) -> Message:
            try:
                return answer(_parse(kind, raw), build_caller(context))
            except HotslotError as error:
                failure = error
            except (JournalUnreadable, JournalNotWritten) as error:
                failure = NotReady(str(error), reason=error.reason)
            except Exception as error:  # noqa: BLE001  a bug: logged, and hidden from the caller
                self._log.error("call_crashed", rpc=name, exc_info=error)
                failure = Failed("internal error; see the log of the updater")
            context.abort_with_status(rpc_status.to_status(to_status(failure)))
            raise RuntimeError("abort_with_status has returned")

        return handle

    def _command(
        self,
        answer: Callable[[Any, Caller], Message],
        group: CommandGroup,
        request: Any,  # noqa: ANN401  of any command
        caller: Caller,
    ) -> Message:
        """Apply a command, unless as many of its group wait as may."""
        with self._places.take(self._find_name(request.model), group):
            return answer(request, caller)

    # Queries.

    def _get_status(self, request: pb.GetStatusRequest, _seconds: float) -> pb.GetStatusResponse:
        if request.model and request.model not in self._names:
            raise build_unknown_error(request.model)
        names = [request.model] if request.model else list(self._names)
        models = [self._status_of(name) for name in names]
        return pb.GetStatusResponse(models=models, settings=self._settings.status())

    def _status_of(self, name: str) -> pb.ModelUpdates:
        handle = self._handle_of(name)
        if handle is not None:
            message = convert.to_model_updates(handle.publisher.snapshot, handle.progress.share)
            committed = handle.publisher.snapshot.record.committed
            if committed is not None:
                convert.fill_provenance(message.committed_provenance, self._provenance(committed.bundle_digest))
            return message
        try:
            self._journal()
        except JournalUnreadable as error:
            advice = f"{error}; updates are stopped, the server keeps serving; {error.advice}"
            return pb.ModelUpdates(
                model=name, stage=pb.UPDATE_STAGE_HELD, advice=advice, advice_code="JOURNAL", fault=str(error)
            )
        except JournalNotWritten:
            pass  # it is tried again
        fault = self._fault_of(name)
        code, advice = ("FAULT", fault) if fault else ("STARTING", "the updater is starting")
        return pb.ModelUpdates(model=name, stage=pb.UPDATE_STAGE_IDLE, advice=advice, advice_code=code, fault=fault)

    def _copy_journal(self, _request: pb.CopyJournalRequest, _seconds: float) -> pb.CopyJournalResponse:
        file = JOURNAL_COPY.format(next(self._copy_numbers) % MAX_COPIES)
        self._journal().copy_to(self._copies / file)
        return pb.CopyJournalResponse(file=file)

    def _reload_settings(self, request: pb.ReloadSettingsRequest, _seconds: float) -> pb.ReloadSettingsResponse:
        return pb.ReloadSettingsResponse(reload=self._settings.reload(check_only=request.check_only))

    # Commands.

    def _check_now(self, request: pb.CheckNowRequest, caller: Caller) -> pb.CheckNowResponse:
        handle = self._find_model(request.model)
        started = handle.publisher.snapshot
        hub, before = started.record.hub, started.record.watch
        if hub.state is not BreakerState.CLOSED and hub.left_seconds > 0:
            left = hub.left_seconds
            message = f"the hub failed several times; the next attempt is in {left:.0f} s"
            raise NotReady(message, reason="BREAKER_OPEN", retry_after_seconds=left)
        self._apply(handle, CommandKind.CHECK_NOW, "", caller)

        def has_polled(snapshot: StatusSnapshot) -> bool:
            is_refused = any(event.name == "hub_unanswered" for event in _list_new_events(started, snapshot))
            return snapshot.record.watch.polls > before.polls or is_refused

        snapshot = handle.publisher.wait(has_polled, min(caller.seconds_left(), POLL_SECONDS), caller.on_end)
        if snapshot is None:
            raise NotReady("the hub was not polled in time: another step is in progress", reason="UPDATER_BUSY")
        watch = snapshot.record.watch
        if watch.polls == before.polls:
            raise NotReady(watch.message or "the hub did not answer", reason="HUB_UNREACHABLE")
        return pb.CheckNowResponse(newest_revision=watch.newest, message=convert.describe_poll(snapshot.record))

    def _update(self, request: pb.UpdateRequest, caller: Caller) -> pb.UpdateResponse:
        if not request.revision:
            raise InputRefused("revision is required", field="revision")
        if len(request.revision) > MAX_REASON_CHARS:
            raise InputRefused(f"revision must have at most {MAX_REASON_CHARS} characters", field="revision")
        handle = self._find_model(request.model)
        before = handle.publisher.snapshot
        self._apply(handle, CommandKind.UPDATE, request.revision, caller, request.operator)

        def is_answered(snapshot: StatusSnapshot) -> bool:
            record, events = snapshot.record, _list_new_events(before, snapshot)
            if record.requested_revision == request.revision:
                return any(event.name == "hub_unanswered" for event in events)
            return bool(events or record.update)

        snapshot = handle.publisher.wait(is_answered, min(caller.seconds_left(), POLL_SECONDS), caller.on_end)
        if snapshot is None or snapshot.record.requested_revision == request.revision:
            message = "the hub has not answered yet; the update starts when it does"
            raise NotReady(message, reason="HUB_UNREACHABLE", retry_after_seconds=POLL_SECONDS)
        for event in _list_new_events(before, snapshot):
            if event.name in _NOT_STARTED:
                kind, reason = _NOT_STARTED[event.name]
                raise kind(event.message, reason=reason, field="revision")
            if event.name == "update_started" and event.update is not None:
                return pb.UpdateResponse(update=convert.to_summary(event.model, event.update, event.stage))
        if any(event.name == "hub_unanswered" for event in _list_new_events(before, snapshot)):
            raise NotReady(f"nothing was started: {snapshot.record.watch.message}", reason="HUB_UNREACHABLE")
        return pb.UpdateResponse(update=convert.to_current_summary(snapshot.record))

    def _rollback(self, request: pb.RollbackRequest, caller: Caller) -> pb.RollbackResponse:
        result = self._apply(
            self._find_model(request.model), CommandKind.ROLLBACK, request.revision, caller, request.operator
        )
        return pb.RollbackResponse(update=convert.to_current_summary(result.record))

    def _pause(self, request: pb.PauseRequest, caller: Caller) -> pb.PauseResponse:
        if len(request.reason) > MAX_REASON_CHARS:
            raise InputRefused(f"reason must have at most {MAX_REASON_CHARS} characters", field="reason")
        result = self._apply(
            self._find_model(request.model), CommandKind.PAUSE, request.reason, caller, request.operator
        )
        return pb.PauseResponse(state=convert.to_model_updates(StatusSnapshot(result.record)))

    def _resume(self, request: pb.ResumeRequest, caller: Caller) -> pb.ResumeResponse:
        result = self._apply(self._find_model(request.model), CommandKind.RESUME, "", caller, request.operator)
        return pb.ResumeResponse(state=convert.to_model_updates(StatusSnapshot(result.record)))

    def _step(self, request: pb.StepRequest, caller: Caller) -> pb.StepResponse:
        result = self._apply(self._find_model(request.model), CommandKind.STEP, "", caller, request.operator)
        return pb.StepResponse(state=convert.to_model_updates(StatusSnapshot(result.record)))

    def _promote(self, request: pb.PromoteRequest, caller: Caller) -> pb.PromoteResponse:
        result = self._apply(self._find_model(request.model), CommandKind.PROMOTE, "", caller, request.operator)
        return pb.PromoteResponse(state=convert.to_model_updates(StatusSnapshot(result.record)))

    def _approve(self, request: pb.ApproveRequest, caller: Caller) -> pb.ApproveResponse:
        result = self._apply(
            self._find_model(request.model), CommandKind.APPROVE, request.source_digest, caller, request.operator
        )
        return pb.ApproveResponse(update=convert.to_current_summary(result.record))

    def _unquarantine(self, request: pb.UnquarantineRequest, caller: Caller) -> pb.UnquarantineResponse:
        handle = self._find_model(request.model)
        result = self._apply(handle, CommandKind.UNQUARANTINE, request.source_digest, caller, request.operator)
        return pb.UnquarantineResponse(state=convert.to_model_updates(StatusSnapshot(result.record)))

    def _reset_breaker(self, request: pb.ResetBreakerRequest, caller: Caller) -> pb.ResetBreakerResponse:
        result = self._apply(
            self._find_model(request.model), CommandKind.RESET_BREAKER, request.breaker, caller, request.operator
        )
        return pb.ResetBreakerResponse(breaker=convert.to_breaker(_find_breaker(result.record, request.breaker)))

    # Helpers.

    def _find_record(self, model: str) -> ModelRecord | None:
        handle = self._handle_of(model)
        return None if handle is None else handle.publisher.snapshot.record

    def _find_name(self, model: str) -> str:
        if model and model not in self._names:
            raise build_unknown_error(model)
        if not model and len(self._names) != 1:
            message = f"several models are configured, name one of them: {', '.join(self._names)}"
            raise InputRefused(message, reason="MODEL_REQUIRED", field="model")
        return model or self._names[0]

    def _find_model(self, model: str) -> ModelHandle:
        name = self._find_name(model)
        handle = self._handle_of(name)
        if handle is None:
            self._journal()  # raises if the journal is the reason
            message = self._fault_of(name) or "the updater is starting"
            raise NotReady(message, reason="UPDATER_BUSY", retry_after_seconds=1.0)
        return handle

    def _apply(
        self,
        handle: ModelHandle,
        kind: CommandKind,
        argument: str,
        caller: Caller,
        operator: pb.Operator | None = None,
    ) -> CommandResult:
        command = OperatorCommand(kind, argument, _describe_operator(operator))
        result = handle.commands.ask(command, min(caller.seconds_left(), COMMAND_SECONDS), caller.on_end)
        refused = result.refusal
        if refused is not None:
            raise (NotFound if refused.is_not_found else Conflict)(refused.message, reason=refused.reason)
        return result


def _query(answer: Callable[[Any, float], Message], request: Message, caller: Caller) -> Message:
    return answer(request, caller.seconds_left())


def _list_new_events(before: StatusSnapshot, now: StatusSnapshot) -> list[Event]:
    """Events that are new in the later snapshot, as far as the publisher still keeps them."""
    seen = {id(event) for event in before.events}
    return [event for event in now.events if id(event) not in seen]


def _describe_operator(operator: pb.Operator | None) -> str:
    """Who sends a command, and why, for the audit trail; empty if nobody is named."""
    if operator is None:
        return ""
    for name, value, longest in (
        ("name", operator.name, MAX_NAME_CHARS),
        ("reason", operator.reason, MAX_REASON_CHARS),
    ):
        if len(value) > longest or not value.isprintable():
            sentence = f"operator.{name} must have at most {longest} printable characters"
            raise InputRefused(sentence, field=f"operator.{name}")
    by = f"by {operator.name}" if operator.name else ""
    return by + (": " if by and operator.reason else "") + operator.reason


def _find_breaker(record: ModelRecord, name: str) -> Any:  # noqa: ANN401  one of three breakers
    return {"hub": record.hub, "activation": record.activation}.get(name, record.device)


def _parse(kind: type[M], raw: bytes) -> M:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise InputRefused("the request is not a valid protobuf message", reason="MESSAGE_MALFORMED") from error


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
