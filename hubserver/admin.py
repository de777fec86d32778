"""Arming faults over HTTP while the hub runs; answered only where the operator has allowed it.

`GET` tells what is armed, `PUT` arms the lines of its body instead, `DELETE` arms nothing.
"""

from http import HTTPStatus

from hubserver.faults import FaultPlan, FaultUnknown, parse_faults
from hubserver.messages import Answer, Refused

PATH = "/_faults"
_METHODS = "GET, PUT, DELETE"


def answer(method: str, body: bytes, plan: FaultPlan) -> Answer:
    """Do what is asked, and tell what is armed then.

    Raises:
        Refused: a line names no fault, or the method does not fit.
    """
    if method in ("PUT", "DELETE"):
        try:
            plan.arm(parse_faults(body.decode().splitlines() if method == "PUT" else []))
        except (FaultUnknown, UnicodeDecodeError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
    elif method != "GET":
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "faults are told, armed and disarmed", {"Allow": _METHODS})
    told = "".join(f"{line}\n" for line in plan.told())
    return Answer(HTTPStatus.OK, {"Content-Type": "text/plain; charset=utf-8"}, (told.encode(),))
