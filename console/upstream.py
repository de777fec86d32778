"""Calls to the server and the updater: the only way in which the console learns or changes anything."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.rpc import status_pb2

from common.address import unix_target
from common.paths import CONTROL_SOCKET, UPDATES_SOCKET
from common.status_details import StatusDetails, find_status, read_status
from common.tokens import HEADER
from hotslot.address.v1 import address_pb2, address_pb2_grpc
from hotslot.control.v1 import control_pb2, control_pb2_grpc
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc
from hotslot.status.v1 import status_pb2 as server_pb2
from hotslot.status.v1 import status_pb2_grpc as server_pb2_grpc
from hotslot.updates.v1 import updates_pb2, updates_pb2_grpc

STATUS_SECONDS = 8.0
ANSWER_SECONDS = 30.0
COMMAND_SECONDS = 30.0
HUB_SECONDS = 120.0  # for commands that wait for the hub
MAX_GOLDEN_ITEMS = 10_000
_GOLDEN_PAGE = 500
_MAX_MESSAGE_BYTES = 64 << 20
_MAX_CHANNELS = 4  # control, updates, and two that were replaced
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # Pages are refreshed each second: an absent server is found again within two.
    ("grpc.max_reconnect_backoff_ms", 2000),
]
_TOKEN_REASONS = {"TOKEN_MISSING", "TOKEN_UNKNOWN"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """How the server is called."""

    target: str
    root_certificates: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    name: str = ""  # in the server's certificate
    is_secure: bool = False
    token: str = ""


class CallFailed(Exception):
    """A call to the server or the updater failed.

    Attributes:
        reason: for machines, from the error's details; empty without any.
        field: of the request that was wrong; empty if none was.
        is_away: whether nothing answered.
    """

    def __init__(self, sentence: str, *, reason: str = "", field: str = "", is_away: bool = False) -> None:
        super().__init__(sentence)
        self.reason, self.field, self.is_away = reason, field, is_away

    @property
    def details(self) -> StatusDetails:
        """The sentence of the error."""
        return StatusDetails(str(self), self.reason, self.field)


class Upstream:
    """Open channels to a server and, on its machine, to its control socket and its updater."""

    def __init__(self, find_server: Callable[[], ServerAddress], run_folder: Path) -> None:
        """Open the channels; must be called in the event loop. Nothing connects yet.

        Args:
            find_server: returns address, certificates and token as their files are now; called again when a call fails.
            run_folder: of the stack, with the sockets.
        """
        control = grpc.aio.insecure_channel(unix_target(run_folder / CONTROL_SOCKET), options=_OPTIONS)
        updates = grpc.aio.insecure_channel(unix_target(run_folder / UPDATES_SOCKET), options=_OPTIONS)
        self._channels: list[grpc.aio.Channel] = [control, updates]
        self._control = control_pb2_grpc.ControlServiceStub(control)
        self._updates: Any = updates_pb2_grpc.UpdatesServiceStub(updates)
        self._find_server = find_server
        self._server = find_server()
        self._callers = _Callers(self._server)

    async def close(self) -> None:
        """Close the channels."""
        for channel in (*self._channels, self._callers.channel):
            await channel.close()

    async def _ask_server(self, call: Callable[["_Callers"], Awaitable[T]]) -> T:
        """A call; if nothing answers or the token is unknown, the next one uses what the files have then.

        Raises:
            CallFailed: it failed.
        """
        try:
            return await _ask("server", call(self._callers))
        except CallFailed as failure:
            if failure.is_away or failure.reason in _TOKEN_REASONS:
                await self._find_again()
            raise

    async def _find_again(self) -> None:
        """Certificates and tokens are replaced while the server and the console run."""
        server = await asyncio.to_thread(self._find_server)
        if server == self._server:
            return
        self._channels.append(self._callers.channel)  # a call may still wait in it
        self._server, self._callers = server, _Callers(server)
        while len(self._channels) > _MAX_CHANNELS:
            await self._channels.pop(2).close()

    # The server, as its callers know it.

    async def server_status(self) -> server_pb2.GetServerStatusResponse:
        """The health of the server."""
        asked = server_pb2.GetServerStatusRequest()
        return await self._ask_server(lambda to: to.status.GetServerStatus(asked, **to.limits()))

    async def models(self) -> Sequence[server_pb2.Model]:
        """The models and their slots."""
        asked = server_pb2.ListModelsRequest()
        answer: server_pb2.ListModelsResponse = await self._ask_server(
            lambda to: to.status.ListModels(asked, **to.limits())
        )
        return answer.models

    async def predict(self, request: entailment_pb2.PredictRequest) -> entailment_pb2.PredictResponse:
        """Judge statements."""
        return await self._ask_server(lambda to: to.entailment.Predict(request, **to.limits(ANSWER_SECONDS)))

    async def tag(self, request: address_pb2.PredictRequest) -> address_pb2.PredictResponse:
        """Tag addresses."""
        return await self._ask_server(lambda to: to.address.Predict(request, **to.limits(ANSWER_SECONDS)))

    # The control socket: counters by revision, and answers of a slot that no caller reaches.

    async def control_status(self) -> control_pb2.GetStatusResponse:
        """Slots and counters of all models."""
        return await _ask("control", self._control.GetStatus(control_pb2.GetStatusRequest(), timeout=STATUS_SECONDS))

    async def probe(self, request: control_pb2.ProbeSlotRequest) -> control_pb2.ProbeSlotResponse:
        """Ask one slot."""
        return await _ask("control", self._control.ProbeSlot(request, timeout=ANSWER_SECONDS))

    # The updater.

    async def updates_status(self) -> Sequence[updates_pb2.ModelUpdates]:
        """The updates of all models."""
        answer: updates_pb2.GetStatusResponse = await self.ask_updater("GetStatus", updates_pb2.GetStatusRequest())
        return answer.models

    async def ask_updater(self, method: str, request: Any, seconds: float = STATUS_SECONDS) -> Any:  # noqa: ANN401
        """Call a method of UpdatesService.

        Raises:
            CallFailed: it failed.
        """
        return await _ask("updater", getattr(self._updates, method)(request, timeout=seconds))


class _Callers:
    """The channel to the server's port, which callers use."""

    def __init__(self, server: ServerAddress) -> None:
        options = [*_OPTIONS, ("grpc.ssl_target_name_override", server.name)] if server.name else _OPTIONS
        if server.is_secure:
            trust = grpc.ssl_channel_credentials(server.root_certificates, server.key, server.certificate)
            self.channel = grpc.aio.secure_channel(server.target, trust, options=options)
        else:
            self.channel = grpc.aio.insecure_channel(server.target, options=options)
        self.status = server_pb2_grpc.StatusServiceStub(self.channel)
        self.entailment = entailment_pb2_grpc.EntailmentServiceStub(self.channel)
        self.address = address_pb2_grpc.AddressTaggingServiceStub(self.channel)
        self._metadata = ((HEADER, f"Bearer {server.token}"),) if server.token else ()

    def limits(self, seconds: float = STATUS_SECONDS) -> dict[str, Any]:
        """What goes with each call."""
        return {"timeout": seconds, "metadata": self._metadata}


