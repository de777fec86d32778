"""Runs the console's HTTP server until it is stopped; `hotslot console` calls it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import uvicorn

from common.address import open_listener, parse_address
from common.clock import SystemClock
from common.console_settings import ConsoleSection
from common.reload import ReloadLog
from common.tokens import watch_tokens
from console.access import AccessRules
from console.app import Options, build_app
from console.connections import BoundedProtocol
from console.memory import return_large_blocks
from console.upstream import ServerAddress, Upstream

_BACKLOG = 1024
_STOP_SECONDS = 2  # pages that watch never end by themselves
_IDLE_SECONDS = 20


def run(
    section: ConsoleSection,
    find_server: Callable[[], ServerAddress],
    run_folder: Path,
    log: ReloadLog,
    on_ready: Callable[[str], None],
) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Args:
        section: `[console]`.
        find_server: returns the server that it shows, as its files name it now.
        run_folder: of the stack, with the sockets.
        log: of the process.
        on_ready: receives the URL once it listens.

    Raises:
        ListenFailed: says what is wrong with the address.
        FileUnusable: the tokens file cannot be used.
    """
    return_large_blocks()
    clock = SystemClock()
    tokens = None if section.tokens_file is None else watch_tokens(section.tokens_file, log, clock)
    address = parse_address(section.host, section.port)
    listener = open_listener(address, _BACKLOG)
    rules = AccessRules(
        listens_on=(address.host, f"[{address.host}]"),
        public_hosts=section.public_hosts,
        base_path=section.base_path,
        needs_login=tokens is not None and not address.is_loopback,
    )
    options = Options(rules, None if tokens is None else tokens.current, section.operate)
    app = build_app(options, lambda: Upstream(find_server, run_folder), clock)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_STOP_SECONDS,
        http=BoundedProtocol,
        proxy_headers=bool(section.public_hosts),  # X-Forwarded-Proto, for cookies that need TLS
        ws="none",
        h11_max_incomplete_event_size=64 << 10,
    )
    with listener:
        port = listener.getsockname()[1]
        on_ready(f"http://{_shown(section.host)}:{port}{section.base_path}/")
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
