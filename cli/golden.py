"""`hotslot golden …`: record, run and show golden sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Group, RenderableType
from rich.table import Table

from cli.clients import connection, golden_folder, task_of
from cli.endpoint import Endpoint, calls_server
from cli.output import BAD, DIM, GOOD, enum_word, err, out, print_json, print_text, short, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import AsJson
from common.durable import write_atomic
from common.golden_set import (
    LABELS,
    MAX_TEXTS,
    SET_NAME,
    GoldenBroken,
    GoldenFolder,
    GoldenItem,
    GoldenSet,
    format_item,
    read_folder,
)
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class ComparedAnswer:
    """One statement of an item, with the set's answer and the model's."""

    item: GoldenItem
    statement: str
    expected: str  # empty if the set has none
    recorded: str  # empty if the set has none
    answered: str  # one of LABELS, or why there is none

    @property
    def is_right(self) -> bool:
        """Whether the answer equals the expected one or, if there is none, the recorded one."""
        return self.answered == (self.expected or self.recorded or self.answered) and self.answered in LABELS


def compare(golden: GoldenFolder, answers: Mapping[str, Sequence[str]]) -> list[ComparedAnswer]:
    """Compare answers, by item, with the set; one row for each statement."""
    rows = []
    for item in golden.golden.items:
        given = answers.get(item.item, ())
        for position, statement in enumerate(item.texts):
            expected = item.expected[position] if item.expected else ""
            recorded = item.answers[position] if position < len(item.answers) else ""
            answered = given[position] if position < len(given) else "no answer"
            rows.append(ComparedAnswer(item, statement, expected, recorded, answered))
    return rows


def show_set(golden: GoldenFolder) -> RenderableType:
    """The numbers of a set as a table."""
    items = golden.golden.items
    statements = sum(len(item.texts) for item in items)
    expecting = sum(len(item.expected) for item in items)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(text(("set", DIM)), text(str(golden.folder)))
    table.add_row(text(("digest", DIM)), text(short(golden.digest)))
    table.add_row(text(("items", DIM)), text(str(len(items))))
    table.add_row(text(("pictures", DIM)), text(str(len({item.image for item in items}))))
    table.add_row(text(("statements", DIM)), text(f"{statements}, of which {expecting} have an expected answer"))
    for word in LABELS:
        count = sum(item.expected.count(word) for item in items)
        if expecting:
            table.add_row(text((f"  {word}", DIM)), text(str(count)))
    return table


def show_compared(rows: Sequence[ComparedAnswer]) -> RenderableType:
    """How many answers are right, and the first wrong ones."""
    judged = [row for row in rows if row.expected]
    kept = [row for row in rows if not row.expected and row.recorded]
    parts: list[RenderableType] = []
    if judged:
        parts.append(_share("expected answers", judged))
    if kept:
        parts.append(_share("recorded answers", kept))
    rest = len(rows) - len(judged) - len(kept)
    if rest:
        parts.append(text((f"{rest} statements have neither an expected nor a recorded answer", DIM)))
    wrong = [row for row in rows if not row.is_right]
    if wrong:
        parts.append(_differing(wrong))
    return Group(*parts)


def _share(what: str, rows: Sequence[ComparedAnswer]) -> RenderableType:
    right = sum(row.is_right for row in rows)
    style = GOOD if right == len(rows) else ""
    return text(f"{what}: ", (f"{right} of {len(rows)} ({right / len(rows):.1%})", style))


def _differing(rows: Sequence[ComparedAnswer]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=DIM, title=None)
    for heading in ("item", "statement", "set", "model"):
        table.add_column(heading, overflow="fold")
    for row in rows[:MAX_SHOWN]:
        reference = row.expected or row.recorded
        table.add_row(text(row.item.item), text(row.statement), text(reference), text((row.answered, BAD)))
    if len(rows) > MAX_SHOWN:
        table.add_row(text((f"… {len(rows) - MAX_SHOWN} more", DIM)), text(""), text(""), text(""))
    return table


app = typer.Typer(no_args_is_help=True)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="Folder of the set. Default: from hotslot.toml.", show_default=False),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Required if several models are served.", show_default=False),
]
Timeout = Annotated[
    float, typer.Option("--timeout", "-t", metavar="SECONDS", min=0.001, help="Longest wait for each item.")
]


@app.command(
    epilog='Example:  hotslot golden record pictures -s "there is a person" -s "it is dark"\n\n'
    'Next:  set golden = "FOLDER" in hotslot.toml at the model; then every new revision must pass the set.'
)
@calls_server
def record(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of pictures.", exists=True, file_okay=False)],
    *,
    statements: Annotated[
        list[str] | None,
        typer.Option(
            "--statement",
            "-s",
            metavar="TEXT",
            help="A statement for each new picture; may be repeated.",
            show_default=False,
        ),
    ] = None,
    model: Model = "",
    endpoint: Endpoint,
    timeout: Timeout = 30.0,
) -> None:
    """Record the active model's answers about a folder of pictures.

    They are written to golden.jsonl in the folder. Pictures that are in the set
    keep their statements and expected answers; new pictures get the statements
    given here. A new revision is compared with the active model's answers. To
    require an answer, write it into the file by hand: "expected": ["yes"].
    """
    known = _read(folder, model).golden if (folder / SET_NAME).exists() else GoldenSet(())
    items = (*known.items, *_new_items(folder, known, tuple(statements or ())))
    if not items:
        raise WronglyUsed("the set is empty; give at least one --statement for the pictures in this folder")
    answers, refused = _answers_of(GoldenFolder(folder, GoldenSet(items), ""), model, endpoint, timeout)
    for name, why in refused.items():
        print_text((f"{name} is left out: ", BAD), why)
    recorded = [item for item in items if item.item in answers]
    if not recorded:
        raise CommandFailed("the model answered no item; nothing was recorded")
    min_accuracy = [f'{{"min_accuracy": {known.min_accuracy}}}\n'] if known.min_accuracy else []
    kept = {item.item for item in known.items}  # an item of the set stays, with its earlier answers
    lines = [
        format_item(item, answers.get(item.item, ())) for item in items if item.item in answers or item.item in kept
    ]
    write_atomic(folder / SET_NAME, "".join(min_accuracy + lines).encode())
    _read(folder, model)
    left = f", {len(refused)} pictures left out" if refused else ""
    print_text(("recorded ", GOOD), f"{len(recorded)} items in {folder / SET_NAME}{left}")
    print_text((f'to use it, set in hotslot.toml at the model: golden = "{folder}"', DIM))


@app.command(
    epilog="Example:  hotslot golden check\n\n"
    "Next:  correct wrong expectations in golden.jsonl, or find out why the model changed."
)
@calls_server
def check(
    folder: Folder = None,
    *,
    model: Model = "",
    endpoint: Endpoint,
    timeout: Timeout = 30.0,
    as_json: AsJson = False,
) -> None:
    """Run a set on the active model; the exit code is 1 if an answer differs."""
    golden = _read(golden_folder(folder, model), model)
    rows = compare(golden, _answers_of(golden, model, endpoint, timeout)[0])
    wrong = [row for row in rows if not row.is_right]
    if as_json:
        print_json({"digest": golden.digest, "statements": len(rows), "differing": [_row(row) for row in wrong]})
    else:
        out.print(show_compared(rows))
    if wrong:
        raise typer.Exit(1)


@app.command(epilog="Example:  hotslot golden show\n\nNext:  `hotslot golden check` runs the set on the active model.")
def show(folder: Folder = None, *, model: Model = "", as_json: AsJson = False) -> None:
    """Show how many items and expected answers a set has. Works without a server."""
    golden = _read(golden_folder(folder, model), model)
    if as_json:
        print_json({"folder": str(golden.folder), "digest": golden.digest, "items": len(golden.golden.items)})
    else:
        out.print(show_set(golden))


def _read(folder: Path, model: str) -> GoldenFolder:
    try:
        return read_folder(folder, task_of(model))
    except GoldenBroken as error:
        raise CommandFailed(f"{folder}: {error}") from error


def _new_items(folder: Path, known: GoldenSet, statements: tuple[str, ...]) -> Iterator[GoldenItem]:
    """Items for the pictures that are not in the set yet."""
    if len(statements) > MAX_TEXTS:
        raise WronglyUsed(f"{len(statements)} statements, at most {MAX_TEXTS} are allowed")
    images = {item.image for item in known.items}
    names = {item.item for item in known.items}
    for picture in sorted(folder.iterdir()) if statements else ():
        if picture.suffix.lower() in PICTURE_SUFFIXES and picture.name not in images:
            name = picture.stem if picture.stem not in names else picture.name
            names.add(name)
            yield GoldenItem(name, picture.name, statements=statements)


def _answers_of(
    golden: GoldenFolder, model: str, endpoint: Endpoint, timeout: float
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The active model's answers by item, and for each picture that was refused why."""
    answers: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    with connection(endpoint, timeout) as channel, err.status(text("sending items")) as progress:
        stub = entailment_pb2_grpc.EntailmentServiceStub(channel)
        for number, item in enumerate(golden.golden.items, start=1):
            progress.update(text(f"item {number} of {len(golden.golden.items)}"))
            try:
                answers[item.item] = _ask(stub, golden, item, model, timeout)
            except (_ItemRefused, GoldenBroken) as error:  # the other items are still sent
                refused[item.image or item.item] = str(error)
    return answers, refused


class _ItemRefused(Exception):
    """The model refused an item; the message says why."""


def _ask(
    stub: entailment_pb2_grpc.EntailmentServiceStub,
    golden: GoldenFolder,
    item: GoldenItem,
    model: str,
    timeout: float,
) -> tuple[str, ...]:
    request = entailment_pb2.PredictRequest(model=model, statements=item.statements, premise=item.premise)
    request.image.content = golden.picture(item)
    try:
        response = stub.Predict(request, timeout=timeout)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            raise _ItemRefused(error.details() or "the model refused it") from error
        raise
    return tuple(enum_word(entailment_pb2.Label.DESCRIPTOR, result.label) for result in response.results)


def _row(row: ComparedAnswer) -> dict[str, object]:
    given = {"expected": row.expected, "recorded": row.recorded, "answered": row.answered}
    return {"item": row.item.item, "statement": row.statement, **given}
