"""Injects faults into the responses of a hub server, and arms them over HTTP where that is allowed.

`GET /_faults` returns the armed faults, `PUT` replaces them by the lines of its body, `DELETE` removes them.
"""

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from dev.harness.faulty_hub.faults import FaultPlan, FaultUnknown, parse_faults
from dev.harness.faulty_hub.injection import FAULTS_OF_SENDING, alter_response, send_with_fault
from hubserver.handler import AlteredResponse
from hubserver.http import IncomingRequest, OutgoingResponse, RequestRejected
from hubserver.protocol import HubRoute

PATH = "/_faults"
_METHODS = "GET, PUT, DELETE"


@dataclass(frozen=True, slots=True)
class FaultHook:
    """The hook of a hub server that a plan of faults controls."""

    plan: FaultPlan
    allows_http: bool = False  # whether clients may arm faults

    def handles(self, request: IncomingRequest) -> bool:
        """Whether a request arms or lists faults."""
        return self.allows_http and request.path == PATH

    def respond(self, request: IncomingRequest, body: bytes) -> OutgoingResponse:
        """Arm faults, and return those that are armed now.

        Raises:
            RequestRejected: a line names no fault, or the method is wrong.
        """
        if request.method in ("PUT", "DELETE"):
            try:
                self.plan.arm(parse_faults(body.decode().splitlines() if request.method == "PUT" else []))
            except (FaultUnknown, UnicodeDecodeError) as error:
                raise RequestRejected(HTTPStatus.BAD_REQUEST, str(error)) from error
        elif request.method != "GET":
            raise RequestRejected(HTTPStatus.METHOD_NOT_ALLOWED, f"allowed: {_METHODS}", {"Allow": _METHODS})
        lines = "".join(f"{line}\n" for line in self.plan.lines())
        return OutgoingResponse(HTTPStatus.OK, {"Content-Type": "text/plain; charset=utf-8"}, (lines.encode(),))

    def alter(self, route: HubRoute, request: IncomingRequest, response: OutgoingResponse) -> AlteredResponse | None:
        """Apply the fault that is due for this request, if there is one."""
        fault = self.plan.take(route)
        if fault is None:
            return None
        send = partial(send_with_fault, fault) if fault.kind in FAULTS_OF_SENDING else None
        return AlteredResponse(alter_response(response, fault, route, request), fault.text, send)
