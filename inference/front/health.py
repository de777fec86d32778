"""Truthful health: what grpc.health.v1 says under each name, and who watches it."""

import asyncio
from collections.abc import Callable, Mapping

import grpc
from grpc_health.v1 import health_pb2

from common.errors import NotFound
from inference.front.api.interceptors import Context
from inference.front.events import Broadcast

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthBoard:
    """The names and their state. Everything starts NOT_SERVING."""

    def __init__(self, names: list[str]) -> None:
        self._is_serving: dict[str, bool] = dict.fromkeys(names, False)
        self.changed = Broadcast()
        self.has_ended = False

    def post(self, states: Mapping[str, bool]) -> list[tuple[str, bool]]:
        """Take in the truth as it is now.

        Returns:
            The names whose state has changed.
        """
        changes = [(name, state) for name, state in states.items() if self._is_serving.get(name) != state]
        if changes:
            self._is_serving.update(states)
            self.changed.notify()
        return changes

    def end(self) -> None:
        """The server is about to stop: watchers are told the last state and let go."""
        self.has_ended = True
        self.changed.notify()

    def is_serving(self, name: str) -> bool | None:
        """The state of a name; None if there is no such name."""
        return self._is_serving.get(name)

    def snapshot(self) -> dict[str, bool]:
        """Every name with its state."""
        return dict(self._is_serving)


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


class LoopLag:
    """How long the event loop was held up, over the last minute or so."""

    def __init__(self, now: Callable[[], float], interval_seconds: float = 0.25) -> None:
        self._now = now
        self._interval = interval_seconds
        self._samples: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        keep = int(60 / self._interval)
        while True:
            before = self._now()
            await asyncio.sleep(self._interval)
            self._samples.append(max(0.0, self._now() - before - self._interval))
            del self._samples[:-keep]

    @property
    def worst_seconds(self) -> float:
        """The longest hold-up that was seen."""
        return max(self._samples, default=0.0)
