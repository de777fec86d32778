"""Receives the spans of the real stack with the protos of OpenTelemetry's SDK, over OTLP/gRPC, and prints its traces.

    PYTHONPATH=.tools/otel python -m dev.watch.spans

The stack sends to OpenTelemetry's Collector, which sends on what it has understood. `dev/scripts/tools-watch` builds it
where there is a Go compiler; without it the spans come straight here, and the output says so.
"""

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from dev.harness.process import ROOT, free_port
from dev.harness.supervised import ScriptedStack
from dev.watch.drill_stack import pause

_PACKAGE = "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
COLLECTOR = ROOT / ".tools" / "bin" / "otel-collector"
START_SECONDS = 30.0
CONFIG = """\
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: 127.0.0.1:{port}
exporters:
  otlp:
    endpoint: 127.0.0.1:{target}
    tls:
      insecure: true
service:
  telemetry:
    metrics:
      level: none
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [otlp]
"""
CALL_CHILDREN = {"receive", "queue", "compute", "answer"}
PREDICT = "hotslot.entailment.v1.EntailmentService/Predict"


class Receiver:
    """A TraceService of the SDK's stub; keeps what it gets."""

    def __init__(self) -> None:
        self._messages, self._stubs = importlib.import_module(_PACKAGE), importlib.import_module(f"{_PACKAGE}_grpc")
        self.spans: list[tuple[str, Any]] = []  # service and span
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._stubs.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(self, request: Any, _context: grpc.ServicerContext) -> Any:  # noqa: ANN401, N802  the stub's
        """Keep the spans."""
        for group in request.resource_spans:
            names = [row.value.string_value for row in group.resource.attributes if row.key == "service.name"]
            self.spans += [(names[0], span) for scope in group.scope_spans for span in scope.spans]
        return self._messages.ExportTraceServiceResponse()

    def stop(self) -> None:
        """Stop listening."""
        self._server.stop(0.5).wait()


@contextlib.contextmanager
def collector(folder: Path, target: int) -> Iterator[int]:
    """OpenTelemetry's Collector, which sends on to a port; yields its own. Without the program: the same port.

    Raises:
        TimeoutError: it does not listen in time.
    """
    if not COLLECTOR.exists():
        print("the collector is not built: spans are received by the SDK's stub alone")
        yield target
        return
    port, config = free_port(), folder / "collector.yaml"
    config.write_text(CONFIG.format(port=port, target=target), encoding="utf-8")
    with (
        (folder / "collector.log").open("wb") as log,
        subprocess.Popen([COLLECTOR, "--config", f"file:{config}"], stdout=log, stderr=log) as child,
    ):
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(START_SECONDS)
            yield port
        finally:
            child.terminate()
            code = child.wait(START_SECONDS)  # it sends what it holds
            text = (folder / "collector.log").read_text(errors="replace")
            print(f"OpenTelemetry's Collector ended with {code}; refused or dropped: {text.count('dropp')}")


def collect() -> list[tuple[str, Any]]:
    """Spans of a stack under load with an update, a rollback and a killed runner."""
    receiver = Receiver()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hotslot-spans-") as place,
            collector(Path(place), receiver.port) as port,
        ):
            traces = {"endpoint": f"127.0.0.1:{port}", "share": 1.0}
            with ScriptedStack(Path(place), sections={"traces": traces}) as stack:
                with stack.load(clients=2):
                    stack.publish("v1.1.0")
                    stack.wait_committed("v1.1.0")
                    stack.publish_bad("v1.2.0")
                    stack.wait(lambda: stack.outcome("v1.2.0"), "the bad revision is rolled back")
                    os.kill(stack.control.active().pid, signal.SIGKILL)
                    pause(5)
                stack.end()
    finally:
        receiver.stop()
    return receiver.spans


def main() -> int:
    """Print what came; 1 if a trace is not whole."""
    spans = collect()
    traces: dict[bytes, list[tuple[str, Any]]] = defaultdict(list)
    for service, span in spans:
        traces[span.trace_id].append((service, span))
    calls = [rows for rows in traces.values() if any(span.name == PREDICT for _, span in rows)]
    whole = [rows for rows in calls if {span.name for _, span in rows} >= CALL_CHILDREN]
    handed = sum(any(span.name == "hand_over" for _, span in rows) for rows in calls)
    updates = [rows for rows in traces.values() if any(span.name.startswith("update to") for _, span in rows)]
    both = [rows for rows in updates if len({service for service, _ in rows}) == 2]
    broken = sum(bool(_find_orphans(rows)) for rows in traces.values())
    print(f"{len(spans)} spans, {len(traces)} traces, {len(calls)} calls, {len(whole)} whole, {handed} handed over")
    print(f"{len(updates)} updates, {len(both)} with spans of both processes; {broken} traces lack a parent")
    for rows in updates:
        root = next(span for _, span in rows if span.name.startswith("update to"))
        print(f"  {root.name}, {(root.end_time_unix_nano - root.start_time_unix_nano) / 1e9:.1f} s")
        for service, span in sorted(rows, key=lambda row: (row[1].start_time_unix_nano, -row[1].end_time_unix_nano)):
            if span is not root:
                since = (span.start_time_unix_nano - root.start_time_unix_nano) / 1e9
                lasted = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
                print(f"    {since:7.3f} s  {lasted:7.3f} s  {service.removeprefix('hotslot-'):8} {span.name}")
    return 0 if calls and len(whole) > 0.9 * len(calls) and handed and both and not broken else 1


def _find_orphans(rows: list[tuple[str, Any]]) -> list[str]:
    """Spans whose parent is not in their trace."""
    known = {span.span_id for _, span in rows}
    return [span.name for _, span in rows if span.parent_span_id and span.parent_span_id not in known]


if __name__ == "__main__":
    sys.exit(main())
