"""`hotslot bundle explain`: what an import would use, ignore and refuse of a published folder."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from cli.model_folder import check_model_folder
from cli.output import BAD, DIM, DOUBTFUL, GOOD, out, print_json, text
from cli.settings import AsJson
from common.explanation import ExplainedPart, Explanation, Use
from common.sealing import ConvertLimits, run_explain

_STYLES = {Use.USED: GOOD, Use.IGNORED: DIM, Use.REFUSED: BAD, Use.MISSING: BAD, Use.UNREAD: DIM}
TIMEOUT_SECONDS = 300.0


def explain(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder of a revision, as published on the hub.", callback=check_model_folder
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Show what an import would do with every file, key and group of tensors.

    For each: whether hotslot uses, ignores or refuses it, and what ModelScope's
    pipeline does with it. Nothing is converted; the exit code is 1 if the folder
    cannot be imported as it is.
    """
    found = run_explain(source, ConvertLimits(timeout_seconds=TIMEOUT_SECONDS))
    if as_json:
        print_json(asdict(found))
    else:
        out.print(show_explanation(found, source))
    if found.refusals:
        raise typer.Exit(1)


def _split(part: ExplainedPart) -> tuple[str, str]:
    """Title of the table that a part belongs to, and its name in the table."""
    if part.kind != "key":
        return part.kind, part.name
    file, _, key = part.name.partition(": ")
    section, dot, name = key.rpartition(".")
    return (f"{file}: {section}", name) if dot else (file, key)


def show_explanation(found: Explanation, source: Path) -> RenderableType:
    """What must be changed and the notes; then tables of files, keys and tensors."""
    parts: list[RenderableType] = []
    if found.refusals:
        parts.append(text((f"{source} cannot be imported as it is:", BAD)))
        parts += [text("  ", sentence) for sentence in found.refusals]
        parts += [] if found.is_complete else [text("  The rest was not looked at; run it again.")]
    else:
        parts.append(text((f"{source} can be imported", GOOD), f", for engine {found.engine}"))
    parts += [text(("note: ", DOUBTFUL), note) for note in found.notes]
    tables: dict[str, Table] = {}
    for part in found.parts:
        title, name = _split(part)
        if title not in tables:
            tables[title] = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM)
            for heading in (title, "hotslot", "", "ModelScope's pipeline"):
                tables[title].add_column(heading, overflow="fold")
        use = text((part.use.value, _STYLES[part.use]))
        tables[title].add_row(text(name), use, text(part.detail), text(part.stock))
    for table in tables.values():
        parts += [text(""), table]
    return Group(*parts)
