"""`hotslot hub serve`: a folder hub over HTTP, in ModelScope's protocol, for closed networks and for staging."""

import signal
import ssl
import threading
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
from common.durable import read_bounded
from hubserver.folder import HubFolder
from hubserver.handler import ResponseHook
from hubserver.server import MAX_CONNECTIONS, HubServer, HubServerOptions

EXAMPLE = """Example:  hotslot hub serve state/hub

Example:  hotslot hub serve /srv/models --host 0.0.0.0 --token-file /run/secrets/hub

Who downloads by hand:
  export MODELSCOPE_ENDPOINT=http://127.0.0.1:8090
  modelscope download --model any/shapes --revision v1.0.0

hotslot's updater, in hotslot.toml, or as variables:
  HOTSLOT_UPDATER__HUB_ENDPOINT=http://127.0.0.1:8090
  HOTSLOT_UPDATER__MODELS__SHAPES__HUB_MODEL=any/shapes"""
_MAX_TOKEN_BYTES = 4096
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="The folder hub. Default: what hotslot.toml says.", show_default=False),
]
Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes a free one.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Only who shows this token is served.", show_default=False),
]
TlsCert = Annotated[
    Path | None, typer.Option("--tls-cert", metavar="FILE", help="Speak TLS with this certificate.", show_default=False)
]
TlsKey = Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key.", show_default=False)]
MaxConnections = Annotated[int, typer.Option("--max-connections", min=1, max=1024, help="More are told to come back.")]


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
    """Serve a folder hub to ModelScope's clients, until Ctrl-C.

    The folder is the one that `hotslot hub add` fills; nothing in it is changed. A revision is told of once all its
    files are there. Any owner will do before the model's name: a folder has none. A request is a line in the log.
    """
    tls = _tls(tls_cert, tls_key)
    listening = HubServerOptions(host, port, _token(token_file), max_connections, tls)
    place = hub_folder(folder)
    if not place.is_dir():
        raise WronglyUsed(f"{place} is no folder; `hotslot hub add DIR REVISION --hub {place}` begins one")
    serve_until_stopped(place, listening)


def serve_until_stopped(folder: Path, options: HubServerOptions, hook: ResponseHook | None = None) -> None:
    """Serve a folder hub until SIGINT, SIGTERM or SIGHUP.

    Raises:
        CommandFailed: the address cannot be listened on.
    """
    with logs.configure("hub", "info"):
        log = logs.get_logger()
        server = _started(HubServer(HubFolder(folder), options, log, hook), options)
        log.info("hub_serving", url=server.url, folder=str(folder), needs_token=bool(options.token))
        _announce(server.url, options)
        try:
            _until_asked_to_end()
        finally:
            server.stop()
        log.info("hub_ended")


@contextmanager
def hub_beside(folder: Path | None, endpoint: str, models: Iterable[str]) -> Iterator[None]:
    """Serve a folder hub from this process for a while, if one is named.

    Args:
        folder: the hub; made if it is missing. None: nothing is served.
        endpoint: where the updater asks, for example "http://127.0.0.1:8090"; an address of this machine.
        models: what it asks for, as OWNER/NAME; they are there from the start, without a revision.

    Raises:
        WronglyUsed: the endpoint is no place that can be served at.
        CommandFailed: it cannot be listened at.
    """
    if folder is None:
        yield
        return
    place = urlsplit(endpoint)
    if place.scheme != "http" or not place.hostname or not place.port or place.path:
        example = 'hub_endpoint = "http://127.0.0.1:8090"'
        raise WronglyUsed(f"--serve-hub serves where the updater asks; the settings need [updater] {example}")
    for model in models:
        (folder / model.rpartition("/")[2]).mkdir(parents=True, exist_ok=True)
    # The updater asks every few seconds: what it is told stands in its own log.
    with logs.configure("hub", "warning"):
        listening = HubServerOptions(place.hostname, place.port)
        server = _started(HubServer(HubFolder(folder), listening, logs.get_logger()), listening)
        try:
            yield
        finally:
            server.stop()


def _started(server: HubServer, listening: HubServerOptions) -> HubServer:
    try:
        server.start()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CommandFailed(f"the hub cannot listen at {listening.host}:{listening.port}: {why}") from error
    return server


def _announce(url: str, listening: HubServerOptions) -> None:
    err.print(text(("the hub is at ", GOOD), (url, "bold"), ("  Ctrl-C ends it", DIM)), soft_wrap=True)
    if not listening.token and listening.host not in _LOOPBACK:
        step = "no token is asked for: whoever reaches the port may download; give --token-file to change that"
        err.print(text((step, DOUBTFUL)), soft_wrap=True)
    if listening.token and listening.tls is None and listening.host not in _LOOPBACK:
        step = "the token travels in the open; give --tls-cert and --tls-key, or put a proxy before it that speaks TLS"
        err.print(text((step, DOUBTFUL)), soft_wrap=True)


def _until_asked_to_end() -> None:
    asked = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: asked.set()) for number in numbers}
    try:
        asked.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        token = read_bounded(path, _MAX_TOKEN_BYTES).decode("ascii").strip()
    except ValueError as error:
        raise WronglyUsed(f"{path} holds no token: one line of ASCII is expected") from error
    if not token or not token.isprintable() or " " in token:
        raise WronglyUsed(f"{path} holds no token: one line of ASCII is expected")
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
        raise WronglyUsed(f"{certificate} and {key} are no certificate and its key: {error.reason}") from error
    return context
