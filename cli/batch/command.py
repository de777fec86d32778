"""`hotslot batch`: answers for all rows of a folder or a file."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.batch.results import ResultsFile
from cli.batch.run import BatchRun
from cli.batch.sender import SendRules
from cli.batch.sources import Question, Source, open_source
from cli.endpoint import Endpoint, calls_server
from cli.output import err, print_json
from cli.problems import CommandFailed, WronglyUsed
from cli.settings import MAX_WAIT_SECONDS, AsJson
from common.clock import SystemClock
from common.engine_files import Task
from common.exit_codes import ExitCode

EXAMPLE = """Example:  hotslot batch pictures --statement "there is a person" --out results.jsonl

Next:  the same command again goes on where it was stopped; --retry-failed sends rows without an answer again."""
MAX_CONCURRENCY = 1024
MAX_STATEMENTS = 32  # of a request


class BatchPriority(StrEnum):
    """How the server treats the rows beside other callers'."""

    BULK = "bulk"
    INTERACTIVE = "interactive"


_In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A folder of pictures; a .csv, .tsv, .jsonl or .parquet file with columns image and statement, or"
        " address; a .txt file with an address a line.",
    ),
]
# A list, so that a second --out is seen; as a single path the last would be taken without a word.
_Out = Annotated[
    list[Path], typer.Option("--out", "-o", metavar="FILE", help="Results, a JSON line for each row. Once.")
]
_Statements = Annotated[
    list[str] | None,
    typer.Option(
        "--statement",
        "-s",
        metavar="TEXT",
        help="A sentence about each picture that has none of its own; 1 to 32.",
        show_default=False,
    ),
]
_Premise = Annotated[
    str, typer.Option(metavar="TEXT", help="A sentence that is assumed to be true.", show_default=False)
]
_Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME", help="Required if several models of this task are served.", show_default=False
    ),
]
_Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N rows.", show_default=False)]
_Concurrency = Annotated[
    int, typer.Option(metavar="N", min=1, max=MAX_CONCURRENCY, help="Rows that wait for their answer at a time.")
]
_Priority = Annotated[
    BatchPriority,
    typer.Option(
        help="bulk: other callers' single calls come first. interactive: sends single calls, with their priority."
    ),
]
_RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Send rows without an answer again.", show_default=False)
]
_Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", "-t", metavar="SECONDS", min=1, max=MAX_WAIT_SECONDS, help="Longest wait for any answer."
    ),
]


@calls_server
def batch(  # noqa: PLR0913  each is an option
    source: _In,
    *,
    endpoint: Endpoint,
    out: _Out,
    statements: _Statements = None,
    premise: _Premise = "",
    model: _Model = "",
    limit: _Limit = None,
    concurrency: _Concurrency = 64,
    priority: _Priority = BatchPriority.BULK,
    retry_failed: _RetryFailed = False,
    timeout: _Timeout = 300.0,
    as_json: AsJson = False,
) -> None:
    """Answer all rows of a folder or a file; goes on where it was stopped.

    Exit code 0: every row has an answer. 1: some have none. 130: stopped by Ctrl-C or SIGTERM.
    """
    if len(out) > 1:
        raise WronglyUsed(f"--out is given {len(out)} times; the results go into one file")
    path = out[0]
    question = Question(tuple(statements or ()), premise)
    rows = _open(source, question, path)
    terms = _terms_of(source, rows, question, model)
    rules = SendRules(model, concurrency, priority is BatchPriority.BULK, timeout)
    with ResultsFile(path, terms) as results:
        run = BatchRun(rows, results, limit, SystemClock())
        is_finished = run.go(endpoint, rules, retry_failed=retry_failed)
    if as_json:
        print_json(run.summary())
    else:
        run.show_summary(path)
    if not is_finished:
        err.print("interrupted; the same command goes on where it has stopped", soft_wrap=True)
        raise typer.Exit(ExitCode.INTERRUPTED)
    if rows.digest() != terms["digest"]:
        raise CommandFailed(f"{source} has changed while it was read; the results are of both contents")
    if not run.is_complete:
        raise typer.Exit(ExitCode.FAILED)


def _open(path: Path, question: Question, out: Path) -> Source:
    if len(question.statements) > MAX_STATEMENTS:
        raise WronglyUsed(
            f"--statement is given {len(question.statements)} times, at most {MAX_STATEMENTS} are allowed"
        )
    source = open_source(path, question)
    if out.resolve() == path.resolve():
        raise WronglyUsed("--out is the input itself; name another file")
    if out.exists() and not out.is_file():
        raise WronglyUsed(f"--out: {out} is not a regular file; the next run reads what is in it")
    if source.task is Task.ADDRESS_TAGGING and (question.statements or question.premise):
        raise WronglyUsed(f"{path} has addresses; --statement and --premise are for pictures")
    return source


def _terms_of(path: Path, source: Source, question: Question, model: str) -> Mapping[str, Any]:
    return {
        "version": 1,
        "input": str(path.resolve()),
        "digest": source.digest(),
        "task": source.task.value,
        "statements": list(question.statements),
        "premise": question.premise,
        "model": model,
    }
