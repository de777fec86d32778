"""What `[[updater.webhooks]]` may say."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from updater.settings import UpdaterSection
from updater.webhook_settings import WebhookSection


def test_the_default_name_of_a_webhook_is_its_host() -> None:
    """The path is not part of it, since it may be a secret."""
    assert WebhookSection(url="https://ops.example:8080/secret?x=y").shown_name == "ops.example:8080"
    assert WebhookSection(url="https://ops.example/", name="pager").shown_name == "pager"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://ops.example/",
        "ops.example/hook",
        "https://",
        "https://user:secret@ops.example/",
        "https://ops.example/#part",
        "https://ops.example/a b",
        "https://ops.example:99999/",
        "https://ops.example/\r\nX: y",
        "https://ops.example/\x01",
    ],
)
def test_an_invalid_url_is_reported(url: str) -> None:
    """When the settings are read, not when the first event is sent."""
    with pytest.raises(ValidationError):
        WebhookSection(url=url)


@pytest.mark.parametrize(
    ("url", "is_fine"),
    [
        ("https://ops.example/", True),
        ("http://127.0.0.1:9/", True),
        ("http://[::1]:9/", True),
        ("http://localhost/", True),
        ("http://ops.example/", False),
        ("http://10.0.0.1/", False),
    ],
)
def test_a_token_is_not_sent_unencrypted(url: str, *, is_fine: bool) -> None:
    """Except on this machine."""
    if is_fine:
        WebhookSection(url=url, token_file=Path("token"))
    else:
        with pytest.raises(ValidationError, match="unencrypted"):
            WebhookSection(url=url, token_file=Path("token"))


def test_two_webhooks_must_have_different_names() -> None:
    """Otherwise their queues and metrics would be one."""
    twice = (WebhookSection(url="https://ops.example/a"), WebhookSection(url="https://ops.example/b"))
    with pytest.raises(ValidationError, match="set different names"):
        UpdaterSection(webhooks=twice)
    UpdaterSection(webhooks=(twice[0], WebhookSection(url="https://ops.example/b", name="b")))
