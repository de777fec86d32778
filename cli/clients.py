"""Connections to the server and the updater, and error messages for failed calls."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
from google.rpc import status_pb2

from cli.endpoint import Endpoint
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import Settings, read_settings
from cli.state_folder import state_folder
from common.address import unix_target
from common.engine_files import Task
from common.paths import CONTROL_SOCKET, UPDATES_SOCKET, run_folder
from common.settings import settings_path
from common.source import find_source
from common.status_details import find_status, read_status
from updater.settings import ModelUpdatesSection

_NEXT_STEPS = {
    "MODEL_UNKNOWN": "`hotslot status` lists the models that are served",
    "MODEL_REQUIRED": "name one with --model; `hotslot status` lists them",
    "NOT_READY": "`hotslot status` shows the state of its slots",
    "DRAINING": "the server is stopping; try again when it has restarted",
    "QUEUE_FULL": "the server is overloaded; try again later",
    "QUOTA_EXCEEDED": "the quota of this caller is used up; try again later",
    "DEADLINE_TOO_SHORT": "give a longer --timeout",
    "DEADLINE_EXPIRED": "give a longer --timeout",
    "TOKEN_MISSING": "give --token-file",
    "TOKEN_UNKNOWN": "ask for a new one; `hotslot token new` makes it",
    "INTERNAL": "see the server's log",
    "ENGINE_FAILED": "see the server's log",
}


@contextlib.contextmanager
def connection(endpoint: Endpoint, timeout_seconds: float) -> Iterator[grpc.Channel]:
    """Open a channel; a failed call inside the block is raised as `CommandFailed`.

    Args:
        endpoint: the server or the updater.
        timeout_seconds: of the calls, for the error message.

    Raises:
        CommandFailed: a call failed.
    """
    with endpoint.open() as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise explain_failure(error, endpoint, timeout_seconds) from error


def explain_failure(error: grpc.RpcError, endpoint: Endpoint, timeout_seconds: float) -> CommandFailed:
    """The error message of a failed call, with what to do next."""
    address = endpoint.address
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return CommandFailed(f"the call to {address} failed: {error}")
    status = find_status(error)
    if status is not None:
        return CommandFailed(format_status(status))
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if endpoint.trust is not None and _is_about_tls(error.details()):
            sentence = (
                f"TLS with {address} failed; --tls-ca names the CA of its certificate, --tls-name a name in it,"
                f" --tls-cert and --tls-key show one that it trusts ({error.details()})"
            )
        case grpc.StatusCode.UNAVAILABLE if _is_closed(error.details()):
            step = "speaks TLS, give --tls-ca"
            if endpoint.trust is not None:
                step = "asks for a client certificate that it trusts, give --tls-cert and --tls-key"
            sentence = f"the server at {address} closes the connection; if it {step}"
        case grpc.StatusCode.UNAVAILABLE:
            sentence = _describe_absence(address)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            sentence = f"no answer from {address} within {timeout_seconds:g} s; give a longer --timeout"
        case grpc.StatusCode.UNIMPLEMENTED:
            sentence = f"the server at {address} is not hotslot, or an older version"
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            sentence = f"the message is larger than the server accepts; send a smaller picture ({error.details()})"
        case code:
            sentence = f"the call to {address} failed: {code.name}: {error.details()}"
    return CommandFailed(sentence)


_LOCAL_PROGRAMS = {UPDATES_SOCKET: "updater", CONTROL_SOCKET: "server"}  # by the socket in a run folder


def _describe_absence(address: str) -> str:
    place = Path(address.removeprefix("unix:"))
    if program := _LOCAL_PROGRAMS.get(place.name):
        step = "start it with `hotslot serve`, or name another with --state-dir"
        return f"no {program} runs on {place.parent.parent}; {step}"
    return f"no server answers at {address}; start one with `hotslot serve`, or name another with --address"


def _is_about_tls(details: str | None) -> bool:
    return any(word in (details or "").lower() for word in ("handshake", "peer name", "ssl_error"))


def _is_closed(details: str | None) -> bool:
    return any(word in (details or "").lower() for word in ("socket closed", "connection reset", "end of tcp stream"))


def format_status(status: status_pb2.Status) -> str:
    """The server's error with reason, field and the next step."""
    found = read_status(status)
    named = [found.reason] if found.reason else []
    if found.field and found.field not in found.sentence:
        named.append(found.field)
    step = _NEXT_STEPS.get(found.reason, "")
    return found.sentence + (f" ({', '.join(named)})" if named else "") + (f"; {step}" if step else "")


def updates_endpoint(state_dir: Path | None) -> Endpoint:
    """The updater's socket."""
    return Endpoint(unix_target(run_folder(state_folder(state_dir)) / UPDATES_SOCKET))


def hub_folder(given: Path | None, model: str = "") -> Path:
    """The folder hub: as given, else from the settings of a model, or of all if they have the same.

    Raises:
        WronglyUsed: the settings name none, or several.
    """
    if given is not None:
        return given
    folders = {section.hub_folder for section in _sections("").values()} if not model else set()
    if len(folders) == 1 and (only := folders.pop()) is not None:
        return only
    section = _section(model, "--hub")
    if section.hub_folder is None:
        raise WronglyUsed(f"the revisions come from {section.hub_model}, which is not a folder; give --hub DIR")
    return section.hub_folder


def golden_folder(given: Path | None, model: str) -> Path:
    """The folder of the golden set: as given, else from the settings of a model.

    Raises:
        WronglyUsed: the settings name none.
    """
    if given is not None:
        return given
    found = _section(model, "a folder").golden
    if found is None:
        raise WronglyUsed(
            'the settings name no golden set; make one with `hotslot golden record FOLDER`, then set golden = "FOLDER"'
        )
    return found


def task_of(model: str) -> Task:
    """The task of a model by the settings; without settings, visual entailment."""
    if not settings_path().is_file():
        return Task.VISUAL_ENTAILMENT
    found = {one.name: one.task for one in read_settings().models}
    return found.get(model, next(iter(found.values())))


def only_model_for(source: Path) -> str:
    """The only model in the settings with the task of a published folder.

    Raises:
        WronglyUsed: there is none, or several.
        ConversionRefused: the folder is not a revision.
    """
    task = find_source(source).engine.task
    settings: Settings | None = read_settings() if settings_path().is_file() else None
    names = [model.name for model in settings.models if model.task is task] if settings else []
    if len(names) != 1:
        known = (
            f"{settings_path()} has {', '.join(names) or 'none'} for {task.value}"
            if settings
            else "there is no settings file"
        )
        raise WronglyUsed(f"choose a model with --model ({known})")
    return names[0]


def _sections(model: str) -> Mapping[str, ModelUpdatesSection]:
    """The updater's sections of a model, or of all if none is named."""
    sections = read_settings().updater.models if settings_path().is_file() else {}
    return {name: section for name, section in sections.items() if model in ("", name)}


def _section(model: str, instead: str) -> ModelUpdatesSection:
    sections = _sections(model)
    if len(sections) != 1:
        known = ", ".join(sections) or "none"
        raise WronglyUsed(f"[updater.models] has {known}; choose a model with --model, or give {instead}")
    return next(iter(sections.values()))
