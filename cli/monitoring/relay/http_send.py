"""Sends one message over HTTP, within a time limit.

Security rules:
 1. The request goes to the host of the configured URL only: no redirects, no proxies of the environment.
 2. https only, but for this machine; certificates are checked against the system's.
 3. URL, secret and token are read from their files for each message, and never logged.
 4. At most MAX_ANSWER_BYTES of an answer are read.
"""

import ipaddress
from pathlib import Path

from cli.monitoring.relay.channels import DeliveryAttempt, DeliveryResult, encode_message, judge_answer
from cli.monitoring.relay.message import Message
from cli.monitoring.relay.settings import TargetSection
from common.clock import Clock
from common.durable import read_bounded
from updater.http.client import HttpFailed, HttpFailure, HttpLimits, HttpRequest, allow_any_address, open_response
from updater.http.endpoint import Endpoint, parse_endpoint

MAX_ANSWER_BYTES = 64 * 1024
_MAX_SECRET_BYTES = 8192
_TIMEOUTS = (HttpFailure.OUT_OF_TIME, HttpFailure.CONNECT_TIMEOUT, HttpFailure.STALLED)


class SecretUnusable(Exception):
    """A file with a URL, secret or token cannot be used; the message names the file, never its content."""


def send_message(target: TargetSection, message: Message, clock: Clock) -> DeliveryAttempt:
    """Send a message on the calling thread; returns what became of it."""
    try:
        url, secret, token = (_read(path) for path in (target.url_file, target.secret_file, target.token_file))
        out = encode_message(target.kind, url, message, clock.now(), secret=secret, token=token)
        endpoint = _parse(out.url, target.url_file)
    except SecretUnusable as error:
        return DeliveryAttempt(DeliveryResult.LATER, "SECRET_UNUSABLE", str(error))
    seconds = target.timeout_seconds
    limits = HttpLimits(total_seconds=seconds, connect_seconds=seconds, stall_seconds=seconds)
    body = b""
    try:
        request = HttpRequest("POST", endpoint, out.headers, out.body)
        with open_response(request, limits, clock, may_reach=allow_any_address) as response:
            for piece in response.pieces(MAX_ANSWER_BYTES):
                body += piece
                if len(body) >= MAX_ANSWER_BYTES:
                    break
            status = response.status
    except HttpFailed as error:
        reason = "TIMEOUT" if error.failure in _TIMEOUTS else "UNREACHABLE"
        return DeliveryAttempt(
            DeliveryResult.LATER, "TLS_FAILED" if error.failure is HttpFailure.TLS_FAILED else reason
        )
    return judge_answer(target.kind, status, body)


def _read(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        text = read_bounded(path, _MAX_SECRET_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise SecretUnusable(f"{path} cannot be read") from error
    if not text or not text.isprintable() or " " in text:
        raise SecretUnusable(f"{path} is empty, or has more than one word")
    return text


def _parse(url: str, path: Path) -> Endpoint:
    try:
        endpoint = parse_endpoint(url)
    except ValueError as error:
        raise SecretUnusable(f"{path} has no http or https URL") from error
    if endpoint.scheme != "https" and not _is_this_machine(endpoint.host):
        raise SecretUnusable(f"{path}: only https:// is allowed, but for this machine")
    return endpoint


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
