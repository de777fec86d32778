"""Expected failures of commands: each is reported in one sentence that says what to do next."""

import os
import re
import sys
from difflib import get_close_matches

from rich.table import Table

from cli.output import BAD, DIM, err, text
from common.bundle import BundleBroken, SchemaTooNew
from common.durable import NotRegular
from common.exit_codes import ExitCode
from common.settings import Mistake, SettingsInvalid
from common.source import ConversionRefused


class CommandFailed(Exception):
    """A command failed; the message says what to do next."""

    exit_code = ExitCode.FAILED


class WronglyUsed(CommandFailed):
    """The command line is wrong; the message says what to change."""

    exit_code = ExitCode.WRONG_USE


EXPECTED = (CommandFailed, SettingsInvalid, BundleBroken, ConversionRefused, OSError)


def report(error: Exception) -> int:
    """Print an expected failure on standard error; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    if isinstance(error, SettingsInvalid):
        report_mistakes(error)
        return ExitCode.WRONG_USE
    if isinstance(error, ConversionRefused):
        _say(f"{error} ({error.reason})")
    elif isinstance(error, BundleBroken) and not isinstance(error, SchemaTooNew):  # that names another way out
        _say(f"{error}; import the model again with `hotslot bundle import`")
    elif isinstance(error, OSError):
        _say(_describe_refusal(error))
    else:
        _say(str(error))
    return error.exit_code if isinstance(error, CommandFailed) else ExitCode.FAILED


def _describe_refusal(error: OSError) -> str:
    """What the system refused; an error of our own without a code has its sentence."""
    if error.strerror is None or (isinstance(error, NotRegular) and not error.filename):
        return str(error)
    return f"{error.filename or 'the system'}: {error.strerror.lower()}"


def report_mistakes(error: SettingsInvalid) -> None:
    """Print all mistakes of the settings as a table: key, value found, what is allowed."""
    from cli.config import list_settings  # noqa: PLC0415  slow to import, and rarely needed

    allowed = {row.key: row.allowed_words for row in list_settings()}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
    for heading in ("key", "found", "allowed"):
        table.add_column(heading, overflow="fold")
    for mistake in error.mistakes:
        message, found = mistake.message, mistake.found
        words = allowed.get(_unindexed(mistake.key), "")
        is_form = not message.startswith(("unknown key", "no such file", "not TOML", "too long", "too short"))
        sentence = words if words and is_form and found else message
        table.add_row(text((mistake.key, "bold")), text((found, BAD)), text(sentence + _guess(mistake, list(allowed))))
    number = len(error.mistakes)
    _say(f"the settings have {number} {'mistake' if number == 1 else 'mistakes'}")
    err.print(table)


def _say(sentence: str) -> None:
    err.print(text(("error: ", BAD), sentence), soft_wrap=True)


def _unindexed(key: str) -> str:
    """A key as the reference has it: `models[].name` for `models[0].name`."""
    return re.sub(r"\[\d+\]", "[]", key)


def _guess(mistake: Mistake, known: list[str]) -> str:
    if not mistake.message.startswith("unknown key"):
        return ""
    near = get_close_matches(_unindexed(mistake.key), known, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else "; `hotslot config reference` lists them"
