"""The service grpc.health.v1: Check, Watch and List."""

import grpc
from grpc_health.v1 import health_pb2

from common.errors import NotFound
from inference.server.api.interceptors import Context
from inference.server.health import HealthBoard

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthApi:
    """grpc.health.v1: Check, Watch and List. Exempt from admission."""

    def __init__(self, board: HealthBoard) -> None:
        self._board = board

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        parse = health_pb2.HealthCheckRequest.FromString
        write = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, parse, write),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, parse, write),
                "List": grpc.unary_unary_rpc_method_handler(
                    self.list, health_pb2.HealthListRequest.FromString, health_pb2.HealthListResponse.SerializeToString
                ),
            },
        )

    async def check(self, request: health_pb2.HealthCheckRequest, _context: Context) -> health_pb2.HealthCheckResponse:
        """The state of a name.

        Raises:
            NotFound: there is no such name.
        """
        state = self._board.is_serving(request.service)
        if state is None:
            raise NotFound(
                "health knows no such service", reason="SERVICE_UNKNOWN", resource=("service", request.service[:128])
            )
        return health_pb2.HealthCheckResponse(status=_SERVING if state else _NOT_SERVING)

    async def watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """The state of a name now and whenever it changes, until the server drains."""
        last = None
        while True:
            changed = self._board.changed.next()
            state = self._board.is_serving(request.service)
            status = _UNKNOWN if state is None else _SERVING if state else _NOT_SERVING
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            if self._board.has_ended:
                return
            await changed.wait()

    async def list(self, _request: health_pb2.HealthListRequest, _context: Context) -> health_pb2.HealthListResponse:
        """Every name with its state."""
        response = health_pb2.HealthListResponse()
        for name, state in self._board.snapshot().items():
            response.statuses[name].status = _SERVING if state else _NOT_SERVING
        return response
