"""Logs of the events."""

from dataclasses import asdict
from typing import Any, Protocol

from inference.server import events

_QUIET_SERVICES = ("grpc.health.v1.Health", "hotslot.status.v1.StatusService")  # logged only on errors
# Logged only on errors: the updater calls the first every second; the others are probes.
_QUIET_METHODS = ("GetStatus", "ServerLive", "ServerReady", "ModelReady")


class LogPort(Protocol):
    """The part of a structured logger that EventLogger uses."""

    def info(self, event: str, **fields: Any) -> Any:  # noqa: ANN401  structlog's type
        """Write a line."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Write a line that an operator should see."""
        ...


class EventLogger:
    """Writes one log line per event, with a fixed name in past tense."""

    def __init__(self, log: LogPort) -> None:
        self._log = log

    def __call__(self, event: events.Event) -> None:
        """Record an event."""
        if isinstance(event, events.CallEnded):
            self._call(event)
        elif isinstance(event, events.SlotChanged):
            fields = asdict(event)
            name = fields.pop("change")
            is_bad = name in ("runner_died", "load_failed")
            shown = {key: value for key, value in fields.items() if value not in ("", 0)}
            (self._log.warning if is_bad else self._log.info)(name, **shown)
        elif isinstance(event, events.SwapDone | events.TrafficChanged):
            fields = asdict(event)
            self._log.info(fields.pop("change"), **fields)
        elif isinstance(event, events.RequestHandedOver):
            self._log.warning("request_handed_over", **asdict(event))
        elif isinstance(event, events.OverloadChanged):
            self._log.warning("overload_begun" if event.is_overloaded else "overload_ended", model=event.model)
        elif isinstance(event, events.CpuFallbackChanged):
            fields = asdict(event)
            name = fields.pop("change")
            (self._log.info if name == "cpu_fallback_ended" else self._log.warning)(name, **fields)

    def _call(self, event: events.CallEnded) -> None:
        is_quiet = event.service in _QUIET_SERVICES or event.method in _QUIET_METHODS
        if is_quiet and event.code == "OK":
            return
        fields: dict[str, Any] = {
            "rpc_service": event.service,
            "rpc_method": event.method,
            "grpc_code": event.code,
            "request_id": event.request_id,
            "seconds": round(event.seconds, 6),
            **dict(event.fields),
        }
        if event.traceparent:
            fields["traceparent"] = event.traceparent
        if event.reason:
            fields["reason"] = event.reason
        if event.kind != "unary":
            fields["received"], fields["sent"] = event.received, event.sent
        self._log.info("call_ended", **fields)
