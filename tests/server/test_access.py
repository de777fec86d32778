"""The public port's TLS, client certificates and tokens, against real gRPC clients; the server is in this process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from common.address import ListenAddress, add_port
from common.clock import SystemClock
from common.tls import watch_certificate
from common.tokens import make_entry, watch_tokens, write_tokens
from dev.harness.certificates import Authority, ListenerFiles, Pair, replace_file
from dev.harness.control import CHANNEL_OPTIONS
from inference.server.access import DEGRADED, FAILED, OK, Access, AccessRules, Metadata
from inference.server.api.grpc_server import make_server
from inference.server.api.interceptors import Callers, CallInterceptor
from inference.server.api.standard_services import HealthApi, ReflectionApi
from inference.server.events import CallEnded, Event
from inference.server.health import HealthRegistry
from inference.server.scheduling.fair_queue import Caller, CallerRules
from tests.common.clock import KeptLog
from tests.stack.refusal import refusal_of

TOKEN, OTHER = "hotslot_right", "hotslot_wrong"
CHECK = "/grpc.health.v1.Health/Check"
REFLECT = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


@dataclass
class Serving:
    """A running server."""

    port: int
    access: Access
    other_port: int = 0  # another socket of the same listener, as a name with two addresses has
    events: list[Event] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)  # of all calls

    @property
    def ended(self) -> list[CallEnded]:
        """The calls that have ended."""
        return [event for event in self.events if isinstance(event, CallEnded)]


class NotedCallers(Callers):
    """Callers whose names are noted."""

    names: list[str]

    def find(self, metadata: Metadata, peer: str, token_name: str = "", certificate_name: str = "") -> Caller:
        """As without notes."""
        caller = super().find(metadata, peer, token_name, certificate_name)
        self.names.append(caller.name)
        return caller


@asynccontextmanager
async def serve(access: Access, metadata_key: str = "") -> AsyncIterator[Serving]:
    """A server with health and reflection."""
    serving = Serving(0, access)
    callers = NotedCallers([CallerRules("shop", weight=3.0)], metadata_key, 0.0)
    callers.names = serving.callers
    interceptor = CallInterceptor(SystemClock(), serving.events.append, lambda *_: None, callers, access=access)
    handlers = [HealthApi(HealthRegistry([""])).handlers(), *ReflectionApi([]).handlers()]
    server = make_server(interceptor.wrap, [], handlers, lambda _: None)
    ports = [add_port(server, ListenAddress("127.0.0.1", 0), access.make_credentials) for _ in range(2)]
    serving.port, serving.other_port = ports
    await server.start()
    try:
        yield serving
    finally:
        await server.stop(0)


async def call_check(channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
    """Check the health once."""
    call: Any = channel.unary_unary(CHECK)
    await call(b"", timeout=10, metadata=metadata)


async def check(
    port: int,
    authority: Authority | None = None,
    client: Pair | None = None,
    *metadata: tuple[str, str],
    method: str = CHECK,
) -> str:
    """Call once on a new connection; returns OK, or the code and the reason."""
    if method != CHECK:
        return await asyncio.to_thread(stream_once, port, method, metadata)
    if authority is None:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS)
    else:
        key, chain = (None, None) if client is None else (client.key.read_bytes(), client.certificate.read_bytes())
        trust = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, chain)
        channel = grpc.aio.secure_channel(f"127.0.0.1:{port}", trust, options=CHANNEL_OPTIONS)
    async with channel:
        try:
            await call_check(channel, metadata)
        except grpc.aio.AioRpcError as error:
            known = refusal_of(error)
            return f"{known.code} {known.reason}".strip()
    return "OK"


def stream_once(port: int, method: str, metadata: tuple[tuple[str, str], ...]) -> str:
    """The same for a stream; asyncio's client says INTERNAL if the server refuses while it still writes."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:
        try:
            begin: Any = channel.stream_stream(method)
            for _ in begin(iter([b""]), timeout=10, metadata=metadata):
                pass
        except grpc.RpcError as error:
            known = refusal_of(error)
            return f"{known.code} {known.reason}".strip()
    return "OK"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def listener(tmp_path: Path, authority: Authority) -> ListenerFiles:
    """A listener's files, without client certificates."""
    return ListenerFiles(tmp_path / "tls", authority.sign("server"))


def with_tls(listener: ListenerFiles, log: KeptLog | None = None) -> Access:
    """The access of a listener."""
    certificate = watch_certificate(listener.files, log or KeptLog(), SystemClock())
    return Access(certificate, AccessRules(), needs_client_certificate=listener.files.client_ca is not None)


def with_tokens(folder: Path, **options: Any) -> Access:  # noqa: ANN401
    """The access with one token, of "shop"."""
    write_tokens(folder / "tokens", added=make_entry("shop", TOKEN, ""))
    return Access(None, AccessRules(watch_tokens(folder / "tokens", KeptLog(), SystemClock()), **options))


async def test_tls_is_spoken_to_those_who_trust_the_certificate(
    listener: ListenerFiles, authority: Authority, tmp_path: Path
) -> None:
    """A client without TLS, and one that trusts another authority, get no answer."""
    async with serve(with_tls(listener)) as serving:
        assert await check(serving.port, authority) == "OK"
        assert (await check(serving.port)).startswith("UNAVAILABLE")
        assert (await check(serving.port, Authority(tmp_path / "other"))).startswith("UNAVAILABLE")
        assert len(serving.ended) == 1


