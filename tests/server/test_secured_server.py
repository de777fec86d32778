"""The real server with TLS, client certificates and tokens, against the clients that people use."""

import json
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from common.exit_codes import ExitCode
from common.tokens import make_entry, write_tokens
from dev.harness.answers import question
from dev.harness.certificates import Authority, ListenerFiles, Pair, replace_file
from dev.harness.control import CHANNEL_OPTIONS
from dev.harness.process import ServerProcess, stack_environment
from dev.harness.stack import ENTAILMENT, Stack
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from tests.stack.refusal import refusal_of

TOKEN = "hotslot_right"  # noqa: S105
HEALTH = "grpc.health.v1.Health/Check"


@dataclass(frozen=True)
class Secured:
    """A server, and what its clients need."""

    stack: Stack
    authority: Authority
    mine: Pair
    listener: ListenerFiles
    folder: Path

    @property
    def metadata(self) -> tuple[tuple[str, str]]:
        """With the token."""
        return (("authorization", f"Bearer {TOKEN}"),)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """One server for all tests: TLS, client certificates, tokens, metrics over TLS, a health port."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder / "ca")
    mine = authority.sign("me")
    listener = ListenerFiles(folder / "tls", authority.sign("server"), authority.certificate)
    write_tokens(folder / "tokens", added=make_entry("shop", TOKEN, ""))
    trust = grpc.ssl_channel_credentials(
        authority.certificate.read_bytes(), mine.key.read_bytes(), mine.certificate.read_bytes()
    )
    (folder / "state").mkdir()
    stack = Stack(folder / "state", server={"tokens_file": str(folder / "tokens")})
    stack.add_settings({"tls": {**listener.settings, "metrics": True}, "health": {"port": 0}})
    stack.open_channel = lambda address: grpc.secure_channel(address, trust, options=CHANNEL_OPTIONS)
    with stack:
        yield Secured(stack, authority, mine, listener, folder)


def test_a_call_needs_certificate_and_token(secured: Secured) -> None:
    """With both it is answered, and logged under the name of its token."""
    asked = question()
    with pytest.raises(grpc.RpcError) as caught:
        secured.stack.predict(asked)
    known = refusal_of(caught.value)
    assert (known.brief[:2], "send the metadata `authorization" in known.message) == (
        ("UNAUTHENTICATED", "TOKEN_MISSING"),
        True,
    )

    response = secured.stack.entailment.Predict(asked.request(), timeout=20, metadata=secured.metadata)

    assert response.served_by.revision == "r1"
    rows = eventually(lambda: secured.stack.process.events("call_ended")[1:], what="both calls are in the log")
    assert (rows[-1]["grpc_code"], rows[-1]["caller"]) == ("OK", "shop")


def test_status_and_metrics_tell_of_the_protection(secured: Secured) -> None:
    """The end of the certificate, and that the files are in use; metrics over TLS, with a client certificate."""
    stack, metadata = secured.stack, secured.metadata
    state = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=20, metadata=metadata).access
    assert (state.level, state.tls, state.client_certificates, state.tokens, list(state.warnings)) == (
        status_pb2.HEALTH_LEVEL_OK,
        True,
        True,
        True,
        [],
    )
    assert "localhost" in state.certificate.names

    context = ssl.create_default_context(cafile=secured.authority.certificate)
    context.load_cert_chain(secured.mine.certificate, secured.mine.key)
    url = f"https://127.0.0.1:{stack.metrics_port}/metrics"
    with urllib.request.urlopen(url, context=context, timeout=10) as response:
        page = response.read().decode()

    expiry = float(page.split("\nhotslot_certificate_expiry_timestamp_seconds ")[1].split("\n")[0])
    assert expiry == state.certificate.not_after.seconds
    assert 'hotslot_last_reload_successful{file="certificate"} 1.0' in page
    assert "\nhotslot_tokens 1.0" in page


def test_grpcurl_calls_it(secured: Secured, grpcurl: Path) -> None:
    """As the how-to shows it."""
    line = [str(grpcurl), "-cacert", str(secured.authority.certificate), "-cert", str(secured.mine.certificate)]
    line += ["-key", str(secured.mine.key), "-max-time", "20"]
    bearer = ["-H", f"authorization: Bearer {TOKEN}"]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*line, *words, "-d", "{}", secured.stack.address, HEALTH] if "list" not in words else [*line, *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert json.loads(call(*bearer).stdout) == {"status": "SERVING"}
    assert ENTAILMENT in call(*bearer, secured.stack.address, "list").stdout
    assert "Unauthenticated" in call(secured.stack.address, "list").stderr


def test_our_programs_call_it(secured: Secured, go_healthcheck: Path) -> None:
    """The healthchecks over TLS without a token, and on the plain health port; the command line with one."""
    stack, mine = secured.stack, secured.mine
    tls = ["-tls", "-tls-ca-cert", str(secured.authority.certificate), "-tls-client-cert", str(mine.certificate)]
    tls += ["-tls-client-key", str(mine.key)]
    token = secured.folder / "token"
    token.write_text(TOKEN)
    shown = ["--tls-cert", str(mine.certificate), "--tls-key", str(mine.key), "--token-file", str(token)]
    hotslot = [sys.executable, "-m", "cli.main"]
    commands = [
        [*hotslot, "healthcheck", "-addr", stack.address, *tls, "-service", "shapes"],
        [*hotslot, "healthcheck", "-addr", f"127.0.0.1:{stack.health_port}"],
        [str(go_healthcheck), "-addr", stack.address, *tls, "-service", "shapes"],
        [*hotslot, "status", "--address", stack.address, "--tls-ca", str(secured.authority.certificate), *shown],
    ]
    for command in commands:
        done = subprocess.run(
            command, env=stack_environment(""), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "tokens" in done.stdout


def test_changed_files_are_used_and_broken_ones_reported(secured: Secured) -> None:
    """Without a restart: a revoked token is refused, an unusable key changes nothing but the status."""
    stack = secured.stack

    def access() -> status_pb2.AccessStatus:
        request = status_pb2.GetServerStatusRequest()
        return stack.status.GetServerStatus(request, timeout=20, metadata=secured.metadata).access

    kept = secured.listener.files.key.read_bytes()
    replace_file(secured.listener.files.key, b"broken")
    eventually(lambda: access().level == status_pb2.HEALTH_LEVEL_DEGRADED, what="the status reports the broken key")
    assert access().warnings[0].startswith("new certificate not in use: the key file has no private key")
    assert stack.is_serving()
    replace_file(secured.listener.files.key, kept)
    eventually(lambda: access().level == status_pb2.HEALTH_LEVEL_OK, what="the key is in use again")
    stack.process.wait_event("certificate_refused")


@pytest.mark.parametrize(
    ("section", "key", "sentence"),
    [("tls", "certificate_file", "tls: the certificate file cannot be read: no such file"),
     ("server", "tokens_file", "server.tokens_file: the tokens file cannot be read: no such file")],
)  # fmt: skip
def test_a_server_that_cannot_protect_itself_does_not_start(
    tmp_path: Path, section: str, key: str, sentence: str
) -> None:
    """A mistake must not open the doors: exit code 2 and a sentence."""
    values = {key: str(tmp_path / "nowhere"), **({"key_file": str(tmp_path / "nowhere")} if section == "tls" else {})}
    stack = Stack(tmp_path, server=values if section == "server" else {})
    if section == "tls":
        stack.add_settings({section: values})
    process = ServerProcess(stack.folder, stack.config)
    try:
        assert process.wait_exit() == ExitCode.WRONG_USE
        process.wait_gone()
        (row,) = process.events("server_refused")
        assert str(row["detail"]).startswith(sentence)
    finally:
        process.destroy()
