"""What is sent and what comes back."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

Picture = bytes | os.PathLike[str]  # the bytes of a JPEG, PNG or WebP file, or its path


class Label(StrEnum):
    """Does the picture show what the statement says?"""

    YES = "yes"
    NO = "no"
    MAYBE = "maybe"  # the picture leaves it open
    UNKNOWN = "unknown"  # an answer that this version of the client does not know


@dataclass(frozen=True)
class ServedBy:
    """Which model answered, where."""

    model: str
    revision: str  # for people, for example "v1.2.0"
    digest: str  # of the bundle, "sha256:…"
    device: str
    slot: str
    node: str


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went in the server, in seconds."""

    queued: float
    prepared: float
    computed: float


@dataclass(frozen=True)
class StatementResult:
    """The answer to one statement; the three probabilities sum to 1."""

    statement: str
    label: Label
    yes: float
    no: float
    maybe: float


@dataclass(frozen=True)
class Prediction:
    """The answers to the statements about one picture, in their order."""

    results: tuple[StatementResult, ...]
    served_by: ServedBy
    timing: Timing

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels alone."""
        return tuple(result.label for result in self.results)


@dataclass(frozen=True)
class Span:
    """One part of an address, by code points and by bytes of its UTF-8."""

    kind: str  # of the model's own labels, for example "prov" or "road"
    text: str
    start: int
    end: int
    start_byte: int
    end_byte: int
    probability: float


@dataclass(frozen=True)
class AddressResult:
    """The parts of one address in reading order."""

    address: str
    spans: tuple[Span, ...]
    components: Mapping[str, str]  # the first part of each kind


@dataclass(frozen=True)
class Tagging:
    """The parts of the addresses of one request, in their order."""

    results: tuple[AddressResult, ...]
    served_by: ServedBy
    timing: Timing


@dataclass(frozen=True)
class EntailmentItem:
    """One item of `predict_many`: a picture and up to 32 statements about it."""

    picture: Picture = field(repr=False)
    statements: Sequence[str]
    premise: str = ""
    model: str = ""
    key: object = None  # the caller's own, for example the number of a row; not sent


@dataclass(frozen=True)
class AddressItem:
    """One item of `tag_many`: up to 64 addresses."""

    addresses: Sequence[str]
    model: str = ""
    key: object = None  # the caller's own, for example the number of a row; not sent


ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Outcome(Generic[ItemT, AnswerT]):
    """What became of one item: an answer, or the error for which it has none."""

    index: int  # of the item among the items of the stream, from 0
    item: ItemT
    answer: AnswerT | None = None
    error: Exception | None = None  # a HotslotError; an OSError or UnicodeError if the item cannot be sent

    def get(self) -> AnswerT:
        """The answer.

        Raises:
            HotslotError: there is none.
            OSError: the picture's file cannot be read.
            UnicodeError: a text has half a character (a lone surrogate).
        """
        if self.error is not None:
            raise self.error
        assert self.answer is not None  # noqa: S101  one of both is set
        return self.answer


@dataclass(frozen=True)
class Tls:
    """How the client speaks TLS. Bytes are PEM; what is a path is read when the client is made.

    Attributes:
        ca: certificates to trust; None: those that come with gRPC.
        certificate: the client's own, where the server asks for one.
        key: of that certificate.
        server_name: name in the server's certificate, if it is not the host of the address.
    """

    ca: bytes | os.PathLike[str] | None = None
    certificate: bytes | os.PathLike[str] | None = None
    key: bytes | os.PathLike[str] | None = field(default=None, repr=False)
    server_name: str = ""
