"""The alert relay: queue, workers and endpoint, put together."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from cli.monitoring.relay.channels import DeliveryAttempt
from cli.monitoring.relay.delivery import CAP_SECONDS, TargetWorker
from cli.monitoring.relay.endpoint import RelayEndpoint, RelayHandlers
from cli.monitoring.relay.message import Message
from cli.monitoring.relay.metrics import RelayReporter
from cli.monitoring.relay.notification import Notification
from cli.monitoring.relay.queue import NotificationQueue
from cli.monitoring.relay.settings import RelaySettings, TargetSection
from common.address import parse_address
from common.clock import Clock
from common.durable import read_bounded
from common.logs import Logger
from common.step_threads import StepThreads

STOP_SECONDS = 2.0
_MAX_TOKEN_BYTES = 4096
Send = Callable[[TargetSection, Message], DeliveryAttempt]


class AlertRelay:
    """Receives notifications of Alertmanager and delivers them to people, between `start` and `stop`."""

    def __init__(self, settings: RelaySettings, clock: Clock, log: Logger, send: Send | None = None) -> None:
        """Open the queues.

        Raises:
            OSError: the folder of the queues cannot be used.
        """
        queues = {
            target.name: NotificationQueue(settings.queue_dir / target.name, target.max_waiting)
            for target in settings.targets
        }
        reporter = RelayReporter(log, queues, lambda name: len(queues[name]))
        workers = tuple(
            TargetWorker(target, queues[target.name], send or partial(_send, clock=clock), reporter, clock)
            for target in settings.targets
        )
        self._steps = {_task(worker.target.name): worker.step for worker in workers}
        self._threads = StepThreads(log, CAP_SECONDS)
        accept = {name: partial(self._accept, name, queue) for name, queue in queues.items()}
        read_token = partial(_read_token, settings.token_file)
        handlers = RelayHandlers(accept, reporter.render, read_token, clock, log)
        self._endpoint = RelayEndpoint(handlers, parse_address(settings.host, settings.port))

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._endpoint.port

    def start(self) -> None:
        """Listen, and deliver what waits.

        Raises:
            ListenFailed: says what is wrong with the address.
        """
        self._endpoint.start()
        self._threads.start(self._steps)

    def stop(self) -> None:
        """Stop; what waits stays on disk."""
        self._endpoint.stop()
        self._threads.stop(STOP_SECONDS)

    def _accept(self, name: str, queue: NotificationQueue, notification: Notification) -> None:
        queue.put(notification)
        self._threads.wake(_task(name))


def _task(target: str) -> str:
    return f"target {target}"


def _send(target: TargetSection, message: Message, clock: Clock) -> DeliveryAttempt:
    from cli.monitoring.relay.http_send import send_message  # noqa: PLC0415  the command line loads no HTTP library

    return send_message(target, message, clock)


def _read_token(path: Path | None) -> str:
    """The token of Alertmanager; a file that cannot be read refuses every request."""
    if path is None:
        return ""
    try:
        return read_bounded(path, _MAX_TOKEN_BYTES).decode("ascii").strip() or "\0"
    except (OSError, ValueError):
        return "\0"
