"""The options that every command takes which calls the server: address, TLS, client certificate, token."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from cli import healthcheck
from cli.endpoint import resolve_endpoint
from dev.harness.certificates import Authority, ListenerFiles, Pair
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer


@dataclass(frozen=True)
class Secured:
    """A server with TLS that asks for client certificates."""

    server: ScriptedServer
    authority: Authority
    mine: Pair
    listener: ListenerFiles


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One for all tests."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder / "ca")
    pair = authority.sign("server", ("DNS:shop.example",))
    listener = ListenerFiles(folder / "listener", pair, authority.certificate)
    row = [(pair.key.read_bytes(), pair.certificate.read_bytes())]
    credentials = grpc.ssl_server_credentials(row, authority.certificate.read_bytes(), require_client_auth=True)
    server = ScriptedServer(credentials=credentials)
    yield Secured(server, authority, authority.sign("me"), listener)
    server.stop()


def shown(secured: Secured) -> list[str]:
    """The options for the server."""
    trust = ["--tls-ca", str(secured.authority.certificate), "--tls-name", "shop.example"]
    return [*trust, "--tls-cert", str(secured.mine.certificate), "--tls-key", str(secured.mine.key)]


@pytest.mark.parametrize("command", ["predict", "tag", "status", "golden"])
def test_every_command_takes_tls_and_token(
    secured: Secured, hotslot: Hotslot, picture: str, tmp_path: Path, command: str
) -> None:
    """By one set of options; the token is sent with each call, streams included."""
    (tmp_path / "token").write_text("hotslot_abc\n")
    words = {
        "predict": ["predict", picture, "yes it is"],
        "tag": ["tag", "somewhere"],
        "status": ["status"],
        "golden": ["golden", "record", str(tmp_path), "-s", "yes it is"],
    }[command]
    options = ["--address", secured.server.address, *shown(secured), "--token-file", str(tmp_path / "token")]

    ended = hotslot(*words, *options)

    assert (ended.code, "UNIMPLEMENTED" in ended.err) in ((0, False), (1, False)), ended.err
    if command == "predict":
        assert secured.server.authorizations[-1] == "Bearer hotslot_abc"


def test_variables_stand_for_the_options(
    secured: Secured, hotslot: Hotslot, picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shell profile or a pod; healthcheck has flags alone, as grpc_health_probe."""
    (tmp_path / "token").write_text("hotslot_def\n")
    monkeypatch.setenv("HOTSLOT_ADDRESS", secured.server.address)
    monkeypatch.setenv("HOTSLOT_TLS_CA", str(secured.authority.certificate))
    monkeypatch.setenv("HOTSLOT_TLS_CERT", str(secured.mine.certificate))
    monkeypatch.setenv("HOTSLOT_TLS_KEY", str(secured.mine.key))
    monkeypatch.setenv("HOTSLOT_TOKEN_FILE", str(tmp_path / "token"))

    assert hotslot("predict", picture, "yes it is", "--tls-name", "shop.example").code == 0
    flags = ["-tls", "-tls-ca-cert", str(secured.authority.certificate), "-tls-server-name", "shop.example"]
    flags += ["-tls-client-cert", str(secured.mine.certificate), "-tls-client-key", str(secured.mine.key)]
    flags += ["-token-file", str(tmp_path / "token")]
    assert healthcheck.check(["-addr", secured.server.address, *flags]) == 0
    assert secured.server.authorizations[-2:] == ["Bearer hotslot_def", "Bearer hotslot_def"]


def test_the_server_of_the_settings_is_called_with_its_own_certificate(
    secured: Secured, hotslot: Hotslot, tmp_path: Path
) -> None:
    """On the server's machine nothing but a client certificate has to be named."""
    tls = "".join(f'{key} = "{value}"\n' for key, value in secured.listener.settings.items())
    port = secured.server.address.rpartition(":")[2]
    (tmp_path / "hotslot.toml").write_text(f'[[models]]\nname = "shapes"\n[server]\nport = {port}\n[tls]\n{tls}')
    options = ["--tls-cert", str(secured.mine.certificate), "--tls-key", str(secured.mine.key)]
    assert hotslot("status", *options).code == 0
    ended = hotslot("status")
    assert (ended.code, "if it asks for a client certificate" in ended.err) == (1, True), ended.err


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ([], 1, "if it speaks TLS, give --tls-ca"),
        (["--tls"], 1, "TLS with 127.0.0.1"),
        (["--tls-cert", "x"], 2, "give --tls-cert and --tls-key together"),
        (["--tls-name", "x"], 2, "--tls-name needs --tls or --tls-ca"),
        (["--tls-ca", "nowhere"], 2, "nowhere cannot be read: no such file"),
        (["--token-file", "nowhere"], 2, "nowhere: the token file cannot be read"),
    ],
)
def test_what_fails_says_which_option_to_give(
    secured: Secured, hotslot: Hotslot, options: list[str], code: int, sentence: str
) -> None:
    """One sentence, without gRPC's own words alone."""
    ended = hotslot("status", "--address", secured.server.address, *options)
    assert (ended.code, sentence in ended.err) == (code, True), ended.err


@pytest.mark.parametrize("address", ["10.1.2.3:50051", "shop.example:50051", "[2001:db8::1]:50051", ":::"])
def test_a_token_is_not_sent_in_the_clear_to_another_machine(hotslot: Hotslot, tmp_path: Path, address: str) -> None:
    """It is refused before anything is sent; our healthcheck refuses it too."""
    (tmp_path / "token").write_text("hotslot_abc\n")
    ended = hotslot("status", "--address", address, "--token-file", "token")
    assert (ended.code, "would be sent unencrypted" in ended.err) == (2, True)
    assert healthcheck.check(["-addr", address, "-token-file", "token"]) == healthcheck.BAD_ARGUMENTS


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "[::1]:1", ":1", "unix:/tmp/a", "127.0.0.9:1"])
def test_a_token_is_sent_in_the_clear_on_this_machine(tmp_path: Path, address: str) -> None:
    """Loopback and Unix sockets."""
    (tmp_path / "token").write_text("hotslot_abc\n")
    endpoint = resolve_endpoint(address, token_file=tmp_path / "token")
    assert (endpoint.token, endpoint.trust) == ("hotslot_abc", None)
