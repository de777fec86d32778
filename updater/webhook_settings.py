"""The section `[[updater.webhooks]]` of `hotslot.toml`."""

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator, model_validator

from common.settings import Section
from updater.http.endpoint import parse_endpoint

MAX_URL_CHARS = 2000
_Pattern = Annotated[str, Field(pattern=r"^[a-z_*]{1,64}$")]


class WebhookSection(Section):
    """`[[updater.webhooks]]`: one receiver; see docs/webhooks.md."""

    url: Annotated[
        str,
        Field(min_length=8, max_length=MAX_URL_CHARS, description="URL that events are posted to; http:// or https://"),
    ]
    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9._:\[\]-]{0,64}$", description="name in logs and metrics; default: the host of the URL"
        ),
    ] = ""
    events: Annotated[
        tuple[_Pattern, ...],
        Field(min_length=1, max_length=64, description='names of events; "*" matches any letters'),
    ] = ("*",)
    token_file: Annotated[
        Path | None, Field(description="file with a bearer token, read for each delivery; requires https")
    ] = None
    timeout_seconds: Annotated[float, Field(ge=0.1, le=60, description="time limit of one delivery")] = 10.0

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http:// or https:// URL with a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("contains a user name or a password; use token_file for a token")
        if parts.fragment or not value.isascii() or any(letter.isspace() for letter in value):
            raise ValueError("contains a fragment, a space, or characters that must be percent-encoded")
        parse_endpoint(value)  # raises ValueError for URLs that the HTTP client refuses
        return value

    @model_validator(mode="after")
    def _check_token(self) -> "WebhookSection":
        parts = urlsplit(self.url)
        if self.token_file is not None and parts.scheme != "https" and not _is_this_machine(parts):
            raise ValueError("token_file requires an https:// URL: a token is not sent unencrypted")
        return self

    @property
    def shown_name(self) -> str:
        """Name in logs, metrics and the journal."""
        return self.name or urlsplit(self.url).netloc


def check_webhook_names(webhooks: tuple[WebhookSection, ...]) -> tuple[WebhookSection, ...]:
    """Check that the names of all receivers differ.

    Raises:
        ValueError: two receivers have the same name.
    """
    names = [hook.shown_name for hook in webhooks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two webhooks are named {twice!r}: set different names")
    return webhooks


def _is_this_machine(parts: SplitResult) -> bool:
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
