"""Calls to the server and the updater: the only way in which the console learns or changes anything."""

from collections.abc import AsyncIterator, Awaitable, Sequence
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

    def __init__(self, server: ServerAddress, run_folder: Path) -> None:
        """Open the channels; must be called in the event loop. Nothing connects yet.

        Args:
            server: address, certificates and token.
            run_folder: of the stack, with the sockets.
        """
        options: list[tuple[str, Any]] = [
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Pages are refreshed each second: an absent server is found again within two.
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        secured = [*options, ("grpc.ssl_target_name_override", server.name)] if server.name else options
        if server.is_secure:
            trust = grpc.ssl_channel_credentials(server.root_certificates, server.key, server.certificate)
            callers = grpc.aio.secure_channel(server.target, trust, options=secured)
        else:
            callers = grpc.aio.insecure_channel(server.target, options=options)
        control = grpc.aio.insecure_channel(unix_target(run_folder / CONTROL_SOCKET), options=options)
        updates = grpc.aio.insecure_channel(unix_target(run_folder / UPDATES_SOCKET), options=options)
        self._channels = (callers, control, updates)
        self._metadata = ((HEADER, f"Bearer {server.token}"),) if server.token else ()
        self._status = server_pb2_grpc.StatusServiceStub(callers)
        self._entailment = entailment_pb2_grpc.EntailmentServiceStub(callers)
        self._address = address_pb2_grpc.AddressTaggingServiceStub(callers)
        self._control = control_pb2_grpc.ControlServiceStub(control)
        self._updates: Any = updates_pb2_grpc.UpdatesServiceStub(updates)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()

    # The server, as its callers know it.

    async def server_status(self) -> server_pb2.GetServerStatusResponse:
        """The health of the server."""
        return await _ask("server", self._status.GetServerStatus(server_pb2.GetServerStatusRequest(), **self._limits()))

    async def models(self) -> Sequence[server_pb2.Model]:
        """The models and their slots."""
        answer: server_pb2.ListModelsResponse = await _ask(
            "server", self._status.ListModels(server_pb2.ListModelsRequest(), **self._limits())
        )
        return answer.models

    async def predict(self, request: entailment_pb2.PredictRequest) -> entailment_pb2.PredictResponse:
        """Judge statements."""
        return await _ask("server", self._entailment.Predict(request, **self._limits(ANSWER_SECONDS)))

    async def tag(self, request: address_pb2.PredictRequest) -> address_pb2.PredictResponse:
        """Tag addresses."""
        return await _ask("server", self._address.Predict(request, **self._limits(ANSWER_SECONDS)))

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

    def _limits(self, seconds: float = STATUS_SECONDS) -> dict[str, Any]:
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
