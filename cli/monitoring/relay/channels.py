"""What each kind of target is sent, and what its answer means. Pure.

The robots of WeCom, DingTalk and Feishu answer HTTP 200 also when they refuse a message: the code in the body decides.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote_plus

from cli.monitoring.relay.message import Message
from cli.monitoring.relay.settings import TargetKind
from common.json_load import load_json

MAX_TEXT_BYTES: Mapping[TargetKind, int] = {
    TargetKind.WECOM: 4000,  # documented limit: 4096
    TargetKind.DINGTALK: 18_000,  # 20,000 for the whole body
    TargetKind.FEISHU: 18_000,  # 20 KB for the whole body
    TargetKind.WEBHOOK: 100_000,
}
SCHEMA_VERSION = 1
_MAX_DETAIL_CHARS = 200
# Codes for "too many messages" and "busy": the same message is accepted later.
_LIMITED = frozenset({"45009", "45033", "130101", "130102", "410100", "11232", "9499"})
_BUSY = frozenset({"-1", "-2", "15", "88"})
# Codes for a message that no repetition makes acceptable.
_MALFORMED = frozenset({"40008", "40058", "44004", "45002", "40035", "43004", "400102", "19002", "10002"})
_LATER_STATUSES = frozenset({408, 423, 425, 429})


class DeliveryResult(StrEnum):
    """The result of a delivery attempt."""

    DELIVERED = "delivered"
    LATER = "later"  # the same message may be accepted later
    MALFORMED = "malformed"  # this message never will


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """The result of one attempt, and its reason."""

    result: DeliveryResult
    reason: str = ""  # for metrics: RATE_LIMITED, BUSY, REFUSED, HTTP_500 …
    detail: str = ""  # for the log: the robot's code and sentence


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to a target: address, headers and body."""

    url: str
    headers: Mapping[str, str]
    body: bytes


def encode_message(kind: TargetKind, url: str, message: Message, now: datetime, *, secret: str, token: str) -> Outgoing:
    """The request of a message.

    Args:
        kind: what the target speaks.
        url: the robot's, with its key.
        message: at most MAX_TEXT_BYTES of text.
        now: for signatures, which are valid for an hour.
        secret: of signed messages; empty: not signed.
        token: of a plain webhook; empty: none.
    """
    headers = {"Content-Type": "application/json; charset=utf-8"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    row: dict[str, Any]
    match kind:
        case TargetKind.WECOM:
            row = {"msgtype": "markdown", "markdown": {"content": message.text}}
        case TargetKind.DINGTALK:
            row = {"msgtype": "markdown", "markdown": {"title": message.title, "text": message.text}}
            if secret:
                url = _sign_dingtalk(url, secret, now)
        case TargetKind.FEISHU:
            row = _feishu(message, secret, now)
        case TargetKind.WEBHOOK:
            row = _plain(message)
    return Outgoing(url, headers, json.dumps(row, ensure_ascii=False).encode())


def judge_answer(kind: TargetKind, status: int, body: bytes) -> DeliveryAttempt:
    """The result that a response stands for.

    Args:
        kind: what the target speaks.
        status: of HTTP.
        body: its beginning.
    """
    if status >= 500 or status in _LATER_STATUSES:  # noqa: PLR2004  HTTP's own numbers
        return DeliveryAttempt(DeliveryResult.LATER, f"HTTP_{status}")
    if not 200 <= status < 300:  # noqa: PLR2004
        return DeliveryAttempt(DeliveryResult.LATER, "REFUSED", f"HTTP {status}")
    if kind is TargetKind.WEBHOOK:
        return DeliveryAttempt(DeliveryResult.DELIVERED)
    code, sentence = _read_code(body)
    detail = f"{code} {sentence}"[:_MAX_DETAIL_CHARS]
    if code == "0":
        return DeliveryAttempt(DeliveryResult.DELIVERED)
    if code in _MALFORMED:
        return DeliveryAttempt(DeliveryResult.MALFORMED, "MALFORMED", detail)
    reason = "RATE_LIMITED" if code in _LIMITED else "BUSY" if code in _BUSY else "REFUSED"
    return DeliveryAttempt(DeliveryResult.LATER, reason if code else "NO_CODE", detail)


def _read_code(body: bytes) -> tuple[str, str]:
    """The code and the sentence of a robot's answer; empty if there is none."""
    try:
        row = load_json(body)
    except ValueError:
        return "", "the answer is not JSON"
    if not isinstance(row, dict):
        return "", "the answer is not a JSON object"
    names = (("errcode", "errmsg"), ("code", "msg"), ("StatusCode", "StatusMessage"))
    return next(((str(row[code]), str(row.get(text, ""))) for code, text in names if code in row), ("", "no code"))


def _sign_dingtalk(url: str, secret: str, now: datetime) -> str:
    stamp = str(int(now.timestamp() * 1000))
    mac = hmac.digest(secret.encode(), f"{stamp}\n{secret}".encode(), hashlib.sha256)
    return f"{url}{'&' if '?' in url else '?'}timestamp={stamp}&sign={quote_plus(base64.b64encode(mac))}"


def _feishu(message: Message, secret: str, now: datetime) -> dict[str, Any]:
    header = {
        "title": {"tag": "plain_text", "content": message.title},
        "template": "red" if message.is_firing else "green",
    }
    card = {"header": header, "elements": [{"tag": "markdown", "content": message.text}]}
    row: dict[str, Any] = {"msg_type": "interactive", "card": card}
    if secret:
        stamp = str(int(now.timestamp()))
        mac = hmac.digest(f"{stamp}\n{secret}".encode(), b"", hashlib.sha256)
        row |= {"timestamp": stamp, "sign": base64.b64encode(mac).decode()}
    return row


def _plain(message: Message) -> dict[str, Any]:
    alerts = [
        {
            "name": alert.name,
            "status": "firing" if alert.is_firing else "resolved",
            "severity": alert.severity,
            "subject": alert.subject,
            "summary": alert.summary,
            "description": alert.description,
            "command": alert.command,
            "runbook_url": alert.runbook_url,
            "starts_at": alert.starts_at,
            "ends_at": alert.ends_at,
        }
        for alert in message.alerts
    ]
    return {"schema_version": SCHEMA_VERSION, "title": message.title, "text": message.text, "alerts": alerts}