async def list_golden_items(upstream: Upstream, model: str) -> AsyncIterator[updates_pb2.GoldenItem]:
    """All items of a golden set, at most `MAX_GOLDEN_ITEMS`.

    Raises:
        CallFailed: a call failed.
    """
    token = ""
    for _ in range(MAX_GOLDEN_ITEMS // _GOLDEN_PAGE):
        asked = updates_pb2.ListGoldenItemsRequest(model=model, page_size=_GOLDEN_PAGE, page_token=token)
        page: updates_pb2.ListGoldenItemsResponse = await upstream.ask_updater("ListGoldenItems", asked)
        for item in page.items:
            yield item
        token = page.next_page_token
        if not token:
            return


async def _ask(who: str, call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise describe_failure(who, error) from error
    except grpc.aio.UsageError as error:  # the channel was closed: the console is stopping
        raise CallFailed("the console is stopping", is_away=True) from error


def describe_failure(who: str, error: Any) -> CallFailed:  # noqa: ANN401  either API's error
    """A failed call in the API's own words; `who` is "server", "control" or "updater"."""
    status = find_status(error)
    if status is not None:
        return describe_status(status)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return CallFailed(_AWAY[who], is_away=True)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallFailed(_LATE[who], is_away=True)
        case code:
            return CallFailed(f"{code.name}: {error.details()}")


_AWAY = {
    "server": "no server answers; `hotslot serve` starts one",
    "control": "the control socket does not answer: the server is away, or runs on another machine",
    "updater": "the updater does not answer: it is away, or runs on another machine",
}
_LATE = {
    "server": "the server did not answer in time",
    "control": "the control socket did not answer in time",
    "updater": "the updater did not answer in time",
}


def describe_status(status: status_pb2.Status) -> CallFailed:
    """An error of one call or of one item, in the API's own words."""
    found = read_status(status)
    return CallFailed(found.sentence, reason=found.reason, field=found.field)
