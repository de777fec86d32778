"""What `[[updater.webhooks]]` may say."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from updater.settings import UpdaterSection, WebhookSection


def test_a_webhook_is_called_after_its_host() -> None:
    """Unless it has a name; its path, which may be a secret, is no part of it."""
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
def test_a_url_that_cannot_be_meant_is_a_mistake(url: str) -> None:
    """Said when the settings are read, not when the first event is lost."""
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
    """But on this machine."""
    if is_fine:
        WebhookSection(url=url, token_file=Path("token"))
    else:
        with pytest.raises(ValidationError, match="unencrypted"):
            WebhookSection(url=url, token_file=Path("token"))


def test_two_webhooks_have_two_names() -> None:
    """Their events and numbers would be one otherwise."""
    twice = (WebhookSection(url="https://ops.example/a"), WebhookSection(url="https://ops.example/b"))
    with pytest.raises(ValidationError, match="set different names"):
        UpdaterSection(webhooks=twice)
    UpdaterSection(webhooks=(twice[0], WebhookSection(url="https://ops.example/b", name="b")))
