"""One request and its answer on a connection, and the line in the log that tells of it."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from common.logs import Logger
from standin import protocol
from standin.connection import Connection, HeadTooLarge
from standin.folder import HubFolder
from standin.messages import MAX_HEAD_BYTES, Answer, Refused, Request, Span, read_head
from standin.protocol import Kind

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_MAX_SHOWN = 300  # characters of a target in the log
_OPEN_TO_ALL = (Kind.HOME, Kind.REGION)  # asked by clients that have not shown a token yet


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A request as far as it was understood, and what is answered."""

    request: Request | None
    request_id: str
    answer: Answer


class Exchanges:
    """What a connection's thread does, request by request; shared by all threads."""

    def __init__(self, folder: HubFolder, token: str, log: Logger) -> None:
        """Take what every answer needs.

        Args:
            folder: what is handed out.
            token: must be shown; empty: everybody may ask.
            log: is told one event a request.
        """
        self._folder = folder
        self._token = token
        self._log = log

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
                self._finish(connection, client, self._refusal(None, refused, uuid.uuid4().hex))
                return
            if head is None or not self._finish(connection, client, self._understood(head)):
                return

    def _finish(self, connection: Connection, client: str, exchange: _Exchange) -> bool:
        """Send an answer and tell of it; False: the connection has had its last."""
        request, answer = exchange.request, exchange.answer
        started = connection.clock.monotonic()
        # What follows a request that was not understood cannot be told from its body.
        keeps_alive = request is not None and request.keeps_alive and not request.body_bytes
        is_head = request is not None and request.method == "HEAD"
        ended = "sent"
        try:
            connection.send(answer, keeps_alive=keeps_alive, with_body=not is_head)
        except OSError as error:
            ended = type(error).__name__
            raise
        finally:
            if isinstance(answer.body, Span):
                answer.body.file.close()
            self._log.info(
                "request_answered",
                client=client,
                method=request.method[:16] if request else "",
                target=request.target[:_MAX_SHOWN] if request else "",
                range=request.headers.get("range", "")[:_MAX_SHOWN] if request else "",
                status=answer.status.value,
                bytes=connection.sent_bytes,
                seconds=round(connection.clock.monotonic() - started, 4),
                ended=ended,
                request_id=exchange.request_id,
            )
        return keeps_alive

    def _understood(self, head: bytes) -> _Exchange:
        request: Request | None = None
        request_id = uuid.uuid4().hex
        try:
            request = read_head(head)
            shown = request.headers.get("x-request-id", "")
            request_id = shown if _REQUEST_ID.fullmatch(shown) else request_id
            return _Exchange(request, request_id, self._answer(request, request_id))
        except Refused as refused:
            return self._refusal(request, refused, request_id)
        except OSError as error:
            self._log.error("folder_unreadable", reason=(error.strerror or "").lower(), request_id=request_id)
            unreadable = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the hub cannot read its folder")
            return self._refusal(request, unreadable, request_id)

    def _refusal(self, request: Request | None, refused: Refused, request_id: str) -> _Exchange:
        path = request.path if request else ""
        return _Exchange(request, request_id, protocol.refusal(refused, path, request_id))

    def _answer(self, request: Request, request_id: str) -> Answer:
        if request.method not in ("GET", "HEAD") or request.body_bytes:
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this hub is read only", {"Allow": "GET, HEAD"})
        route = protocol.route_of(request)
        if self._token and route.kind not in _OPEN_TO_ALL:
            protocol.check_token(request, self._token)
        return protocol.answer(route, request, self._folder, request_id)
