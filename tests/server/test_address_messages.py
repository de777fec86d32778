"""The messages of address tagging: what is refused, and where the parts of an answer are."""

import pytest

from common.errors import InputRefused
from hotslot.address.v1 import address_pb2 as pb
from hotslot.runner.v1 import runner_pb2
from inference.server.api.address import ADDRESS
from inference.server.api.task import InputLimits, build_result
from inference.server.request import AddressInput, Prediction, ServedBy, list_labels, read_results
from inference.server.runner_client.replies import find_impossible_number
from inference.wire import AddressSpan

LIMITS = InputLimits(1000, 100, max_address_chars=40)
SERVED_BY = ServedBy("addresses", "v1", "sha256:0", "cpu", "a", "node")


def prediction(address: str, *spans: AddressSpan) -> Prediction:
    """The result of a request with one address."""
    return Prediction((spans,), (), (address,), SERVED_BY, 0.25, 0.5, 1.5)


@pytest.mark.parametrize(
    ("addresses", "reason", "field"),
    [
        ([], "ADDRESSES_MISSING", "addresses"),
        (["a"] * 65, "ADDRESSES_TOO_MANY", "addresses"),
        (["杭州市", ""], "ADDRESS_EMPTY", "addresses[1]"),
        ([" \u3000\u200b\t"], "ADDRESS_EMPTY", "addresses[0]"),
        (["杭" * 41], "ADDRESS_TOO_LONG", "addresses[0]"),
    ],
)
def test_an_invalid_field_is_refused_by_name(addresses: list[str], reason: str, field: str) -> None:
    """Missing, too many, empty, nothing but blanks, too long."""
    with pytest.raises(InputRefused) as refusal:
        ADDRESS.check(pb.PredictRequest(addresses=addresses), LIMITS)

    assert (refusal.value.reason, refusal.value.field) == (reason, field)


def test_addresses_stay_as_the_caller_wrote_them() -> None:
    """Places in the answer are those of the caller's text, so nothing is normalised."""
    address = "e\u0301路\u200b\u3000#1"

    assert ADDRESS.check(pb.PredictRequest(addresses=[address]), LIMITS).addresses == (address,)


def test_rows_follow_the_length() -> None:
    """A usual address is a row; a long one costs more."""
    payload = AddressInput(("杭州", "杭" * 33))

    assert (payload.rows, ADDRESS.count_rows(pb.PredictRequest(addresses=payload.addresses), LIMITS)) == (3, 3)


@pytest.mark.parametrize("addresses", [["杭"] * 65, ["杭" * 41, "杭"], ["杭" * 10**6]])
def test_what_will_be_refused_costs_a_row(addresses: list[str]) -> None:
    """The turns of other callers' streams do not wait for work that is never done."""
    assert ADDRESS.count_rows(pb.PredictRequest(addresses=addresses), LIMITS) == 1


@pytest.mark.parametrize(
    ("address", "start", "end", "text", "start_byte", "end_byte"),
    [
        ("浙江省杭州市", 3, 6, "杭州市", 9, 18),
        ("𠀀路A座", 1, 3, "路A", 4, 8),
        ("e\u0301路", 0, 2, "e\u0301", 0, 3),
        (" \uff19号", 1, 3, "\uff19号", 1, 7),
        ("😀\u3000杭", 2, 3, "杭", 7, 10),
    ],
)
def test_spans_have_code_points_and_bytes(
    address: str, start: int, end: int, text: str, start_byte: int, end_byte: int
) -> None:
    """Of astral characters, combining marks, full-width digits and blanks."""
    response = ADDRESS.build_response(prediction(address, AddressSpan("x", start, end, 0.5)))

    span = response.results[0].spans[0]
    assert address.encode()[span.start_byte : span.end_byte].decode() == text
    assert (span.text, span.start, span.end) == (text, start, end)
    assert (span.start_byte, span.end_byte) == (start_byte, end_byte)


def test_components_have_the_first_of_each_kind() -> None:
    """A kind that is repeated has all its texts beside them, in reading order."""
    spans = (AddressSpan("poi", 0, 2, 0.5), AddressSpan("road", 2, 3, 0.5), AddressSpan("poi", 3, 5, 0.75))

    result = ADDRESS.build_response(prediction("天地路广场", *spans)).results[0]

    assert dict(result.components) == {"poi": "天地", "road": "路"}
    assert [(one.kind, list(one.texts)) for one in result.all_components] == [
        ("poi", ["天地", "广场"]),
        ("road", ["路"]),
    ]
    assert [(span.kind, span.text) for span in result.spans] == [("poi", "天地"), ("road", "路"), ("poi", "广场")]
    assert result.spans[2].probability == 0.75


def test_an_answer_says_who_answered_and_when() -> None:
    """served_by and timing, also in a stream."""
    result = build_result(ADDRESS, "one", prediction("杭州"))

    assert (result.item_id, result.response.served_by.model, result.response.timing.computed.nanos) == (
        "one",
        "addresses",
        500_000_000,
    )


def test_a_runner_s_reply_becomes_results() -> None:
    """One result an address, in order; its labels are the kinds."""
    item = runner_pb2.Item()
    AddressInput(("杭州", "")).write(item)
    outcome = runner_pb2.ItemOutcome(item_id=1)
    outcome.address.addresses.add().spans.add(kind="city", start=0, end=2, probability=0.5)
    outcome.address.addresses.add()

    results = read_results(outcome)

    assert list(item.address.addresses) == ["杭州", ""]
    assert results == ((AddressSpan("city", 0, 2, 0.5),), ())
    assert list_labels(results) == ("city",)


@pytest.mark.parametrize("wrong", [{"probability": 1.5}, {"probability": float("nan")}, {"start": 2}, {"start": -1}])
def test_an_impossible_span_is_a_fault_of_the_runner(wrong: dict[str, float]) -> None:
    """A probability beyond 1, a span without characters."""
    fields = {"start": 0, "end": 2, "probability": 0.5, **wrong}
    outcome = runner_pb2.ItemOutcome(item_id=1)
    outcome.address.addresses.add().spans.add(kind="city", **fields)
    reply = runner_pb2.RunnerReply(items=runner_pb2.ItemsReply(outcomes=[outcome]))

    assert find_impossible_number(reply).startswith("an impossible")


def test_addresses_that_differ_have_other_digests() -> None:
    """Where one address ends and the next begins counts."""
    digests = {AddressInput(one).identify() for one in (("ab", "c"), ("a", "bc"), ("abc",))}

    assert len(digests) == 3