async def test_a_client_certificate_is_needed_and_names_the_caller(authority: Authority, tmp_path: Path) -> None:
    """One of another authority is none; what a caller writes into the configured metadata key does not rename it."""
    listener = ListenerFiles(tmp_path / "tls", authority.sign("server"), authority.certificate)
    stranger = Authority(tmp_path / "other").sign("shop")
    async with serve(with_tls(listener), "x-tenant") as serving:
        assert await check(serving.port, authority, authority.sign("shop")) == "OK"
        assert await check(serving.port, authority, authority.sign("shop"), ("x-tenant", "bank")) == "OK"
        assert (await check(serving.port, authority)).startswith("UNAVAILABLE")
        assert (await check(serving.port, authority, stranger)).startswith("UNAVAILABLE")
        assert [dict(call.fields)["caller"] for call in serving.ended] == ["shop", "shop"]


async def test_a_client_certificate_without_a_name_names_nobody(authority: Authority, tmp_path: Path) -> None:
    """It is no proxy's: what its holder writes into the configured metadata key uses no other caller's quota."""
    listener = ListenerFiles(tmp_path / "tls", authority.sign("server"), authority.certificate)
    nameless = authority.sign("nameless", names=(), field="O")
    async with serve(with_tls(listener), "x-tenant") as serving:
        assert await check(serving.port, authority, nameless, ("x-tenant", "shop")) == "OK"
        assert [name.partition(":")[0] for name in serving.callers] == ["ipv4"]


@pytest.mark.fault("L25")
async def test_new_connections_get_the_new_certificate_and_old_ones_stay(
    listener: ListenerFiles, authority: Authority, tmp_path: Path
) -> None:
    """On every socket of the listener; a broken pair changes nothing."""
    new = Authority(tmp_path / "other")
    async with serve(with_tls(listener)) as serving:
        port, certificate = serving.port, serving.access.certificate
        assert certificate is not None
        trust = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", trust, options=CHANNEL_OPTIONS) as old:
            await call_check(old)
            replace_file(listener.files.key, b"broken")
            certificate.check()
            certificate.check()
            assert await check(port, authority) == "OK"
            assert serving.access.state(SystemClock().now()).reloads == {"certificate": False}
            listener.use(new.sign("server"))
            certificate.check()

            for place in (port, port, serving.other_port):
                assert await check(place, new) == "OK"
                assert (await check(place, authority)).startswith("UNAVAILABLE")
            await call_check(old)


async def test_a_call_without_a_valid_token_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """With a sentence and a reason; the name of the token is the caller's."""
    async with serve(with_tokens(tmp_path)) as serving:
        seen = [
            await check(serving.port, None, None, *metadata, method=REFLECT)
            for metadata in (
                (),
                (("authorization", f"Basic {TOKEN}"),),
                (("authorization", f"Bearer {OTHER}"),),
                (("authorization", f"Bearer {TOKEN}"),),
            )
        ]
        assert seen == [
            "UNAUTHENTICATED TOKEN_MISSING",
            "UNAUTHENTICATED TOKEN_MALFORMED",
            "UNAUTHENTICATED TOKEN_UNKNOWN",
            "OK",
        ]
        assert [call.reason for call in serving.ended] == ["TOKEN_MISSING", "TOKEN_MALFORMED", "TOKEN_UNKNOWN", ""]
        assert [dict(call.fields).get("caller") for call in serving.ended] == [None, None, None, "shop"]


async def test_health_is_open_unless_the_settings_say_otherwise(tmp_path: Path) -> None:
    """Probes have no token."""
    async with serve(with_tokens(tmp_path)) as serving:
        assert await check(serving.port) == "OK"
    async with serve(with_tokens(tmp_path, is_health_open=False)) as serving:
        assert await check(serving.port) == "UNAUTHENTICATED TOKEN_MISSING"
        assert await check(serving.port, None, None, ("authorization", f"Bearer {TOKEN}")) == "OK"


@pytest.mark.fault("L25")
async def test_a_new_token_is_taken_and_a_revoked_one_refused_without_a_restart(tmp_path: Path) -> None:
    """The files are watched while the server runs."""
    async with serve(with_tokens(tmp_path, is_health_open=False)) as serving:
        tokens = serving.access.tokens
        assert tokens is not None
        write_tokens(tmp_path / "tokens", added=make_entry("bank", OTHER, ""), removed=[make_entry("shop", TOKEN, "")])
        await serving.access.check_files()
        assert await check(serving.port, None, None, ("authorization", f"Bearer {TOKEN}")) == (
            "UNAUTHENTICATED TOKEN_UNKNOWN"
        )
        assert await check(serving.port, None, None, ("authorization", f"Bearer {OTHER}")) == "OK"


def test_the_state_says_what_needs_attention(authority: Authority, tmp_path: Path) -> None:
    """OK, DEGRADED in the last days and while changed files are not in use, FAILED when clients refuse it."""
    listener, now = ListenerFiles(tmp_path / "tls", authority.sign("year")), SystemClock().now()
    rules = AccessRules(None, ("the gRPC port is open",))
    access = Access(watch_certificate(listener.files, KeptLog(), SystemClock()), rules)
    assert (access.state(now).level, access.state(now).warnings) == (OK, ("the gRPC port is open",))
    late, over = access.state(now + timedelta(days=360)), access.state(now + timedelta(days=366))
    assert (late.level, late.warnings[0][:30]) == (DEGRADED, "the certificate expires on 202")
    assert (over.level, over.warnings[0][:30]) == (FAILED, "the certificate has expired on")
    replace_file(listener.files.key, b"broken")
    assert access.certificate is not None
    access.certificate.check()
    access.certificate.check()
    broken = access.state(now)
    assert (broken.level, broken.reloads) == (DEGRADED, {"certificate": False})
    assert broken.warnings[0].startswith("new certificate not in use: the key file has no private key")
