"""Handles the requests of one connection: parses, authorises, answers, and logs one event for each."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Protocol

from common.logs import Logger
from hubserver import protocol
from hubserver.folder import HubFolder
from hubserver.http import (
    MAX_HEAD_BYTES,
    ClientConnection,
    HeadTooLarge,
    IncomingRequest,
    OutgoingResponse,
    RequestRejected,
    read_head,
)
from hubserver.protocol import HubResource, HubRoute

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_LOGGED = 300  # characters of a target
_WITHOUT_TOKEN = (HubResource.HOME, HubResource.REGION)  # clients ask for these before they send a token


@dataclass(frozen=True, slots=True)
class AlteredResponse:
    """A response that a hook has replaced."""

    response: OutgoingResponse
    reason: str  # for the log
    send: Callable[[ClientConnection, OutgoingResponse], None] | None = None  # replaces the send; closes the connection


class ResponseHook(Protocol):
    """Alters responses; called from the threads of all connections."""

    def handles(self, request: IncomingRequest) -> bool:
        """Whether the hook answers a request itself, through `respond`."""

    def respond(self, request: IncomingRequest, body: bytes) -> OutgoingResponse:
        """Answers a request that the hook handles.

        Raises:
            RequestRejected: the request is wrong.
        """

    def alter(self, route: HubRoute, request: IncomingRequest, response: OutgoingResponse) -> AlteredResponse | None:
        """Replaces the hub's response; None leaves it as it is. The hook closes files that it drops."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request, as far as it could be parsed, and its response."""

    request_id: str
    request: IncomingRequest | None
    response: OutgoingResponse
    altered: AlteredResponse | None = None
    caller: str = ""  # name of the token

    @property
    def is_head(self) -> bool:
        return self.request is not None and self.request.method == "HEAD"

    @property
    def keeps_alive(self) -> bool:
        """Whether another request can follow: the end of an unparsed request or of an unread body is unknown."""
        return self.request is not None and self.request.keeps_alive and not self.request.body_bytes


class HubRequestHandler:
    """Shared by the threads of all connections."""

    def __init__(
        self,
        folder: HubFolder,
        find_token: Callable[[str], str] | None,
        log: Logger,
        hook: ResponseHook | None = None,
    ) -> None:
        """Store what every request needs.

        Args:
            folder: the models.
            find_token: the name of a token, empty if it is not valid; None: no token is required.
            log: receives one event for each request.
            hook: alters responses.
        """
        self._folder = folder
        self._find_token = find_token
        self._log = log
        self._hook = hook

    def serve(self, connection: ClientConnection, client: str, goes_on: Callable[[], bool]) -> bool:
        """Answer a request, and further ones as long as `goes_on` is true after each.

        Returns:
            Whether the connection may be used for another request.

        Raises:
            OSError: the client has disconnected or is too slow.
        """
        while True:
            try:
                head = connection.receive_head()
            except HeadTooLarge:
                sentence = f"a head has at most {MAX_HEAD_BYTES} bytes"
                rejected = RequestRejected(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, sentence)
                self._finish(connection, client, self._rejection(uuid.uuid4().hex, None, rejected))
                return False
            if head is None or not self._finish(connection, client, self._exchange(connection, head)):
                return False
            if not goes_on():
                return True

    def _finish(self, connection: ClientConnection, client: str, exchange: _Exchange) -> bool:
        """Send a response and log it; returns whether the connection stays open."""
        started = connection.clock.monotonic()
        ended = "sent"
        try:
            send = exchange.altered.send if exchange.altered is not None else None
            if send is not None and not exchange.is_head:
                send(connection, exchange.response)
                return False
            connection.send(exchange.response, keeps_alive=exchange.keeps_alive, with_body=not exchange.is_head)
        except OSError as error:
            ended = type(error).__name__
            raise
        finally:
            exchange.response.close()
            self._log_request(exchange, client, connection.sent_bytes, connection.clock.monotonic() - started, ended)
        return exchange.keeps_alive

    def _log_request(self, exchange: _Exchange, client: str, sent_bytes: int, seconds: float, ended: str) -> None:
        request = exchange.request
        headers = request.headers if request else {}
        altered = {"altered": exchange.altered.reason} if exchange.altered is not None else {}
        self._log.info(
            "request_answered",
            client=client,
            method=request.method[:16] if request else "",
            target=request.target[:_MAX_LOGGED] if request else "",
            range=headers.get("range", "")[:_MAX_LOGGED],
            has_token="authorization" in headers or "m_session_id" in headers.get("cookie", ""),
            caller=exchange.caller,
            status=exchange.response.status.value,
            bytes=sent_bytes,
            seconds=round(seconds, 4),
            ended=ended,
            request_id=exchange.request_id,
            **altered,
        )

    def _exchange(self, connection: ClientConnection, head: bytes) -> _Exchange:
        request: IncomingRequest | None = None
        request_id = uuid.uuid4().hex
        try:
            request = read_head(head)
            given = request.headers.get("x-request-id", "")
            request_id = given if _REQUEST_ID.fullmatch(given) else request_id
            if self._hook is not None and self._hook.handles(request):
                caller = self._find_caller(request)
                body = connection.receive_body(request.body_bytes)
                return _Exchange(request_id, request, self._hook.respond(request, body), caller=caller)
            return self._answer(request, request_id)
        except RequestRejected as rejected:
            return self._rejection(request_id, request, rejected)

    def _answer(self, request: IncomingRequest, request_id: str) -> _Exchange:
        if request.method not in ("GET", "HEAD") or request.body_bytes:
            raise RequestRejected(HTTPStatus.METHOD_NOT_ALLOWED, "this hub is read only", {"Allow": "GET, HEAD"})
        route = protocol.route_of(request)
        caller = "" if route.kind in _WITHOUT_TOKEN else self._find_caller(request)
        exchange = replace(self._look_up(route, request, request_id), caller=caller)
        altered = self._hook.alter(route, request, exchange.response) if self._hook is not None else None
        return exchange if altered is None else replace(exchange, response=altered.response, altered=altered)

    def _find_caller(self, request: IncomingRequest) -> str:
        """The name of the request's token; empty if none is required.

        Raises:
            RequestRejected: it is missing or not valid.
        """
        return "" if self._find_token is None else protocol.find_caller(request, self._find_token)

    def _look_up(self, route: HubRoute, request: IncomingRequest, request_id: str) -> _Exchange:
        try:
            return _Exchange(request_id, request, protocol.answer(route, request, self._folder, request_id))
        except RequestRejected as rejected:
            return self._rejection(request_id, request, rejected)
        except OSError as error:
            self._log.error("folder_unreadable", reason=(error.strerror or "").lower(), request_id=request_id)
            unreadable = RequestRejected(HTTPStatus.INTERNAL_SERVER_ERROR, "the hub cannot read its folder")
            return self._rejection(request_id, request, unreadable)

    def _rejection(self, request_id: str, request: IncomingRequest | None, rejected: RequestRejected) -> _Exchange:
        path = request.path if request else ""
        return _Exchange(request_id, request, protocol.rejection(rejected, path, request_id))
