"""`hotslot hub serve`: serves a folder hub over HTTP in ModelScope's protocol, for closed networks and staging."""

import signal
import ssl
from collections.abc import Iterable, Iterator
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
from common.durable import read_bounded
from common.stop_signals import StopSignals
from hubserver.folder import HubFolder
from hubserver.handler import ResponseHook
from hubserver.server import MAX_CONNECTIONS, HubServer, HubServerOptions

EXAMPLE = """Example:  hotslot hub serve state/hub

Example:  hotslot hub serve /srv/models --host 0.0.0.0 --token-file /run/secrets/hub

Next:  download a revision with the stock client:
  export MODELSCOPE_ENDPOINT=http://127.0.0.1:8090
  modelscope download --model any/shapes --revision v1.0.0

or point an updater at it, in hotslot.toml or by variables:
  HOTSLOT_UPDATER__HUB_ENDPOINT=http://127.0.0.1:8090
  HOTSLOT_UPDATER__MODELS__SHAPES__HUB_MODEL=any/shapes"""
_MAX_TOKEN_BYTES = 4096


Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="The folder hub. Default: from hotslot.toml.", show_default=False),
]
Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="Require the token in this file from every client.", show_default=False
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
MaxConnections = Annotated[
    int, typer.Option("--max-connections", min=1, max=1024, help="Further connections get 503 with Retry-After.")
]


def serve(
    folder: Folder = None,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8090,
    token_file: TokenFile = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    max_connections: MaxConnections = MAX_CONNECTIONS,
) -> None:
    """Serve a folder hub over HTTP to ModelScope clients, until Ctrl-C.

    `hotslot hub add` fills the folder; the server only reads it. A revision is
    listed once all its files are there. Clients may use any owner in
    OWNER/NAME. Every request is logged.
    """
    tls = _tls(tls_cert, tls_key)
    listening = HubServerOptions(_address(host, port), _token(token_file), max_connections, tls)
    place = hub_folder(folder)
    if not place.is_dir():
        raise WronglyUsed(f"{place} is not a folder; create it with `hotslot hub add DIR REVISION --hub {place}`")
    serve_until_stopped(place, listening)


def serve_until_stopped(folder: Path, options: HubServerOptions, hook: ResponseHook | None = None) -> None:
    """Serve a folder hub until SIGINT, SIGTERM or SIGHUP.

    Raises:
        CommandFailed: the address cannot be listened on.
    """
    with logs.configure("hub", "info"):
        log = logs.get_logger()
        server = _start(HubServer(HubFolder(folder), options, log, hook))
        log.info("hub_serving", url=server.url, folder=str(folder), needs_token=bool(options.token))
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
    if not listening.token and not listening.address.is_loopback:
        step = "no token is required: every client that reaches the port may download; require one with --token-file"
        err.print(text((step, DOUBTFUL)), soft_wrap=True)
    if listening.token and listening.tls is None and not listening.address.is_loopback:
        step = "the token is sent without encryption; give --tls-cert and --tls-key, or use a TLS proxy"
        err.print(text((step, DOUBTFUL)), soft_wrap=True)


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        token = read_bounded(path, _MAX_TOKEN_BYTES).decode("ascii").strip()
    except ValueError as error:
        raise WronglyUsed(f"{path} has no token; it must be one line of ASCII") from error
    if not token or not token.isprintable() or " " in token:
        raise WronglyUsed(f"{path} has no token; it must be one line of ASCII")
    return token


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise WronglyUsed("give --tls-cert and --tls-key together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise WronglyUsed(f"{certificate} and {key} are not a certificate and its key: {error.reason}") from error
    return context
