"""`hotslot hub serve`: serves a folder hub over HTTP in ModelScope's protocol, for closed networks and staging."""

import signal
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from cli.clients import hub_folder
from cli.output import DIM, DOUBTFUL, GOOD, err, text
from cli.problems import CommandFailed, WronglyUsed
from common import logs
from common.address import ListenAddress, ListenFailed, parse_address
from common.clock import SystemClock
from common.reload import FileUnusable
from common.stop_signals import StopSignals
from common.tls import ServerContexts, TlsFiles, watch_certificate
from common.tokens import watch_tokens
from hubserver.folder import HubFolder
from hubserver.handler import ResponseHook
from hubserver.server import MAX_CONNECTIONS, HubServer, HubServerOptions

EXAMPLE = """Example:  hotslot hub serve state/hub

Example:  hotslot hub serve /srv/models --host 0.0.0.0 --tokens-file hub-tokens

Next:  download a revision with the stock client:
  export MODELSCOPE_ENDPOINT=http://127.0.0.1:8090
  modelscope download --model any/shapes --revision v1.0.0

or point an updater at it, in hotslot.toml or by variables:
  HOTSLOT_UPDATER__HUB_ENDPOINT=http://127.0.0.1:8090
  HOTSLOT_UPDATER__MODELS__SHAPES__HUB_MODEL=any/shapes"""


Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="The folder hub. Default: from hotslot.toml.", show_default=False),
]
Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")]
TokensFile = Annotated[
    Path | None,
    typer.Option(
        "--tokens-file",
        metavar="FILE",
        help="Require one of these tokens from every client; `hotslot token new` makes them.",
        show_default=False,
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", help="Serve over TLS with this certificate.", show_default=False),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="FILE", help="The private key of the certificate.", show_default=False),
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        metavar="FILE",
        help="Clients must show a certificate that one of these CAs has signed.",
        show_default=False,
    ),
]
MaxConnections = Annotated[
    int,
    typer.Option(
        "--max-connections", min=1, max=1024, help="Responses at once; further requests get 503 with Retry-After."
    ),
]


def serve(
    folder: Folder = None,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8090,
    tokens_file: TokensFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    max_connections: MaxConnections = MAX_CONNECTIONS,
) -> None:
    """Serve a folder hub over HTTP to ModelScope clients, until Ctrl-C.

    `hotslot hub add` fills the folder; the server only reads it. A revision is
    listed once all its files are there. Clients may use any owner in
    OWNER/NAME. Every request is logged. Tokens and certificates are read again
    when their files change.
    """
    if (tls_cert is None) != (tls_key is None) or (tls_client_ca is not None and tls_cert is None):
        raise WronglyUsed("give --tls-cert and --tls-key together; --tls-client-ca needs them")
    files = None if tls_cert is None or tls_key is None else TlsFiles(tls_cert, tls_key, tls_client_ca)
    address, place, log = _address(host, port), hub_folder(folder), logs.get_logger()
    if not place.is_dir():
        raise WronglyUsed(f"{place} is not a folder; create it with `hotslot hub add DIR REVISION --hub {place}`")
    listening = HubServerOptions(address, _find_token(tokens_file, log), max_connections, _tls(files, log))
    with logs.configure("hub", "info"):
        serve_until_stopped(place, listening)


def serve_until_stopped(folder: Path, options: HubServerOptions, hook: ResponseHook | None = None) -> None:
    """Serve a folder hub until SIGINT, SIGTERM or SIGHUP. The log must be configured.

    Raises:
        CommandFailed: the address cannot be listened on.
    """
    log = logs.get_logger()
    server = _start(HubServer(HubFolder(folder), options, log, hook))
    needs_token = options.find_token is not None
    log.info("hub_serving", url=server.url, folder=str(folder), needs_token=needs_token)
    _announce(server.url, options)
    try:
        with StopSignals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)) as signals:
            signals.wait()
    finally:
        server.stop()
    log.info("hub_ended")


@contextmanager
def serve_hub_while(folder: Path | None, endpoint: str, models: Iterable[str]) -> Iterator[None]:
    """Serve a folder hub from this process while the block runs; does nothing if `folder` is None.

    Args:
        folder: the hub; created if it is missing.
        endpoint: the updater's hub_endpoint, for example "http://127.0.0.1:8090"; an address of this machine.
        models: the updater's models as OWNER/NAME; they exist from the start, without a revision.

    Raises:
        WronglyUsed: the endpoint is not an HTTP address with host and port.
        CommandFailed: the address cannot be listened on.
    """
    if folder is None:
        yield
        return
    place = urlsplit(endpoint)
    if place.scheme != "http" or not place.hostname or not place.port or place.path:
        example = 'hub_endpoint = "http://127.0.0.1:8090"'
        raise WronglyUsed(f"--serve-hub needs the address to serve at: set {example} in [updater]")
    for model in models:
        (folder / model.rpartition("/")[2]).mkdir(parents=True, exist_ok=True)
    # The updater polls every few seconds and logs the results itself.
    with logs.configure("hub", "warning"):
        listening = HubServerOptions(_address(place.hostname, place.port))
        server = _start(HubServer(HubFolder(folder), listening, logs.get_logger()))
        try:
            yield
        finally:
            server.stop()


def _address(host: str, port: int) -> ListenAddress:
    try:
        return parse_address(host, port)
    except ValueError as error:
        raise WronglyUsed(f"{host!r} {error}") from error


def _start(server: HubServer) -> HubServer:
    try:
        server.start()
    except ListenFailed as error:
        raise CommandFailed(f"the hub: {error}") from error
    return server


def _announce(url: str, listening: HubServerOptions) -> None:
    err.print(text(("the hub serves at ", GOOD), (url, "bold"), ("  Ctrl-C stops it", DIM)), soft_wrap=True)
    if listening.address.is_loopback:
        return
    if listening.find_token is None:
        step = "no token is required: every client that reaches the port may download; require one with --tokens-file"
        err.print(text((step, DOUBTFUL)), soft_wrap=True)
    if listening.tls is None:
        step = (
            "what is sent, tokens included, can be read on its way; give --tls-cert and --tls-key, or use a TLS proxy"
        )
        err.print(text((step, DOUBTFUL)), soft_wrap=True)


def _find_token(path: Path | None, log: logs.Logger) -> Callable[[str], str] | None:
    """Finds the name of a token in a file of hashed ones, which is read again when it changes."""
    if path is None:
        return None
    try:
        watched = watch_tokens(path, log, SystemClock())
    except FileUnusable as error:
        raise WronglyUsed(f"{path}: {error}") from error
    return lambda token: watched.current().find(token)


def _tls(files: TlsFiles | None, log: logs.Logger) -> Callable[[], ssl.SSLContext] | None:
    """The TLS context of a connection; the files are read again when they change."""
    if files is None:
        return None
    try:
        certificate = watch_certificate(files, log, SystemClock())
    except FileUnusable as error:
        raise WronglyUsed(f"{files.certificate}: {error}") from error
    for sentence in certificate.value.warnings:
        err.print(text((sentence, DOUBTFUL)), soft_wrap=True)
    return ServerContexts(certificate).current
