"""Invalid requests are answered with code, reason and field, in unary calls and in streams."""

from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from dev.harness.answers import Question, question, scores_of
from dev.harness.stack import DEADLINE_SECONDS, ENTAILMENT, Stack
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2 as pb
from tests.stack.refusal import refusal_of, status_refusal
from tests.stack.wire import field_bytes, item_message, one_item, predict_raw, results_of, stream_raw

MIB = 1 << 20
JPEG_BEGIN = b"\xff\xd8\xff\xe0\x00\x10JFIF"  # and nothing more


@dataclass(frozen=True, slots=True)
class Bad:
    """An invalid request and the expected error."""

    name: str
    fault: str
    raw: bytes
    code: str
    reason: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def bad(name: str, fault: str, request: pb.PredictRequest | bytes, reason: str, field: str = "", code: str = "") -> Bad:
    """Build a row of the table."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return Bad(name, fault, raw, code or "INVALID_ARGUMENT", reason, (field,) if field else ())


def ask(*statements: str, image: bytes = b"picture", **fields: str) -> pb.PredictRequest:
    """A request."""
    return pb.PredictRequest(image=pb.Image(content=image), statements=statements, **fields)


TABLE = [
    # The scripted engine knows such pictures by their first bytes; real ones are tested with the OFA engine.
    bad("not a picture", "I1", ask("a", image=b"!bad GIF"), "IMAGE_UNREADABLE", "image.content"),
    bad("a truncated JPEG", "I2", ask("a", image=b"!bad" + JPEG_BEGIN), "IMAGE_UNREADABLE", "image.content"),
    bad("a picture of 17 MiB", "I6", ask("a", image=bytes(17 * MIB)), "IMAGE_TOO_LARGE", "image.content"),
    bad("no picture", "I11", pb.PredictRequest(statements=["a"]), "IMAGE_MISSING", "image.content"),
    bad("unset oneof", "I11", pb.PredictRequest(image=pb.Image(), statements=["a"]), "IMAGE_MISSING", "image.content"),
    bad("a picture of 0 bytes", "I11", ask("a", image=b""), "IMAGE_MISSING", "image.content"),
    bad("no statement", "I8", ask(), "STATEMENTS_MISSING", "statements"),
    bad("33 statements", "I8", ask(*["a"] * 33), "STATEMENTS_TOO_MANY", "statements"),
    bad("an empty statement", "I8", ask("a", ""), "STATEMENT_EMPTY", "statements[1]"),
    bad("a blank statement", "I8", ask("a", "b", " \t\n\u3000"), "STATEMENT_EMPTY", "statements[2]"),
    bad("an invisible statement", "I9", ask("a", "\u200b\ufeff\0"), "STATEMENT_EMPTY", "statements[1]"),
    bad("an invisible premise", "I9", ask("a", premise="\u2060 "), "PREMISE_EMPTY", "premise"),
    bad("a statement of 1,001", "I8", ask("a" * 1001), "STATEMENT_TOO_LONG", "statements[0]"),
    bad("a statement of 10 MB", "I8", ask("a" * 10_000_000), "STATEMENT_TOO_LONG", "statements[0]"),
    bad("a premise of 1,001", "I8", ask("a", premise="b" * 1001), "PREMISE_TOO_LONG", "premise"),
    bad("a refused statement", "I8", ask("a", "!refuse"), "STATEMENT_REFUSED", "statements[1]"),
    bad("an unknown model", "I10", ask("a", model="squares"), "MODEL_UNKNOWN", "model", "NOT_FOUND"),
    bad("a model of 10,000", "I10", ask("a", model="m" * 10_000), "MODEL_UNKNOWN", "model", "NOT_FOUND"),
    bad("invalid UTF-8", "I8", ask("a").SerializeToString() + field_bytes(3, b"\xff\xfe"), "MESSAGE_MALFORMED"),
    bad("no protobuf", "I19", b"\x0a\xff\xff\xff\xff\x0f and so on", "MESSAGE_MALFORMED"),
    bad("an HTML page", "I19", b"<html><body>hello</body></html>", "MESSAGE_MALFORMED"),
]
ROWS = [pytest.param(row, id=str(row), marks=pytest.mark.fault(row.fault)) for row in TABLE]


@pytest.mark.parametrize("row", ROWS)
def test_a_wrong_request_is_answered_with_its_reason_and_field(stack: Stack, row: Bad) -> None:
    """An invalid unary call fails with the code, reason and field of the contract, without internal details."""
    with pytest.raises(grpc.RpcError) as error:
        predict_raw(stack, row.raw)

    refusal = refusal_of(error.value)
    assert refusal.brief == (row.code, row.reason, row.fields)
    assert refusal.domain == "hotslot"
    assert refusal.message
    assert len(refusal.message) < 500, "what the caller sent is not sent back in full"
    stack.check(question())


@pytest.mark.parametrize("row", ROWS)
def test_an_invalid_item_does_not_end_its_stream(stack: Stack, row: Bad) -> None:
    """The error is that item's outcome; the items around it are answered."""
    before, after = question(), question()
    messages = [
        one_item("before", before.request()).SerializeToString(),
        item_message("wrong", row.raw),
        one_item("after", after.request()).SerializeToString(),
    ]

    results = {result.item_id: result for result in results_of(stream_raw(stack, messages))}

    wrong_id = "" if row.reason == "MESSAGE_MALFORMED" else "wrong"
    assert set(results) == {"before", wrong_id, "after"}
    refusal = status_refusal(results[wrong_id].error)
    assert (refusal.brief, refusal.domain) == ((row.code, row.reason, row.fields), "hotslot")
    for item_id, asked in (("before", before), ("after", after)):
        assert scores_of(results[item_id].response) == stack.answers.of("r1", asked)


