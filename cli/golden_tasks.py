"""How `hotslot golden` asks the active model, and finds items to record: one row of a table for each task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from cli.output import enum_word
from cli.problems import CommandFailed, WronglyUsed
from common.answers import AddressPart, format_parts
from common.durable import read_bounded
from common.engine_files import Task
from common.golden_set import MAX_TEXTS, GoldenFolder, GoldenItem, GoldenSet
from hotslot.address.v1 import address_pb2, address_pb2_grpc
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_ADDRESSES_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class GoldenCall:
    """A question to the active model."""

    channel: grpc.Channel
    golden: GoldenFolder
    item: GoldenItem
    model: str
    timeout: float


def _ask_statements(call: GoldenCall) -> tuple[str, ...]:
    item = call.item
    request = entailment_pb2.PredictRequest(model=call.model, statements=item.statements, premise=item.premise)
    request.image.content = call.golden.picture(item)
    response = entailment_pb2_grpc.EntailmentServiceStub(call.channel).Predict(request, timeout=call.timeout)
    return tuple(enum_word(entailment_pb2.Label.DESCRIPTOR, result.label) for result in response.results)


def _ask_addresses(call: GoldenCall) -> tuple[str, ...]:
    request = address_pb2.PredictRequest(model=call.model, addresses=call.item.addresses)
    response = address_pb2_grpc.AddressTaggingServiceStub(call.channel).Predict(request, timeout=call.timeout)
    return tuple(
        format_parts(AddressPart(span.kind, span.text, span.start) for span in result.spans)
        for result in response.results
    )


ASK: Final[Mapping[Task, Callable[[GoldenCall], tuple[str, ...]]]] = {
    Task.VISUAL_ENTAILMENT: _ask_statements,
    Task.ADDRESS_TAGGING: _ask_addresses,
}


class ItemRefused(Exception):
    """The model refused an item; the message says why."""


def ask(task: Task, call: GoldenCall) -> tuple[str, ...]:
    """The active model's answers, in the form of `common.answers`.

    Raises:
        ItemRefused: the model refused the item.
        GoldenBroken: its picture cannot be read.
    """
    try:
        return ASK[task](call)
    except grpc.RpcError as error:
        if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            raise ItemRefused(error.details() or "the model refused it") from error
        raise


def find_pictures(folder: Path, known: GoldenSet, statements: tuple[str, ...]) -> Iterator[GoldenItem]:
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


def find_addresses(path: Path, known: GoldenSet) -> Iterator[GoldenItem]:
    """Items for the lines of a text file that are not in the set yet, one each.

    Raises:
        CommandFailed: the file cannot be read.
    """
    try:
        lines = read_bounded(path, MAX_ADDRESSES_BYTES).decode("utf-8-sig").splitlines()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CommandFailed(f"cannot read {path}: {why}; name a text file with one address a line") from error
    except UnicodeDecodeError as error:
        raise CommandFailed(f"cannot read {path}: not UTF-8; name a text file with one address a line") from error
    except ValueError as error:
        raise CommandFailed(f"cannot read {path}: {error}; name a text file with one address a line") from error
    texts = {text for item in known.items for text in item.addresses}
    names = {item.item for item in known.items}
    number = 0
    for line in lines:
        if not line.strip() or line in texts:
            continue
        texts.add(line)
        number += 1
        while f"address-{number}" in names:
            number += 1
        yield GoldenItem(f"address-{number}", addresses=(line,))
