"""Tokens, proxies, and what the environment may say: nothing but what an operator has named."""

import logging
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from common.clock import SystemClock
from dev.harness.revisions import MODEL
from tests.updater.hub.conftest import REVISION, WHOLE, HubBench, failure
from tests.updater.hub.test_misbehaving_hub import CERTIFICATE
from tests.updater.scripted_hub import MODEL_ID, ScriptedHub, redirects_to, says
from updater.core.effects import FailureKind
from updater.hub.client import HubHttpClient
from updater.hub.modelscope import ModelScopeHub, open_hub
from updater.hub.settings import TokenReader, find_proxy
from updater.settings import ModelUpdatesSection, UpdaterSection

VARIABLE = "HUB_TOKEN"
WORD = "word-that-nobody-else-may-know"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    """A token as secrets are mounted."""
    path = tmp_path / "token"
    path.write_text(f"{WORD}\n")
    return path


def opened(bench: HubBench, **settings: object) -> ModelScopeHub:
    """The hub as the daemon opens it."""
    section = UpdaterSection.model_validate({"hub_endpoint": bench.server.url, **settings})
    return open_hub(section, MODEL_ID, SystemClock(), lambda _: False)


def test_a_token_comes_from_a_file_or_a_variable(
    bench: HubBench, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read for every request, so a new one needs no restart."""
    bench.server.token = WORD
    hub = opened(bench, hub_token_file=str(token_file))
    assert hub.revisions(WHOLE) == (REVISION,)
    monkeypatch.setenv(VARIABLE, WORD)
    assert opened(bench, hub_token_variable=VARIABLE).revisions(WHOLE) == (REVISION,)
    token_file.write_text("another")
    assert failure(lambda: hub.revisions(WHOLE)).reason == "HUB_DENIED"
    token_file.write_text(WORD)
    assert hub.revisions(WHOLE) == (REVISION,)


def test_a_token_that_is_not_configured_is_not_sent(
    bench: HubBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that the hub's own client finds in the environment or the home folder are not used."""
    home = tmp_path / "home"
    (home / ".modelscope" / "credentials").mkdir(parents=True)
    (home / ".modelscope" / "credentials" / "cookies").write_bytes(b"not even opened")
    (home / ".netrc").write_text(f"machine 127.0.0.1 login x password {WORD}")
    before = sorted(home.rglob("*"))
    for name in ("MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"):
        monkeypatch.setenv(name, WORD)
    monkeypatch.setenv("HOME", str(home))
    hub = opened(bench)
    hub.revisions(WHOLE)
    hub.release(REVISION, WHOLE)
    assert bench.server.asked
    assert WORD not in str(bench.server.asked)
    assert before == sorted(home.rglob("*")), "something was written at home"


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "é", "semi;colon", "x" * 5000])
def test_a_malformed_token_is_not_sent(bench: HubBench, token_file: Path, content: str) -> None:
    """It could end the header and start another one."""
    token_file.write_text(content)
    failed = failure(lambda: opened(bench, hub_token_file=str(token_file)).revisions(WHOLE))
    assert (failed.kind, failed.reason) == (FailureKind.DENIED, "TOKEN_UNREADABLE")
    token_file.unlink()
    failed = failure(lambda: opened(bench, hub_token_file=str(token_file)).revisions(WHOLE))
    assert str(token_file) not in failed.message
    assert "hub_token_file" in failed.message
    assert bench.server.asked == []