def items(*pairs: tuple[str, Question]) -> pb.StreamPredictRequest:
    """A message."""
    return pb.StreamPredictRequest(
        items=[pb.StreamItem(item_id=name, request=asked.request()) for name, asked in pairs]
    )


STREAM_TABLE = [
    pytest.param(items(("", question())), "", "ITEM_ID_MISSING", "item_id", id="missing id"),
    pytest.param(items(("i" * 129, question())), "i" * 129, "ITEM_ID_TOO_LONG", "item_id", id="long id"),
    pytest.param(pb.StreamPredictRequest(), "", "ITEMS_MISSING", "items", id="no items"),
    pytest.param(items(*[("x", question())] * 65), "", "ITEMS_TOO_MANY", "items", id="65 items"),
    pytest.param(
        pb.StreamPredictRequest(items=[pb.StreamItem(item_id="x")]),
        "x",
        "IMAGE_MISSING",
        "image.content",
        id="no request",
    ),
]


@pytest.mark.parametrize(("message", "item_id", "reason", "field"), STREAM_TABLE)
def test_an_invalid_message_does_not_end_its_stream(
    stack: Stack, message: pb.StreamPredictRequest, item_id: str, reason: str, field: str
) -> None:
    """A message that does not parse gets one error outcome, and the stream continues."""
    after = question()

    messages = iter([message, items(("after", after))])
    results = results_of(stack.entailment.StreamPredict(messages, timeout=DEADLINE_SECONDS))

    assert sorted(result.item_id for result in results) == sorted([item_id, "after"])
    wrong = next(result for result in results if result.WhichOneof("outcome") == "error")
    assert status_refusal(wrong.error).brief == ("INVALID_ARGUMENT", reason, (field,))


@pytest.mark.fault("I12")
def test_a_duplicate_id_is_refused_and_the_first_keeps_its_answer(stack: Stack) -> None:
    """While an item is unanswered, a second one with its id is refused; afterwards the id can be used again."""
    first, again = question("!slow 0.2"), question()

    results = results_of(
        stack.entailment.StreamPredict(
            iter([items(("same", first), ("same", again)), items(("other", question("!slow 0.1")))]),
            timeout=DEADLINE_SECONDS,
        )
    )

    mine = [result for result in results if result.item_id == "same"]
    assert [result.WhichOneof("outcome") for result in mine] == ["error", "response"]
    assert status_refusal(mine[0].error).brief == ("INVALID_ARGUMENT", "ITEM_ID_DUPLICATE", ("item_id",))
    assert scores_of(mine[1].response) == stack.answers.of("r1", Question(first.image, ("!slow 0.2",)))


