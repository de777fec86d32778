"""The alert relay: from Alertmanager's notification to the message in the chat."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from cli.monitoring.relay.channels import MAX_TEXT_BYTES, DeliveryAttempt, DeliveryResult, judge_answer
from cli.monitoring.relay.delivery import TargetWorker
from cli.monitoring.relay.endpoint import MAX_CONNECTIONS
from cli.monitoring.relay.http_send import send_message
from cli.monitoring.relay.message import Message, compose_message
from cli.monitoring.relay.notification import Notification, parse_notification
from cli.monitoring.relay.queue import NotificationQueue, QueueFull
from cli.monitoring.relay.service import AlertRelay
from cli.monitoring.relay.settings import RelaySettings, TargetKind, TargetSection
from common import logs
from common.clock import SystemClock
from dev.harness.chat import DINGTALK, FEISHU, PLAIN, SECRET, WECOM, simulated_chat
from tests.cli.conftest import Hotslot, _isolate, hotslot  # noqa: F401  fixtures
from tests.common.clock import SimClock

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PATHS = {
    TargetKind.WECOM: WECOM,
    TargetKind.DINGTALK: DINGTALK,
    TargetKind.FEISHU: FEISHU,
    TargetKind.WEBHOOK: PLAIN,
}


def body(*names: str, status: str = "firing", count: int = 1) -> bytes:
    """What Alertmanager 0.25 posts."""
    alerts = [
        {
            "status": status,
            "labels": {"alertname": name, "model": f"shapes-{number}", "severity": "critical"},
            "annotations": {"summary": "12% of the requests fail", "description": "Why.", "command": "hotslot status"},
            "startsAt": "2026-01-02T03:00:00.123Z",
            "endsAt": "2026-01-02T03:10:00Z" if status == "resolved" else "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus/graph",
            "fingerprint": "abc",
        }
        for name in names
        for number in range(count)
    ]
    return json.dumps({"version": "4", "status": status, "alerts": alerts, "truncatedAlerts": 0}).encode()


def notification(*names: str, status: str = "firing", at: datetime = NOW, count: int = 1) -> Notification:
    """One in the queue."""
    return parse_notification(body(*names, status=status, count=count), at)


def target_of(folder: Path, kind: TargetKind, url: str, **more: Any) -> TargetSection:  # noqa: ANN401  settings
    """A target whose URL is in a file."""
    (folder / "url").write_text(f"{url}\n", encoding="ascii")
    if kind in (TargetKind.DINGTALK, TargetKind.FEISHU):
        (folder / "secret").write_text(SECRET, encoding="ascii")
        more["secret_file"] = folder / "secret"
    return TargetSection(name="ops", kind=kind, url_file=folder / "url", **more)


def test_a_message_says_what_where_and_the_first_command() -> None:
    """Firing and resolved."""
    message = compose_message([notification("HotslotDown")], 4000, NOW)
    assert message.title == "hotslot: HotslotDown, 1 firing"
    for part in ("**FIRING** HotslotDown shapes-0 (critical)", "12% of the requests fail", "first: `hotslot status`"):
        assert part in message.text

    ended = compose_message([notification("HotslotDown", status="resolved")], 4000, NOW)
    assert "**RESOLVED** HotslotDown shapes-0 after 10 min" in ended.text
    assert (message.is_firing, ended.is_firing) == (True, False)


def test_what_waited_is_joined_and_says_that_it_is_late() -> None:
    """An alert that fired and ended meanwhile is told once, with its end."""
    waiting = [notification("A"), notification("B"), notification("A", status="resolved")]
    message = compose_message(waiting, 4000, NOW + timedelta(minutes=10))
    assert message.notifications == 3
    assert message.text.count(" A shapes-0") == 1
    assert "RESOLVED** A" in message.text
    assert "FIRING** B" in message.text
    assert "10 min late" in message.text


def test_a_message_never_exceeds_the_limit_of_the_chat() -> None:
    """In bytes of UTF-8; what does not fit waits for the next message, or is cut if it is one notification."""
    large = notification("A", count=60)
    message = compose_message([large, notification("B")], 4000, NOW)
    assert message.notifications == 1
    assert len(message.text.encode()) <= 4000
    assert compose_message([notification("A"), notification("B", count=60)], 4000, NOW).notifications == 1


@pytest.mark.parametrize(
    ("kind", "status", "content", "result", "reason"),
    [
        (TargetKind.WECOM, 200, b'{"errcode":0,"errmsg":"ok"}', DeliveryResult.DELIVERED, ""),
        (
            TargetKind.WECOM,
            200,
            b'{"errcode":45009,"errmsg":"freq"}',
            DeliveryResult.LATER,
            "RATE_LIMITED",
        ),
        (TargetKind.WECOM, 200, b'{"errcode":93000,"errmsg":"invalid webhook url"}', DeliveryResult.LATER, "REFUSED"),
        (TargetKind.WECOM, 200, b'{"errcode":40058}', DeliveryResult.MALFORMED, "MALFORMED"),
        (TargetKind.WECOM, 200, b"<html>proxy</html>", DeliveryResult.LATER, "NO_CODE"),
        (TargetKind.DINGTALK, 200, b'{"errcode":310000,"errmsg":"sign not match"}', DeliveryResult.LATER, "REFUSED"),
        (TargetKind.DINGTALK, 200, b'{"errcode":130101}', DeliveryResult.LATER, "RATE_LIMITED"),
        (TargetKind.FEISHU, 200, b'{"code":0,"msg":"success"}', DeliveryResult.DELIVERED, ""),
        (TargetKind.FEISHU, 200, b'{"StatusCode":0,"StatusMessage":"success"}', DeliveryResult.DELIVERED, ""),
        (TargetKind.FEISHU, 200, b'{"code":19021,"msg":"sign match fail"}', DeliveryResult.LATER, "REFUSED"),
        (TargetKind.FEISHU, 200, b'{"code":11232}', DeliveryResult.LATER, "RATE_LIMITED"),
        (TargetKind.WEBHOOK, 204, b"", DeliveryResult.DELIVERED, ""),
        (TargetKind.WEBHOOK, 503, b"", DeliveryResult.LATER, "HTTP_503"),
        (TargetKind.WEBHOOK, 401, b"", DeliveryResult.LATER, "REFUSED"),
    ],
)
def test_the_code_in_the_answer_decides(
    kind: TargetKind, status: int, content: bytes, result: DeliveryResult, reason: str
) -> None:
    """HTTP 200 alone says nothing."""
    answer = judge_answer(kind, status, content)
    assert (answer.result, answer.reason) == (result, reason)


@pytest.mark.parametrize("kind", TargetKind)
def test_every_kind_of_chat_accepts_a_message(kind: TargetKind, tmp_path: Path) -> None:
    """Over HTTP, signed where the chat asks for it."""
    message = compose_message([notification("HotslotDown", count=30)], MAX_TEXT_BYTES[kind], NOW)
    with simulated_chat() as chat:
        answer = send_message(target_of(tmp_path, kind, chat.url(PATHS[kind])), message, SystemClock())
    assert answer == DeliveryAttempt(DeliveryResult.DELIVERED)
    assert "HotslotDown" in chat.texts()[0]


@pytest.mark.parametrize(
    "url",
    ["http://chat.example/x", "ftp://a", "", "two words"],
)
def test_a_url_that_would_leak_is_not_used(url: str, tmp_path: Path) -> None:
    """Only https, but for this machine; the reason names the file, not the URL."""
    message = compose_message([notification("A")], 4000, NOW)
    answer = send_message(target_of(tmp_path, TargetKind.WECOM, url), message, SystemClock())
    assert answer.reason == "SECRET_UNUSABLE"
    assert "chat.example" not in answer.detail


class Listener:
    """Records results."""

    def __init__(self) -> None:
        self.delivered_count, self.failures, self.lost_count = 0, [], 0  # type: int, list[str], int

    def delivered(self, target: str, notifications: int) -> None:
        self.delivered_count += notifications

    def failed(self, target: str, answer: DeliveryAttempt) -> None:
        self.failures.append(answer.reason)

    def lost(self, target: str, notifications: int, answer: DeliveryAttempt) -> None:
        self.lost_count += notifications


class Chat:
    """A target of a worker in simulated time."""

    def __init__(self, folder: Path, clock: SimClock, **settings: Any) -> None:  # noqa: ANN401  of the target
        self.answer = DeliveryAttempt(DeliveryResult.DELIVERED)
        self.messages: list[Message] = []
        self.times: list[float] = []
        self.clock, self.listener = clock, Listener()
        target = target_of(folder, TargetKind.WECOM, "https://chat.example", **settings)
        self.queue = NotificationQueue(folder / "queue", target.max_waiting)
        self.worker = TargetWorker(target, self.queue, self._send, self.listener, clock)

    def _send(self, target: TargetSection, message: Message) -> DeliveryAttempt:
        self.times.append(self.clock.monotonic())
        if self.answer.result is DeliveryResult.DELIVERED:
            self.messages.append(message)
        return self.answer

    def run(self, seconds: float) -> None:
        """Let time pass."""
        ends = self.clock.monotonic() + seconds
        while self.clock.monotonic() < ends:
            pause = self.worker.step()
            self.clock.advance(ends - self.clock.monotonic() if pause is None else max(pause, 0.001))


def test_nothing_is_lost_when_the_chat_is_away_for_ten_minutes(tmp_path: Path) -> None:
    """What fired and ended meanwhile is told too, in order, and with few messages."""
    chat = Chat(tmp_path, SimClock())
    chat.answer = DeliveryAttempt(DeliveryResult.LATER, "UNREACHABLE")
    for number in range(40):
        chat.queue.put(notification(f"Alert{number}", at=chat.clock.now()))
        chat.run(7.5)
        if number % 2:
            chat.queue.put(notification(f"Alert{number}", status="resolved", at=chat.clock.now()))
            chat.run(7.5)
    assert chat.clock.monotonic() - chat.times[0] >= 440
    chat.run(160)
    assert chat.messages == []

    chat.answer = DeliveryAttempt(DeliveryResult.DELIVERED)
    chat.run(120)
    told = {alert.name: alert.is_firing for message in chat.messages for alert in message.alerts}  # the last state
    assert told == {f"Alert{number}": number % 2 == 0 for number in range(40)}
    assert len(chat.messages) <= 4
    assert (chat.listener.delivered_count, chat.listener.lost_count, len(chat.queue)) == (60, 0, 0)


def test_no_more_messages_a_minute_than_allowed(tmp_path: Path) -> None:
    """A robot that gets more refuses all of them for a while."""
    chat = Chat(tmp_path, SimClock(), messages_a_minute=5)
    for number in range(60):
        chat.queue.put(notification(f"Alert{number}", count=20, at=chat.clock.now()))
        chat.run(1)
    chat.run(600)
    assert len(chat.queue) == 0
    for start in chat.times:
        assert sum(start <= at < start + 60 for at in chat.times) <= 5


def test_a_message_that_the_chat_will_never_accept_does_not_block_the_others(tmp_path: Path) -> None:
    """It is counted as lost."""
    chat = Chat(tmp_path, SimClock())
    chat.answer = DeliveryAttempt(DeliveryResult.MALFORMED, "MALFORMED", "40058")
    chat.queue.put(notification("A"))
    chat.run(1)
    assert (chat.listener.lost_count, len(chat.queue)) == (1, 0)


def test_the_queue_survives_a_restart_and_is_bounded(tmp_path: Path) -> None:
    """A damaged file costs itself alone."""
    queue = NotificationQueue(tmp_path, 3)
    for name in ("A", "B", "C"):
        queue.put(notification(name))
    with pytest.raises(QueueFull):
        queue.put(notification("D"))
    (tmp_path / "000000000002.json").write_bytes(b"{")

    again = NotificationQueue(tmp_path, 3)
    assert [one.alerts[0].name for one in again.peek(10)] == ["A", "C"]
    again.put(notification("D"))
    again.remove(1)
    assert [one.alerts[0].name for one in NotificationQueue(tmp_path, 3).peek(10)] == ["C", "D"]


@contextmanager
def relaying(folder: Path, **settings: Any) -> Iterator[AlertRelay]:  # noqa: ANN401  of the relay
    """A relay to a plain receiver."""
    relay = AlertRelay(RelaySettings(port=0, queue_dir=folder / "queues", **settings), SystemClock(), logs.get_logger())
    relay.start()
    try:
        yield relay
    finally:
        relay.stop()


def post(port: int, path: str, content: bytes, method: str = "POST", **headers: str) -> tuple[int, str]:
    """One request; status and text of the response."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, content or None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_a_notification_reaches_the_chat(tmp_path: Path) -> None:
    """Over HTTP from end to end; metrics count it."""
    with simulated_chat() as chat:
        target = target_of(tmp_path, TargetKind.WECOM, chat.url(WECOM))
        with relaying(tmp_path, targets=(target,)) as relay:
            assert post(relay.port, "/alerts/ops", body("HotslotDown"))[0] == 200
            assert chat.came.acquire(timeout=10)
            assert post(relay.port, "/health", b"", "GET") == (200, "SERVING\n")
            metrics = post(relay.port, "/metrics", b"", "GET")[1]
    assert "HotslotDown" in chat.texts()[0]
    assert "hotslot_alert_relay_waiting" in metrics


