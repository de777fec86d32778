"""The options that say which version must answer a call, and to which key it belongs."""

from typing import Annotated

import typer

from cli.problems import WronglyUsed

MAX_CHARS = 256  # that the server reads

ModelVersion = Annotated[
    str,
    typer.Option(
        "--model-version",
        metavar="VERSION",
        help="Version that must answer: stable, canary, a revision or a digest. Default: any.",
        show_default=False,
    ),
]
RoutingKey = Annotated[
    str,
    typer.Option(
        "--routing-key",
        metavar="KEY",
        help="During a canary, calls of one key are assigned to the same revision.",
        show_default=False,
    ),
]


def build_metadata(model_version: str, routing_key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call.

    Raises:
        WronglyUsed: a value that the server would not receive as it is.
    """
    for flag, value in (("--model-version", model_version), ("--routing-key", routing_key)):
        if not (value.isascii() and value.isprintable() and value == value.strip()) or len(value) > MAX_CHARS:
            message = f"{flag} is at most {MAX_CHARS} printable ASCII characters, without a space at its ends"
            raise WronglyUsed(message)
    pairs = (("x-model-version", model_version), ("x-routing-key", routing_key))
    return tuple(pair for pair in pairs if pair[1])