@pytest.mark.fault("I6")
def test_a_message_over_the_size_limit_ends_its_call(stack: Stack) -> None:
    """A message of 40 MiB ends a unary call and a stream with RESOURCE_EXHAUSTED; the server keeps serving."""
    huge = ask("a", image=bytes(40 * MIB))
    with pytest.raises(grpc.RpcError) as unary:
        stack.entailment.Predict(huge, timeout=DEADLINE_SECONDS)
    with pytest.raises(grpc.RpcError) as stream:
        results_of(stack.entailment.StreamPredict(iter([one_item("huge", huge)]), timeout=DEADLINE_SECONDS))

    assert refusal_of(unary.value).brief == ("RESOURCE_EXHAUSTED", "", ())
    assert refusal_of(stream.value).brief == ("RESOURCE_EXHAUSTED", "", ())
    stack.check(question())


@pytest.mark.fault("I7")
def test_a_gzip_bomb_is_refused_before_it_is_unpacked(stack: Stack) -> None:
    """So is every compressed request: 64 MiB of zeros are a few KB on the wire."""
    with pytest.raises(grpc.RpcError) as error:
        stack.entailment.Predict(
            ask("a", image=bytes(64 * MIB)), timeout=DEADLINE_SECONDS, compression=grpc.Compression.Gzip
        )

    assert refusal_of(error.value).code == "UNIMPLEMENTED"
    stack.check(question())


ODD_TEXTS = {
    "a\u0007b\x00c": "abc",
    "\u202eright\tto\u3000left": "right to left",
    "🦊🏳️‍🌈": "🦊🏳️‍🌈",
    "</s>": "</s>",
    "<code_1> <s> <mask>": "<code_1> <s> <mask>",
    "ﬁ ①": "ﬁ ①",
    "a" * 1000: "a" * 1000,
}


@pytest.mark.fault("I9")
@pytest.mark.parametrize(("sent", "read"), ODD_TEXTS.items(), ids=range(len(ODD_TEXTS)))
def test_unusual_characters_are_accepted(stack: Stack, sent: str, read: str) -> None:
    """The model reads what a person sees: emoji and spelled tokens as they are, controls and direction marks not."""
    asked = question(sent, premise=sent)

    response = stack.entailment.Predict(asked.request(), timeout=DEADLINE_SECONDS)

    assert scores_of(response) == stack.answers.of("r1", Question(asked.image, (read,), read))


@pytest.mark.fault("I6")
def test_a_picture_at_its_limit_is_answered(stack: Stack) -> None:
    """16 MiB, 32 statements and a premise are answered in one response."""
    asked = question(*[f"statement {number}" for number in range(32)], image=bytes(16 * MIB), premise="given")

    assert stack.check(asked) == "r1"


def test_an_unknown_method_is_unimplemented(stack: Stack) -> None:
    """A method that the service does not have fails with UNIMPLEMENTED."""
    channel: Any = stack.channel
    call = channel.unary_unary(f"/{ENTAILMENT}/Guess")
    with pytest.raises(grpc.RpcError) as error:
        call(b"", timeout=DEADLINE_SECONDS)

    assert refusal_of(error.value).code == "UNIMPLEMENTED"


def test_a_task_without_a_model_is_not_found(stack: Stack) -> None:
    """The service exists; its calls say that no model of its task is served here."""
    request = address_pb2.PredictRequest(addresses=["浙江省杭州市"])
    with pytest.raises(grpc.RpcError) as error:
        stack.tagging.Predict(request, timeout=DEADLINE_SECONDS)

    refusal = refusal_of(error.value)
    assert (refusal.code, refusal.reason, refusal.domain) == ("NOT_FOUND", "MODEL_UNKNOWN", "hotslot")