def test_clients_that_send_nothing_or_half_a_request_lose_no_alert(tmp_path: Path) -> None:
    """However many connect; and the body of a request without the token is not waited for."""
    target = target_of(tmp_path, TargetKind.WECOM, "http://127.0.0.1:9/")
    (tmp_path / "token").write_text("word\n", encoding="ascii")
    half = b"POST /alerts/ops HTTP/1.1\r\nAuthorization: Bearer word\r\nContent-Length: 900\r\n\r\n{"
    with relaying(tmp_path, targets=(target,), token_file=tmp_path / "token") as relay, ExitStack() as stack:
        for number in range(3 * MAX_CONNECTIONS):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=10))
            if number % 3:
                idle.sendall(half[: number * 2])
        idle = stack.enter_context(socket.create_connection(("127.0.0.1", relay.port), timeout=10))
        idle.sendall(b"POST /alerts/ops HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert idle.recv(12) == b"HTTP/1.0 401"
        assert post(relay.port, "/alerts/ops", body("A"), Authorization="Bearer word")[0] == 200


def test_what_cannot_be_accepted_is_refused(tmp_path: Path) -> None:
    """Alertmanager repeats after 5xx alone: a full queue is one."""
    target = target_of(tmp_path, TargetKind.WECOM, "http://127.0.0.1:9/", max_waiting=1)
    (tmp_path / "token").write_text("word\n", encoding="ascii")
    with relaying(tmp_path, targets=(target,), token_file=tmp_path / "token") as relay:
        good = {"Authorization": "Bearer word"}
        assert post(relay.port, "/alerts/ops", body("A"))[0] == 401
        assert post(relay.port, "/alerts/other", body("A"), **good)[0] == 404
        assert post(relay.port, "/alerts/ops", b"[]", **good)[0] == 400
        assert post(relay.port, "/alerts/ops", body("A"), **good)[0] == 200
        assert post(relay.port, "/alerts/ops", body("B"), **good)[0] == 503
    assert len(NotificationQueue(tmp_path / "queues" / "ops", 1)) == 1


def test_settings_are_checked_at_once(hotslot: Hotslot, tmp_path: Path) -> None:  # noqa: F811
    """All mistakes with their keys."""
    good = '[[targets]]\nname = "ops"\nkind = "wecom"\nurl_file = "url"\n'
    (tmp_path / "relay.toml").write_text(good, encoding="utf-8")
    assert hotslot("alert-relay", "relay.toml", "--check").code == 0

    bad = f"{good}{good}kinds = 1\n".replace("ops", "OPS")
    (tmp_path / "relay.toml").write_text(bad, encoding="utf-8")

    ended = hotslot("alert-relay", "relay.toml", "--check")
    assert ended.code == 2
    assert "targets[0].name" in ended.err
    assert "targets[1].kinds" in ended.err


def test_the_page_names_every_setting() -> None:
    """docs/alert-relay.md."""
    page = (Path(__file__).parents[2] / "docs/alert-relay.md").read_text(encoding="utf-8")
    keys = [*RelaySettings.model_fields, *TargetSection.model_fields]
    assert [key for key in keys if f"`{key}`" not in page and f"[[{key}]]" not in page] == []
