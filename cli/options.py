"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        "-a",
        metavar="HOST:PORT",
        help="Where the server listens. Default: HOTSLOT_ADDRESS, what hotslot.toml says, or 127.0.0.1:50051.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document, for machines.", show_default=False)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings file. Default: HOTSLOT_CONFIG or ./hotslot.toml.",
        show_default=False,
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="hotslot's own folder. Default: what hotslot.toml says, or ./state.",
        show_default=False,
    ),
]
