"""The commands that pages show, checked without running them: by the command line's own parser and the Makefile."""

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from cli import healthcheck
from cli.app import make_app
from dev.documents.blocks import ROOT, Block

_SEPARATORS = frozenset({";", "|", "||", "&&", "&", "(", ")", ";;", "|&"})
_REDIRECTS = frozenset({">", ">>", "<", ">|", ">&", "<<<"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?")
_TARGET = re.compile(r"^([a-z][a-z0-9-]*):(?!=)", re.MULTILINE)


def list_lines(block: Block) -> list[str]:
    """The command lines of a block, each whole."""
    lines = block.text.splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    whole: list[str] = []
    pending, ends_with = "", ""
    for line in lines:
        if ends_with:  # the content of a file that the command writes
            ends_with = "" if line.strip() == ends_with else ends_with
            continue
        pending += line
        if _is_open(pending):
            pending = pending.removesuffix("\\") + " "
            continue
        document = _HEREDOC.search(pending)
        if document:
            ends_with = document[1]
            pending = pending[: document.start()] + pending[document.end() :]
        if pending.strip() and not pending.lstrip().startswith("#"):
            whole.append(pending.strip())
        pending = ""
    return whole


def _is_open(line: str) -> bool:
    if line.endswith("\\"):
        return True
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return True  # a quotation that goes on
    return False


def split_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, without assignments before it and redirections behind it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for token in lexer:
        if token in _SEPARATORS:
            yield from _nonempty(words)
            words = []
        elif redirected:
            redirected = False
        elif token in _REDIRECTS:
            redirected = True
        else:
            words.append(token)
    yield from _nonempty(words)


def _nonempty(words: list[str]) -> Iterator[list[str]]:
    while words and (_ASSIGNMENT.match(words[0]) or words[0] in {"$", "!", "export", "exec", "sudo"}):
        words = words[1:]
    if words:
        yield words


def find_mistake(words: Sequence[str], *, whole: bool = True) -> str:
    """What is wrong with a command; empty if nothing is known against it.

    Args:
        words: of the command.
        whole: whether arguments that the command requires must be there; a sentence may name the command alone.
    """
    program, rest = Path(words[0]).name, list(words[1:])
    if program == "hotslot":
        return find_hotslot_mistake(rest, whole=whole)
    if program == "make":
        return find_make_mistake(rest)
    if program in {"python", "python3"} and rest[:1] == ["-m"] and rest[1].split(".")[0] in {"dev", "examples"}:
        return "" if find_spec(rest[1]) else f"there is no module {rest[1]}"
    return ""


def find_make_mistake(words: Sequence[str]) -> str:
    """A target that the Makefile does not have."""
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    named = [word for word in words if not _ASSIGNMENT.match(word) and not word.startswith(("-", "…"))]
    unknown = [word for word in named if word not in targets and not word.endswith("…")]
    return f"the Makefile has no target {', '.join(unknown)}" if unknown else ""


@cache
def _command_line() -> Any:  # noqa: ANN401  typer's own copy of click has no public types
    return get_command(make_app())


def find_hotslot_mistake(words: Sequence[str], *, whole: bool = True) -> str:
    """An unknown command or option, an option without its value, or a missing argument of `hotslot`."""
    if words[:1] == ["healthcheck"]:
        return _find_probe_mistake(list(words[1:])) if whole else ""
    try:
        return _walk(_command_line(), "hotslot", list(words), whole=whole)
    except typer.TyperException as error:
        return str(getattr(error, "message", error))


def _walk(command: Any, path: str, words: list[str], *, whole: bool) -> str:  # noqa: ANN401
    context = command.context_class(command, info_name=path)
    found, rest, _ = command.make_parser(context).parse_args(words)
    if "help" in found or "show_version" in found:
        return ""
    commands = getattr(command, "commands", None)
    if commands is None:
        if rest and rest != ["…"]:
            return f"`{path}` takes no {rest[0]!r}"
        missing = [
            one.name for one in command.params if whole and one.required and found.get(one.name) in (None, (), [])
        ]
        return f"`{path}` needs {', '.join(missing)}" if missing else ""
    if not rest or rest[0] in {"…", "COMMAND"}:
        return f"`{path}` needs a command" if whole else ""
    if rest[0] not in commands:
        return f"`{path}` has no command {rest[0]!r}"
    return _walk(commands[rest[0]], f"{path} {rest[0]}", rest[1:], whole=whole)


def _find_probe_mistake(words: list[str]) -> str:
    try:
        healthcheck.parse_flags(words)
    except healthcheck.FlagsWrong as error:
        return str(error)
    return ""
