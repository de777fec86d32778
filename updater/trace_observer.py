"""Spans of updates, from the look at the hub to the commit: one trace for each, named by the update's id.

The server's calls of an update (LoadSlot, ActivateSlot, CommitSlot …) are spans of the same trace.
"""

import os
from collections.abc import Callable, Sequence
from datetime import datetime

from common.logs import Logger
from common.process_metrics import installed_version
from common.settings import TracesSection
from common.trace_export import SpanExporter
from common.traces import NO_PARENT, SpanKind, TraceContext, make_template, make_trace_id
from updater.core.record import Event, ModelRecord, Update

_ID = 8  # bytes of a span id
_BAD_OUTCOMES = ("REFUSED", "ROLLED_BACK")


def open_exporter(section: TracesSection, log: Logger) -> SpanExporter[bytes] | None:
    """Sends the spans of updates; None without a collector in the settings."""
    service = {"service.name": "hotslot-updater", "service.version": installed_version()}
    return SpanExporter(section.endpoint, section.ca_file, service, log, b"".join) if section.endpoint else None


class TraceObserver:
    """Makes a span of the time before each event of an update, and one of the whole update when it ends."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._last: dict[str, datetime] = {}  # by model: the time of the update's last event

    def record_written(self, record: ModelRecord, events: Sequence[Event]) -> None:
        """Make the spans."""
        for event in events:
            if event.update is not None:
                self._trace(record.model, event, event.update)

    def report_error(self, model: str, error: str, message: str) -> None:
        """Nothing: errors are in the log."""

    def report_crash(self, model: str, error: Exception, failures: int, retry_in_seconds: float) -> None:
        """Nothing: errors are in the log."""

    def _trace(self, model: str, event: Event, update: Update) -> None:
        trace_id = make_trace_id(update.update_id)
        begins = max(self._last.get(model, update.started_at), update.started_at)
        attributes = {"hotslot.model": model, "hotslot.stage": event.stage.value, "hotslot.detail": event.message[:500]}
        root = trace_id[:_ID]
        step = make_template(event.name, SpanKind.INTERNAL, attributes)
        self._put(step.encode_child(trace_id, os.urandom(_ID), root, _nanos(begins), _nanos(event.at)))
        self._last[model] = event.at
        if event.outcome is None:
            return
        self._last.pop(model, None)
        facts = {
            "hotslot.model": model,
            "hotslot.revision": update.revision,
            "hotslot.update_id": update.update_id,
            "hotslot.outcome": event.outcome.value,
            "hotslot.reason": update.reason,
        }
        error = f"{update.reason} {event.message}"[:500] if event.outcome.value in _BAD_OUTCOMES else ""
        whole = make_template(f"update to {update.revision}", SpanKind.INTERNAL, facts, error)
        context = TraceContext(trace_id, NO_PARENT)
        self._put(whole.encode(context, root, _nanos(update.started_at), _nanos(event.at)))


def _nanos(at: datetime) -> int:
    return int(at.timestamp() * 1e9)
