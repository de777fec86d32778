"""grpc.health.v1 on the updates socket: for each model, and "" for all, whether its updates make progress."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name


class UpdaterHealth:
    """The handlers `Check` and `List`. Called in threads of the gRPC server."""

    def __init__(self, states: Callable[[], Mapping[str, bool]]) -> None:
        """Read nothing yet.

        Args:
            states: returns for each model whether its loop runs.
        """
        self._states = states

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers to register with a gRPC server."""
        check = grpc.unary_unary_rpc_method_handler(
            self._check, health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        )
        list_ = grpc.unary_unary_rpc_method_handler(
            self._list, health_pb2.HealthListRequest.FromString, health_pb2.HealthListResponse.SerializeToString
        )
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {"Check": check, "List": list_}
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, handlers)

    def _check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        states = self._all()
        if request.service not in states:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service name")
        return health_pb2.HealthCheckResponse(status=_status(is_running=states[request.service]))

    def _list(self, _request: health_pb2.HealthListRequest, _context: object) -> health_pb2.HealthListResponse:
        response = health_pb2.HealthListResponse()
        for name, is_running in self._all().items():
            response.statuses[name].status = _status(is_running=is_running)
        return response

    def _all(self) -> dict[str, bool]:
        states = dict(self._states())
        return {**states, "": all(states.values())}


def _status(*, is_running: bool) -> "health_pb2.HealthCheckResponse.ServingStatus.ValueType":
    return health_pb2.HealthCheckResponse.SERVING if is_running else health_pb2.HealthCheckResponse.NOT_SERVING
