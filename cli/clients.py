"""Calls to a server, and what their failures mean to a person."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cli.problems import CommandFailed, WronglyUsed
from cli.settings import Settings, read_settings, state_folder
from common.engine_files import Task
from common.paths import UPDATES_SOCKET, run_folder
from common.settings import settings_path
from updater.settings import ModelUpdatesSection

_NEXT_STEPS = {
    "MODEL_UNKNOWN": "`hotslot status` lists the models that are served",
    "MODEL_REQUIRED": "name one with --model; `hotslot status` lists them",
    "NOT_READY": "`hotslot status` says what it waits for",
    "DRAINING": "the server is about to end; ask again when it is back",
    "QUEUE_FULL": "the server has more to do than it can take; ask again later",
    "DEADLINE_TOO_SHORT": "allow more time with --timeout",
    "DEADLINE_EXPIRED": "allow more time with --timeout",
    "INTERNAL": "the server's log says more",
    "ENGINE_FAILED": "the server's log says more",
}


@contextlib.contextmanager
def connection(address: str, timeout_seconds: float) -> Iterator[grpc.Channel]:
    """A channel to the server; what goes wrong with a call inside is raised in words.

    Args:
        address: host and port, or unix:///path.
        timeout_seconds: what the caller gives its calls, for the words.

    Raises:
        CommandFailed: a call failed.
    """
    # A server beside us is not reached through a proxy, whatever the environment says of one.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise in_words(error, address, timeout_seconds) from error


def in_words(error: grpc.RpcError, address: str, timeout_seconds: float) -> CommandFailed:
    """What a failed call means, and what to do next."""
    if not isinstance(error, grpc.Call):
        return CommandFailed(f"the call to {address} failed: {error}")
    status = _details_of(error)
    if status is not None:
        return CommandFailed(_told(status))
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            sentence = f"nothing answers at {address}; is `make serve` running? --address names another server"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            sentence = f"no answer from {address} within {timeout_seconds:g} s; allow more time with --timeout"
        case grpc.StatusCode.UNIMPLEMENTED:
            sentence = f"what answers at {address} is no hotslot server, or an older one"
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            sentence = f"the message is larger than the server takes; send a smaller picture ({error.details()})"
        case code:
            sentence = f"the call to {address} failed: {code.name}: {error.details()}"
    return CommandFailed(sentence)


def _details_of(call: grpc.Call) -> status_pb2.Status | None:
    """The rich status of a failed call, if the server itself answered."""
    with contextlib.suppress(ValueError):  # details that contradict the call's code
        status: status_pb2.Status | None = rpc_status.from_call(call)
        return status
    return None


def _told(status: status_pb2.Status) -> str:
    info, wrong = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(wrong)
    field = wrong.field_violations[0].field if wrong.field_violations else ""
    named = [info.reason] if info.reason else []
    if field and field not in status.message:
        named.append(field)
    step = _NEXT_STEPS.get(info.reason, "")
    return status.message + (f" ({', '.join(named)})" if named else "") + (f"; {step}" if step else "")


def updates_address(state_dir: Path | None) -> str:
    """The updater's own socket."""
    return f"unix://{run_folder(state_folder(state_dir)) / UPDATES_SOCKET}"


def hub_folder(given: Path | None, model: str = "") -> Path:
    """The folder hub: as given, or as the settings name it for a model.

    Raises:
        WronglyUsed: nothing names one.
    """
    if given is not None:
        return given
    section = _section(model, "--hub")
    if section.hub_folder is None:
        raise WronglyUsed(f"its revisions come from {section.hub_model}, which is no folder; give --hub DIR")
    return section.hub_folder


def golden_folder(given: Path | None, model: str) -> Path:
    """The golden set: as given, or as the settings name it for a model.

    Raises:
        WronglyUsed: nothing names one.
    """
    if given is not None:
        return given
    found = _section(model, "a folder").golden
    if found is None:
        raise WronglyUsed(
            'the settings name no golden set; make one with `hotslot golden record FOLDER`, then golden = "…"'
        )
    return found


def task_of(model: str) -> Task:
    """The task of a model; without settings, the only one that this build serves."""
    if not settings_path().is_file():
        return Task.VISUAL_ENTAILMENT
    found = {one.name: one.task for one in read_settings().models}
    return found.get(model, next(iter(found.values())))


def _section(model: str, instead: str) -> ModelUpdatesSection:
    settings: Settings | None = read_settings() if settings_path().is_file() else None
    sections = settings.updater.models if settings is not None else {}
    if model:
        sections = {name: section for name, section in sections.items() if name == model}
    if len(sections) != 1:
        known = ", ".join(sections) or "none"
        raise WronglyUsed(f"[updater.models] has {known}; name a model with --model, or give {instead}")
    return next(iter(sections.values()))
