"""A folder hub over HTTP in this process, with fault injection, and a client that follows no redirects."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from cli.hub import publish
from common.logs import Logger
from dev.harness.faulty_hub.faults import FaultPlan, parse_faults
from dev.harness.faulty_hub.hook import FaultHook
from hubserver.folder import HubFolder
from hubserver.server import HubServer, HubServerOptions

MODEL = "shapes"
FILES: Mapping[str, bytes] = {
    "configuration.json": b'{"task": "visual-entailment"}',
    "empty": b"",
    "parts/deep/vocab.txt": b"one\ntwo\n",
    "weights.bin": bytes(range(256)) * 1024,
}


@dataclass(frozen=True)
class Got:
    """A complete response."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def row(self) -> Any:  # noqa: ANN401  JSON
        """The body, read as JSON."""
        return json.loads(self.body)


def ask(
    url: str,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> Got:
    """Send a request to a hub on a new connection; redirects are not followed."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    try:
        connection.request(method, target, content, dict(headers or {}))
        answer = connection.getresponse()
        return Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@dataclass
class Hub:
    """A running hub and its log."""

    server: HubServer
    folder: Path
    events: list[dict[str, Any]]
    faults: FaultPlan

    def arm(self, *lines: str) -> None:
        """Replace the injected faults by these."""
        self.faults.arm(parse_faults(lines))

    @property
    def url(self) -> str:
        """The hub's URL."""
        return self.server.url

    def publish(self, revision: str, files: Mapping[str, bytes] | None = None, model: str = MODEL) -> None:
        """Add a revision."""
        made = self.folder.parent / "made" / model / revision
        for name, content in (files or FILES).items():
            path = made / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        publish(made, self.folder, model, revision)

    def get(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, content: bytes | None = None
    ) -> Got:
        """Send a request on a new connection."""
        return ask(self.url, target, method, headers, content)

    def file(self, name: str, revision: str = "v1.0.0", **headers: str) -> Got:
        """Request a file; a header's name has underscores instead of dashes."""
        shown = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.get(f"/api/v1/models/any/{MODEL}/repo?Revision={revision}&FilePath={name}", headers=shown)

    def answered(self) -> list[dict[str, Any]]:
        """The log's lines of requests; ends the hub, since a line comes after its answer."""
        self.server.stop()
        return [line for line in self.events if line["event"] == "request_answered"]


def _logger(events: list[dict[str, Any]]) -> Logger:
    def keep(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        events.append({"level": method, **event})
        raise structlog.DropEvent

    wrapper = structlog.make_filtering_bound_logger(0)
    logger: Logger = structlog.wrap_logger(None, (keep,), wrapper, dict)
    return logger


@contextmanager
def hub(place: Path, options: HubServerOptions | None = None, *, allows_faults: bool = False) -> Iterator[Hub]:
    """Run a hub on an empty folder.

    Args:
        place: the hub's folder is made in it.
        options: address, token and limits.
        allows_faults: whether clients may arm faults over HTTP.
    """
    folder, events = place / "hub", list[dict[str, Any]]()
    folder.mkdir(parents=True, exist_ok=True)
    faults = FaultPlan()
    hook = FaultHook(faults, allows_http=allows_faults)
    server = HubServer(HubFolder(folder), options or HubServerOptions(), _logger(events), hook)
    server.start()
    try:
        yield Hub(server, folder, events, faults)
    finally:
        server.stop()