def test_a_token_is_never_shown(bench: HubBench, token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in an error, even if the hub echoes it; not in logs of libraries; not in a repr."""
    caplog.set_level(logging.DEBUG)
    hub = opened(bench, hub_token_file=str(token_file))
    shown = [repr(hub), repr(vars(hub)), repr(TokenReader(token_file, ""))]
    bench.server.token = WORD[::-1]
    shown.append(str(failure(lambda: hub.revisions(WHOLE))))  # the scripted hub quotes the request
    assert WORD in str(bench.server.asked)
    for status in (400, 404, 429, 500):
        bench.server.fails(says(status, WORD.encode(), X_Request_Id=WORD, Retry_After=WORD))
        shown.append(str(failure(lambda: hub.revisions(WHOLE))))
    bench.server.fails(redirects_to(f"http://127.0.0.1:1/{WORD}?signature={WORD}"))
    shown.append(str(failure(lambda: hub.revisions(WHOLE))))
    assert WORD not in "\n".join(shown)
    assert WORD not in caplog.text


def test_an_http_proxy_gets_the_request(bench: HubBench) -> None:
    """With the full URL and the proxy's credentials, which the hub does not get."""
    bench.rules = replace(bench.rules, endpoint="http://hub.example")
    bench.proxy = bench.server.url.replace("://", "://me:secret@")
    assert bench.hub.revisions(WHOLE) == (REVISION,)
    (asked,) = bench.server.asked
    assert asked.target.startswith("http://hub.example/api/v1/models/")
    assert asked.headers["proxy-authorization"].startswith("Basic ")
    assert asked.headers["host"] == "hub.example"


def test_an_https_request_is_tunnelled_through_the_proxy(bench: HubBench) -> None:
    """TLS ends at the hub: the proxy sees only the host name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with ScriptedHub(bench.folder / "hub" / MODEL, tunnels_to=context) as proxy:
        bench.rules = replace(bench.rules, endpoint="https://127.0.0.1:444", ca_file=CERTIFICATE)
        bench.proxy = proxy.url
        assert bench.hub.revisions(WHOLE) == (REVISION,)
        assert proxy.tunnels == ["127.0.0.1:444"]
        bench.rules = replace(bench.rules, ca_file=None)
        assert failure(lambda: bench.hub.revisions(WHOLE)).reason == "TLS_FAILED"


def test_a_proxy_is_not_used_to_reach_a_private_address(bench: HubBench) -> None:
    """It could connect to hosts that are refused here."""
    bench.rules = replace(bench.rules, endpoint="http://hub.example")
    bench.proxy = bench.server.url
    bench.server.fails(redirects_to("http://169.254.169.254/latest/"))
    failed = failure(lambda: bench.hub.revisions(WHOLE))
    assert (failed.kind, failed.reason) == (FailureKind.DENIED, "ADDRESS_REFUSED")
    assert len(bench.server.asked) == 1


def test_an_unsupported_proxy_fails(bench: HubBench) -> None:
    """There is no silent direct connection."""
    bench.proxy = "socks5://127.0.0.1:1080"
    failed = failure(lambda: bench.hub.revisions(WHOLE))
    assert (failed.kind, failed.reason) == (FailureKind.DENIED, "PROXY_UNSUPPORTED")
    assert bench.server.asked == []


def test_the_proxy_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for other programs, including NO_PROXY."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert find_proxy("https", "hub.example") == ""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example,10.0.0.1")
    assert find_proxy("https", "hub.example") == "http://proxy.example:3128"
    assert find_proxy("http", "hub.example") == ""
    assert find_proxy("https", "inside.example") == ""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("hub.example", "https://hub.example"),
        ("http://hub.example:8080/", "http://hub.example:8080"),
        ("https://Hub.Example/models/", "https://hub.example/models"),
    ],
)
def test_an_endpoint_is_normalized(given: str, kept: str) -> None:
    """Trailing slashes do not matter."""
    assert kept == UpdaterSection(hub_endpoint=given).hub_endpoint


@pytest.mark.parametrize(
    "settings",
    [
        {"hub_endpoint": "ftp://hub.example"},
        {"hub_endpoint": "https://me:secret@hub.example"},
        {"hub_endpoint": "https://hub.example/?a=b"},
        {"hub_endpoint": "https://hub.example/#a"},
        {"hub_endpoint": "https://"},
        {"hub_token_file": "a", "hub_token_variable": "B"},
        {"hub_token_variable": "A-B"},
    ],
)
def test_invalid_hub_settings_are_reported(settings: dict[str, str]) -> None:
    """Before anything runs."""
    with pytest.raises(ValidationError):
        UpdaterSection.model_validate(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"hub_folder": "a", "hub_model": "acme/shapes"},
        {"hub_model": "shapes"},
        {"hub_model": "../shapes"},
        {"hub_model": "acme/shapes/more"},
        {"hub_model": "acme/sh apes"},
        {"hub_model": "acme/shapes?a"},
    ],
)
def test_a_model_has_one_source(settings: dict[str, str]) -> None:
    """Either a folder, or OWNER/NAME on the hub."""
    with pytest.raises(ValidationError):
        ModelUpdatesSection.model_validate(settings)
    assert ModelUpdatesSection(hub_model="acme/shapes").hub_model == "acme/shapes"


def test_the_default_endpoint_is_the_public_hub() -> None:
    """As defined by the hub's own client."""
    hub = open_hub(UpdaterSection(), MODEL_ID, SystemClock(), lambda _: False)
    client: HubHttpClient = hub._client  # noqa: SLF001
    assert client._options.endpoint.startswith("https://modelscope.")  # noqa: SLF001
