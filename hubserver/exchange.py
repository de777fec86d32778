"""One request and its answer on a connection, and the line in the log that tells of it."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

from common.logs import Logger
from hubserver import admin, protocol
from hubserver.connection import Connection, HeadTooLarge
from hubserver.falsify import falsified
from hubserver.faults import Fault, FaultPlan
from hubserver.folder import HubFolder
from hubserver.messages import MAX_HEAD_BYTES, Answer, Refused, Request, read_head
from hubserver.misdeliver import SENT_WRONGLY, misdeliver
from hubserver.protocol import Kind, Route

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_SHOWN = 300  # characters of a target in the log
_OPEN_TO_ALL = (Kind.HOME, Kind.REGION)  # asked by clients that have not shown a token yet


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request as far as it was understood, and what is answered."""

    request_id: str
    request: Request | None
    answer: Answer
    fault: Fault | None = None

    @property
    def is_head(self) -> bool:
        return self.request is not None and self.request.method == "HEAD"

    @property
    def keeps_alive(self) -> bool:
        """What follows a request that was not understood cannot be told from its body."""
        return self.request is not None and self.request.keeps_alive and not self.request.body_bytes


class Exchanges:
    """What a connection's thread does, request by request; shared by all threads."""

    def __init__(self, folder: HubFolder, token: str, log: Logger, faults: FaultPlan, *, allows_faults: bool) -> None:
        """Take what every answer needs.

        Args:
            folder: what is handed out.
            token: must be shown; empty: everybody may ask.
            log: is told one event a request.
            faults: what goes wrong on command.
            allows_faults: whether they may be armed over HTTP.
        """
        self._folder = folder
        self._token = token
        self._log = log
        self._faults = faults
        self._allows_faults = allows_faults

    def serve(self, connection: Connection, client: str, goes_on: Callable[[], bool]) -> None:
        """Answer one request after the other until the client has no more, or this hub ends.

        Raises:
            OSError: the client is gone, or too slow.
        """
        while goes_on():
            try:
                head = connection.receive_head()
            except HeadTooLarge:
                sentence = f"a head has at most {MAX_HEAD_BYTES} bytes"
                refused = Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, sentence)
                self._finish(connection, client, self._refusal(uuid.uuid4().hex, None, refused))
                return
            if head is None or not self._finish(connection, client, self._understood(connection, head)):
                return

    def _finish(self, connection: Connection, client: str, exchange: _Exchange) -> bool:
        """Send an answer and tell of it; False: the connection has had its last."""
        started = connection.clock.monotonic()
        ended = "sent"
        try:
            if exchange.fault is not None and exchange.fault.wrong in SENT_WRONGLY and not exchange.is_head:
                misdeliver(connection, exchange.answer, exchange.fault)
                return False
            connection.send(exchange.answer, keeps_alive=exchange.keeps_alive, with_body=not exchange.is_head)
        except OSError as error:
            ended = type(error).__name__
            raise
        finally:
            exchange.answer.close()
            self._tell(exchange, client, connection.sent_bytes, connection.clock.monotonic() - started, ended)
        return exchange.keeps_alive

    def _tell(self, exchange: _Exchange, client: str, sent_bytes: int, seconds: float, ended: str) -> None:
        request = exchange.request
        shown = request.headers if request else {}
        self._log.info(
            "request_answered",
            client=client,
            method=request.method[:16] if request else "",
            target=request.target[:_MAX_SHOWN] if request else "",
            range=shown.get("range", "")[:_MAX_SHOWN],
            has_token="authorization" in shown or "m_session_id" in shown.get("cookie", ""),
            status=exchange.answer.status.value,
            bytes=sent_bytes,
            seconds=round(seconds, 4),
            ended=ended,
            fault=exchange.fault.text if exchange.fault else "",
            request_id=exchange.request_id,
        )

    def _understood(self, connection: Connection, head: bytes) -> _Exchange:
        request: Request | None = None
        request_id = uuid.uuid4().hex
        try:
            request = read_head(head)
            shown = request.headers.get("x-request-id", "")
            request_id = shown if _REQUEST_ID.fullmatch(shown) else request_id
            if self._allows_faults and request.path == admin.PATH:
                return _Exchange(request_id, request, self._administered(connection, request))
            return self._answered(request, request_id)
        except Refused as refused:
            return self._refusal(request_id, request, refused)

    def _administered(self, connection: Connection, request: Request) -> Answer:
        if self._token:
            protocol.check_token(request, self._token)
        return admin.answer(request.method, connection.receive_body(request.body_bytes), self._faults)

    def _answered(self, request: Request, request_id: str) -> _Exchange:
        if request.method not in ("GET", "HEAD") or request.body_bytes:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this hub is read only", {"Allow": "GET, HEAD"})
        route = protocol.route_of(request)
        if self._token and route.kind not in _OPEN_TO_ALL:
            protocol.check_token(request, self._token)
        fault = self._faults.take(route)
        exchange = self._looked_up(route, request, request_id)
        if fault is None:
            return exchange
        return replace(exchange, answer=falsified(exchange.answer, fault, route, request), fault=fault)

    def _looked_up(self, route: Route, request: Request, request_id: str) -> _Exchange:
        try:
            return _Exchange(request_id, request, protocol.answer(route, request, self._folder, request_id))
        except Refused as refused:
            return self._refusal(request_id, request, refused)
        except OSError as error:
            self._log.error("folder_unreadable", reason=(error.strerror or "").lower(), request_id=request_id)
            unreadable = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the hub cannot read its folder")
            return self._refusal(request_id, request, unreadable)

    def _refusal(self, request_id: str, request: Request | None, refused: Refused) -> _Exchange:
        path = request.path if request else ""
        return _Exchange(request_id, request, protocol.refusal(refused, path, request_id))
