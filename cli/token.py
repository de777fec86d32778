"""`hotslot token …`: bearer tokens of callers. Works without a server, which reads the file again when it changes."""

import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.output import DIM, GOOD, err, out, print_json, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import AsJson, Config, read_settings
from common.clock import SystemClock
from common.reload import FileUnusable
from common.settings import settings_path
from common.tokens import NAME_PATTERN, TokenEntry, Tokens, load_tokens, make_entry, make_token, write_tokens

app = typer.Typer(no_args_is_help=True)
TokensFile = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="File of hashed tokens. Default: server.tokens_file of the settings.",
        show_default=False,
    ),
]


@app.command(
    epilog="Example:  hotslot token new shop-backend > shop.token\n\n"
    "Next:  give the caller this file; `hotslot predict --token-file shop.token …` uses it."
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the caller, in logs and [[callers]].")],
    *,
    file: TokensFile = None,
    config: Config = None,
) -> None:
    """Make a token for a caller: it is printed once, and its hash is added to the file.

    A caller may have several tokens. To replace one, make a new one, give it to
    the caller, and revoke the old one.
    """
    path = _tokens_file(file, config)
    token = make_token()
    entry = make_entry(name, token, SystemClock().now().date().isoformat())
    if not _is_name(name):
        raise WronglyUsed(f"{name!r} is no name: letters, digits and . _ - , at most 64, a letter or digit first")
    try:
        write_tokens(path, added=entry)
    except FileUnusable as error:
        raise CommandFailed(f"{path}: {error}") from error
    out.print(token, markup=False, soft_wrap=True)
    err.print(text(("token ", GOOD), f"{entry.id} of {name} added to {path}; it is not shown again"), soft_wrap=True)


@app.command("list", epilog="Example:  hotslot token list\n\nNext:  `hotslot token revoke ID` ends one of them.")
def list_tokens(*, file: TokensFile = None, config: Config = None, as_json: AsJson = False) -> None:
    """Show whose tokens are valid; the tokens themselves are not in the file."""
    entries = list(_load(_tokens_file(file, config)).entries.values())
    if as_json:
        print_json([{"id": entry.id, "name": entry.name, "date": entry.date} for entry in entries])
        return
    table = Table(box=None, padding=(0, 3, 0, 0), header_style=DIM)
    for heading in ("id", "name", "made on"):
        table.add_column(heading)
    for entry in entries:
        table.add_row(text(entry.id), text(entry.name), text(entry.date))
    out.print(table)


@app.command(epilog="Example:  hotslot token revoke shop-backend\n\nNext:  `hotslot token list` shows what is left.")
def revoke(
    which: Annotated[str, typer.Argument(metavar="ID|NAME", help="A token's id, or a caller's name: all its tokens.")],
    *,
    file: TokensFile = None,
    config: Config = None,
) -> None:
    """Remove tokens from the file; a running server refuses them within two seconds."""
    path = _tokens_file(file, config)
    found = [entry for entry in _load(path).entries.values() if _is_meant(entry, which)]
    if not found:
        raise CommandFailed(f"{path} has no token {which}; `hotslot token list` shows them")
    write_tokens(path, removed=found)
    shown = ", ".join(f"{entry.id} of {entry.name}" for entry in found)
    err.print(text(("revoked ", GOOD), shown), soft_wrap=True)


def _is_meant(entry: TokenEntry, which: str) -> bool:
    return which in (entry.id, entry.name)


def _is_name(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None


def _tokens_file(given: Path | None, config: Path | None) -> Path:
    if given is not None:
        return given
    path = read_settings(config).server.tokens_file if config is not None or settings_path().is_file() else None
    if path is None:
        raise WronglyUsed("the settings name no tokens_file; set it in [server], or give --file FILE")
    return path


def _load(path: Path) -> Tokens:
    try:
        return load_tokens(path)
    except FileUnusable as error:
        raise CommandFailed(f"{path}: {error}") from error
