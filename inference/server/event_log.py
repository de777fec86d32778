"""Logs of the events."""

from dataclasses import asdict
from typing import Any, Protocol

from common.logs import put_info
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

    def handlers(self) -> events.Handlers:
        """The function that logs each kind of event."""
        return {
            events.CallEnded: self._call,
            events.SlotChanged: self._slot_changed,
            events.SwapDone: self._changed,
            events.TrafficChanged: self._changed,
            events.RequestHandedOver: self._handed_over,
            events.OverloadChanged: self._overload_changed,
            events.CpuFallbackChanged: self._cpu_fallback_changed,
        }

    def _slot_changed(self, event: events.SlotChanged) -> None:
        fields = asdict(event)
        name = fields.pop("change")
        is_bad = name in ("runner_died", "load_failed")
        shown = {key: value for key, value in fields.items() if value not in ("", 0)}
        (self._log.warning if is_bad else self._log.info)(name, **shown)

    def _changed(self, event: events.SwapDone | events.TrafficChanged) -> None:
        fields = asdict(event)
        self._log.info(fields.pop("change"), **fields)

    def _handed_over(self, event: events.RequestHandedOver) -> None:
        self._log.warning("request_handed_over", **asdict(event))

    def _overload_changed(self, event: events.OverloadChanged) -> None:
        self._log.warning("overload_begun" if event.is_overloaded else "overload_ended", model=event.model)

    def _cpu_fallback_changed(self, event: events.CpuFallbackChanged) -> None:
        fields = asdict(event)
        name = fields.pop("change")
        (self._log.info if name == "cpu_fallback_ended" else self._log.warning)(name, **fields)

    def _call(self, event: events.CallEnded) -> None:
        if event.code == "OK" and (event.service in _QUIET_SERVICES or event.method in _QUIET_METHODS):
            return
        fields: dict[str, object] = {
            "event": "call_ended",
            "rpc_service": event.service,
            "rpc_method": event.method,
            "grpc_code": event.code,
            "request_id": event.request_id,
            "seconds": round(event.seconds, 6),
        }
        fields.update(event.fields)
        if event.traceparent:
            fields["traceparent"] = event.traceparent
        if event.reason:
            fields["reason"] = event.reason
        if event.kind != "unary":
            fields["received"], fields["sent"] = event.received, event.sent
        put_info(fields)
