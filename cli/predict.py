"""`hotslot predict`: statements about a picture, and the model's answers."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.call_tags import ModelVersion, RoutingKey, build_metadata
from cli.clients import connection
from cli.endpoint import Endpoint, calls_server
from cli.output import ABSENT, BAD, DIM, DOUBTFUL, GOOD, enum_word, out, plain, print_json, print_text, seconds, text
from cli.problems import CommandFailed
from cli.settings import MAX_WAIT_SECONDS, AsJson
from common.clock import SystemClock
from common.durable import read_bounded
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc

MAX_PICTURE_BYTES = 60 << 20  # the largest value that a server's settings allow
STDIN = "-"
EXAMPLE = """Example:  hotslot predict picture.png "there are two red circles" "the circle is blue"

Next:  `hotslot status` shows which revision answers; protos/ has the API for your own client."""
_LABEL_STYLES = {"yes": GOOD, "no": BAD, "maybe": DOUBTFUL}
_Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", "-t", metavar="SECONDS", min=0.001, max=MAX_WAIT_SECONDS, help="Longest wait for the answer."
    ),
]


@calls_server
def predict(  # noqa: PLR0913  each is an option
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="JPEG, PNG or WebP file; - reads standard input.")],
    statements: Annotated[
        list[str], typer.Argument(metavar="STATEMENT", help="1 to 32 sentences about the picture.", show_default=False)
    ],
    *,
    endpoint: Endpoint,
    premise: Annotated[
        str, typer.Option(metavar="TEXT", help="A sentence that is assumed to be true.", show_default=False)
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Required if several models of this task are served.",
            show_default=False,
        ),
    ] = "",
    timeout: _Timeout = 10.0,
    model_version: ModelVersion = "",
    routing_key: RoutingKey = "",
    as_json: AsJson = False,
) -> None:
    """Ask the model whether statements about a picture are true: yes, no or maybe."""
    request = entailment_pb2.PredictRequest(model=model, statements=statements, premise=premise)
    request.image.content = read_picture(picture)
    metadata = build_metadata(model_version, routing_key)
    clock = SystemClock()
    with connection(endpoint, timeout) as channel:
        started = clock.monotonic()
        stub = entailment_pb2_grpc.EntailmentServiceStub(channel)
        response = stub.Predict(request, timeout=timeout, metadata=metadata)
        took = clock.monotonic() - started
    if as_json:
        print_json(_as_row(statements, response, took))
    else:
        _show(statements, response, took)


def read_picture(picture: str) -> bytes:
    """Read a file, or standard input for `-`.

    Raises:
        CommandFailed: it cannot be read, is empty, or is larger than any server accepts.
    """
    if picture == STDIN:
        if sys.stdin.isatty():
            raise CommandFailed("standard input is a terminal; pipe a picture into it, or name a file")
        content = sys.stdin.buffer.read(MAX_PICTURE_BYTES + 1)
        if len(content) > MAX_PICTURE_BYTES:
            raise CommandFailed(f"standard input has more than {MAX_PICTURE_BYTES >> 20} MiB; send a smaller picture")
    else:
        try:
            content = read_bounded(Path(picture), MAX_PICTURE_BYTES)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise CommandFailed(f"cannot read {picture}: {why}; name a JPEG, PNG or WebP file") from error
        except ValueError as error:
            raise CommandFailed(f"{error}; send a smaller picture") from error
    if not content:
        raise CommandFailed("the picture is empty; name a JPEG, PNG or WebP file")
    return content


def _as_row(statements: list[str], response: entailment_pb2.PredictResponse, took: float) -> dict[str, object]:
    results = [
        {"statement": statement, **plain(result)}
        for statement, result in zip(statements, response.results, strict=True)
    ]
    return {**plain(response), "results": results, "round_trip_seconds": round(took, 6)}


def _show(statements: list[str], response: entailment_pb2.PredictResponse, took: float) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style=DIM)
    table.add_column("statement", overflow="fold")
    table.add_column("answer")
    for label in _LABEL_STYLES:
        table.add_column(label, justify="right", no_wrap=True)
    for statement, result in zip(statements, response.results, strict=True):
        word = enum_word(entailment_pb2.Label.DESCRIPTOR, result.label)
        scores = {"yes": result.scores.yes, "no": result.scores.no, "maybe": result.scores.maybe}
        shown = [text((f"{score:.1%}", "" if label == word else DIM)) for label, score in scores.items()]
        table.add_row(text(statement), text((word, _LABEL_STYLES.get(word, "bold"))), *shown)
    out.print(table)
    served, timing = response.served_by, response.timing
    parts = [
        f"{served.model} {served.revision or ABSENT}",
        f"{served.device}, slot {served.slot}",
        f"computed in {seconds(timing.computed.ToTimedelta().total_seconds())}",
        f"{seconds(took)} in all",
    ]
    print_text((" · ".join(parts), DIM))
