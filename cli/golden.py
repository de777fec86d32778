"""`hotslot golden …`: record, run and show golden sets."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Group, RenderableType
from rich.table import Table

from cli.clients import connection, golden_folder, task_of
from cli.endpoint import Endpoint, calls_server
from cli.golden_junit import JunitCase, render_junit
from cli.golden_tasks import GoldenCall, ItemRefused, ask, find_addresses, find_pictures
from cli.output import BAD, DIM, GOOD, err, out, print_json, print_text, short, text
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import MAX_WAIT_SECONDS, AsJson
from common.answers import TASK_ANSWERS, TaskAnswers, count_directions, measure_distribution, sum_parts
from common.durable import write_atomic
from common.engine_files import Task
from common.golden_set import (
    SET_NAME,
    GoldenBroken,
    GoldenFolder,
    GoldenItem,
    GoldenSet,
    format_item,
    read_folder,
)

MAX_SHOWN = 20
CALLS_AT_ONCE = 8  # the server computes them together
_TOO_MANY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class ComparedAnswer:
    """One question of an item, with the set's answer and the model's."""

    item: GoldenItem
    question: str
    expected: str  # empty if the set has none
    recorded: str  # empty if the set has none
    answered: str  # empty if there is none

    @property
    def reference(self) -> str:
        """The reference of an answer; empty if the set has none."""
        return self.expected or self.recorded

    @property
    def is_right(self) -> bool:
        """Whether the answer equals the expected one or, if there is none, the recorded one."""
        return bool(self.answered) and self.answered == (self.reference or self.answered)


def compare(golden: GoldenFolder, answers: Mapping[str, Sequence[str]]) -> list[ComparedAnswer]:
    """Compare answers, by item, with the set; one row for each question."""
    rows = []
    for item in golden.golden.items:
        given = answers.get(item.item, ())
        for position, question in enumerate(item.texts):
            expected = item.expected[position] if item.expected else ""
            recorded = item.answers[position] if position < len(item.answers) else ""
            answered = given[position] if position < len(given) else ""
            rows.append(ComparedAnswer(item, question, expected, recorded, answered))
    return rows


def show_set(golden: GoldenFolder, rules: TaskAnswers) -> RenderableType:
    """The numbers of a set as a table."""
    items = golden.golden.items
    expected = [answer for item in items for answer in item.expected]
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_row(text(("set", DIM)), text(str(golden.folder)))
    table.add_row(text(("digest", DIM)), text(short(golden.digest)))
    table.add_row(text(("items", DIM)), text(str(len(items))))
    if rules.has_picture:
        table.add_row(text(("pictures", DIM)), text(str(len({item.image for item in items}))))
    questions = f"{golden.golden.questions}, of which {len(expected)} have an expected answer"
    table.add_row(text((rules.texts_key, DIM)), text(questions))
    if golden.copies:
        counted = f"{golden.copies} of them are asked before; {golden.distinct.questions} count, each once"
        table.add_row(text(("copies", DIM)), text((counted, BAD)))
    for label, share in measure_distribution(rules, expected).items():
        table.add_row(text((f"  {label}", DIM)), text(f"{share:.1%}"))
    return table


def show_compared(rows: Sequence[ComparedAnswer], rules: TaskAnswers) -> RenderableType:
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
        parts.append(text((f"{rest} {rules.texts_key} have neither an expected nor a recorded answer", DIM)))
    compared = [(row.reference, row.answered) for row in rows if row.reference]
    if compared and rules.has_parts:
        found = sum_parts(rules, compared)
        parts.append(
            text(f"parts: {found.right} of {found.expected} right, {found.given} found (micro-F1 {found.f1:.3f})")
        )
    ways = count_directions(rules, compared)
    if ways:
        parts.append(text(("most often: " + ", ".join(f"{way} ({count})" for way, count in ways), DIM)))
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
    for heading in ("item", "question", "set", "model"):
        table.add_column(heading, overflow="fold")
    for row in rows[:MAX_SHOWN]:
        answered = row.answered or "no answer"
        table.add_row(text(row.item.item), text(row.question), text(row.reference), text((answered, BAD)))
    if len(rows) > MAX_SHOWN:
        table.add_row(text((f"… {len(rows) - MAX_SHOWN} more", DIM)), text(""), text(""), text(""))
    return table


app = typer.Typer(no_args_is_help=True)
_OPTIONS = {
    Task.VISUAL_ENTAILMENT: "at least one --statement for the pictures in this folder",
    Task.ADDRESS_TAGGING: "--addresses FILE",
}

Folder = Annotated[
    Path | None,
    typer.Argument(metavar="[FOLDER]", help="Folder of the set. Default: from hotslot.toml.", show_default=False),
]
Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="NAME", help="Required if several models are served.", show_default=False),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", "-t", metavar="SECONDS", min=0.001, max=MAX_WAIT_SECONDS, help="Longest wait for each item."
    ),
]


@app.command(
    epilog='Example:  hotslot golden record pictures -s "there is a person" -s "it is dark"\n\n'
    "Example:  hotslot golden record FOLDER --addresses addresses.txt\n\n"
    'Next:  set golden = "FOLDER" in hotslot.toml at the model; then every new revision must pass the set.'
)
@calls_server
def record(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of the set, with its pictures.", file_okay=False),
    ],
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
    addresses: Annotated[
        Path | None,
        typer.Option("--addresses", metavar="FILE", help="A text file, an address a line.", show_default=False),
    ] = None,
    model: Model = "",
    endpoint: Endpoint,
    timeout: Timeout = 30.0,
) -> None:
    """Record the active model's answers about a folder of pictures, or addresses.

    They are written to golden.jsonl in the folder. What is in the set keeps its
    questions and expected answers; new pictures get the statements given here,
    new addresses are the lines of a file. A new revision is compared with the
    active model's answers. To require an answer, write it into the file by hand:
    "expected": ["yes"], or "expected": [[["prov", "浙江省"], ["city", "杭州市"]]].
    """
    task = Task(task_of(model))
    known = _read(folder, model).golden if (folder / SET_NAME).exists() else GoldenSet(())
    asked = GoldenSet((*known.items, *_find_new(task, folder, known, tuple(statements or ()), addresses)))
    if not asked.items:
        raise WronglyUsed(f"the set is empty; give {_OPTIONS[task]}")
    answers, refused = _answers_of(GoldenFolder(folder, asked, "", asked), model, endpoint, timeout)
    for name, why in refused.items():
        print_text((f"{name} is left out: ", BAD), why)
    recorded = [item for item in asked.items if item.item in answers]
    if not recorded:
        raise CommandFailed("the model answered no item; nothing was recorded")
    _write_set(folder, known, asked.items, answers)
    _read(folder, model)
    left = f", {len(refused)} left out" if refused else ""
    print_text(("recorded ", GOOD), f"{len(recorded)} items in {folder / SET_NAME}{left}")
    print_text((f'to use it, set in hotslot.toml at the model: golden = "{folder}"', DIM))


def _write_set(
    folder: Path, known: GoldenSet, items: Sequence[GoldenItem], answers: Mapping[str, Sequence[str]]
) -> None:
    """Write the items that were answered; one that was in the set stays, with its earlier answers."""
    min_accuracy = [f'{{"min_accuracy": {known.min_accuracy}}}\n'] if known.min_accuracy else []
    kept = {item.item for item in known.items}
    lines = [
        format_item(item, answers.get(item.item, ())) for item in items if item.item in answers or item.item in kept
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / SET_NAME, "".join(min_accuracy + lines).encode())


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
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Write a JUnit report, a case a question.", show_default=False),
    ] = None,
    min_accuracy: Annotated[
        float,
        typer.Option("--min-accuracy", metavar="SHARE", min=0, max=1, help="Share of right answers for exit code 0."),
    ] = 1.0,
) -> None:
    """Run a set on the active model; the exit code is 1 if an answer differs."""
    golden = _read(golden_folder(folder, model), model)
    answers, refused = _answers_of(golden, model, endpoint, timeout)
    rows = compare(golden, answers)
    if junit is not None:
        _write_junit(junit, model, golden, rows, refused)
    rules = TASK_ANSWERS[Task(task_of(model))]
    wrong = [row for row in rows if not row.is_right]
    if as_json:
        differing = [_row(row, rules) for row in wrong]
        print_json({"digest": golden.digest, rules.texts_key: len(rows), "differing": differing})
    else:
        out.print(show_compared(rows, rules))
    if len(rows) - len(wrong) < min_accuracy * len(rows):
        raise typer.Exit(1)


def _write_junit(
    path: Path, model: str, golden: GoldenFolder, rows: Sequence[ComparedAnswer], refused: Mapping[str, str]
) -> None:
    reasons = {row.item.item: refused[key] for row in rows if (key := row.item.image or row.item.item) in refused}
    cases = [JunitCase(row.item.item, row.question, _describe_failure(row)) for row in rows]
    try:
        write_atomic(path, render_junit(model, golden.digest, cases, reasons).encode())
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from error


def _describe_failure(row: ComparedAnswer) -> str:
    if row.is_right:
        return ""
    if not row.answered:
        return "no answer"
    return f"answered {row.answered}, {'expected' if row.expected else 'recorded'} {row.reference}"


@app.command(epilog="Example:  hotslot golden show\n\nNext:  `hotslot golden check` runs the set on the active model.")
def show(folder: Folder = None, *, model: Model = "", as_json: AsJson = False) -> None:
    """Show how many items and expected answers a set has. Works without a server."""
    golden = _read(golden_folder(folder, model), model)
    if as_json:
        row = {"folder": str(golden.folder), "digest": golden.digest, "items": len(golden.golden.items)}
        print_json({**row, "copies": golden.copies})
    else:
        out.print(show_set(golden, TASK_ANSWERS[Task(task_of(model))]))


def _read(folder: Path, model: str) -> GoldenFolder:
    try:
        return read_folder(folder, task_of(model))
    except GoldenBroken as error:
        raise CommandFailed(f"{folder}: {error}") from error


def _find_new(
    task: Task, folder: Path, known: GoldenSet, statements: tuple[str, ...], addresses: Path | None
) -> Iterator[GoldenItem]:
    """Items that are not in the set yet.

    Raises:
        WronglyUsed: the option is for models of another task, or there is no folder of pictures.
    """
    has_picture = TASK_ANSWERS[task].has_picture
    if (statements and not has_picture) or (addresses is not None and has_picture):
        raise WronglyUsed(f"the model is for {task.value}; give {_OPTIONS[task]}")
    if addresses is not None:
        return find_addresses(addresses, known)
    if not folder.is_dir():
        raise WronglyUsed(f"there is no folder {folder}")
    return find_pictures(folder, known, statements)


def _answers_of(
    golden: GoldenFolder, model: str, endpoint: Endpoint, timeout: float
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The active model's answers by item, and for each one that was refused why."""
    task, items = Task(task_of(model)), golden.golden.items
    answers: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}

    def answer(item: GoldenItem) -> None:
        try:
            answers[item.item] = ask(task, GoldenCall(channel, golden, item, model, timeout))
        except (ItemRefused, GoldenBroken) as error:  # the other items are still sent
            refused[item.image or item.item] = str(error)

    def answer_beside_others(item: GoldenItem) -> GoldenItem | None:
        """Returns the item if it takes too long beside others."""
        try:
            answer(item)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() in _TOO_MANY:
                return item
            raise
        return None

    with connection(endpoint, timeout) as channel, err.status(text("sending items")) as progress:
        alone = []
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            for number, left in enumerate(pool.map(answer_beside_others, items), start=1):
                progress.update(text(f"item {number} of {len(items)}"))
                alone += [] if left is None else [left]
        for item in alone:
            progress.update(text(f"item {item.item} once more, alone"))
            answer(item)
    return answers, refused


def _row(row: ComparedAnswer, rules: TaskAnswers) -> dict[str, object]:
    given = {"expected": row.expected, "recorded": row.recorded, "answered": row.answered}
    shown = {name: rules.to_json(answer) if answer else "" for name, answer in given.items()}
    return {"item": row.item.item, "question": row.question, **shown}
