"""The settings of the web console, which the stack, the console and the command line read."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from common.address import parse_address
from common.settings import Section

DEFAULT_CONSOLE_PORT = 50080
_PATH = r"^(/[A-Za-z0-9._~-]+)*$"
_HOST = r"^[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?$"


class ConsoleSection(Section):
    """`[console]`: the web console, a process of its own that calls server and updater."""

    enabled: Annotated[bool, Field(description="whether supervisord starts it beside the server")] = False
    host: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            description="address to listen on. Beyond this machine `tokens_file` is required; it speaks HTTP, so put a "
            "proxy with TLS before it",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port of its pages; 0: any free one, which is logged")] = (
        DEFAULT_CONSOLE_PORT
    )
    operate: Annotated[
        bool,
        Field(
            description="whether logged-in operators may approve, roll back, pause, resume, end a quarantine, and add "
            "golden items. Needs `tokens_file`"
        ),
    ] = False
    tokens_file: Annotated[
        Path | None,
        Field(
            description="who may log in: a file of names and hashes, made by `hotslot token new --file FILE NAME`. "
            "The audit trail has the name"
        ),
    ] = None
    base_path: Annotated[
        str,
        Field(pattern=_PATH, max_length=200, description="path under which a proxy shows it, for example /hotslot"),
    ] = ""
    public_hosts: Annotated[
        tuple[Annotated[str, Field(pattern=_HOST)], ...],
        Field(
            max_length=16,
            description="host names, with the port if it is not the usual one, under which browsers reach it through a "
            "proxy; other names are refused, which protects against DNS rebinding",
        ),
    ] = ()

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        try:
            is_local = parse_address(self.host, self.port).is_loopback
        except ValueError as error:
            raise ValueError(f"host {error}") from error
        if self.tokens_file is None and self.operate:
            raise ValueError("operate needs tokens_file: the audit trail names who acts")
        if self.tokens_file is None and not is_local:
            raise ValueError(f"needs tokens_file to listen on {self.host}, which other machines can reach")
        return self
