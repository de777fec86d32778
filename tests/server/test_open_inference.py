"""The Open Inference Protocol on the real server: the same slots, errors, log and doors as Predict."""

from typing import Any

import grpc
import pytest

from dev.harness.answers import Question, question
from dev.harness.stack import DEADLINE_SECONDS, OPEN_INFERENCE, Stack
from hotslot.oip.v2 import open_inference_pb2 as pb
from hotslot.oip.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from inference.server.api.tensors import join_elements
from tests.stack.refusal import refusal_of


def infer_request(asked: Question, model: str = "", version: str = "") -> pb.ModelInferRequest:
    """A question as tensors with raw contents."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="mine")
    texts = [text.encode() for text in asked.statements]
    for name, elements in (("image", [asked.image]), ("statements", texts)):
        request.inputs.add(name=name, datatype="BYTES", shape=[len(elements)])
        request.raw_input_contents.append(join_elements(elements))
    return request


def infer(stack: Stack, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """Send it."""
    return GRPCInferenceServiceStub(stack.channel).ModelInfer(request, timeout=DEADLINE_SECONDS)


def call_raw(stack: Stack, path: str, raw: bytes) -> bytes:
    """Send bytes."""
    send: Any = stack.channel.unary_unary(path)
    answer: bytes = send(raw, timeout=DEADLINE_SECONDS)
    return answer


def test_typed_contents_are_answered_by_typed_contents(stack: Stack) -> None:
    """With the scores of Predict, the revision, and where it was computed."""
    asked = question("a", "b")
    request = infer_request(asked)
    del request.raw_input_contents[:]
    request.inputs[0].contents.bytes_contents.append(asked.image)
    request.inputs[1].contents.bytes_contents.extend(text.encode() for text in asked.statements)
    response = infer(stack, request)

    scores, labels = response.outputs
    expected = [number for row in stack.answers.of("r1", asked) for number in row]
    assert list(scores.contents.fp32_contents) == pytest.approx(expected)
    assert (list(scores.shape), list(labels.shape), len(labels.contents.bytes_contents)) == ([2, 3], [2], 2)
    assert (response.model_name, response.model_version, response.id) == ("shapes", "r1", "mine")
    assert response.parameters["digest"].string_param == stack.answers.digest_of("r1")


@pytest.mark.parametrize(
    ("asked", "code", "reason", "field"),
    [
        (question("a", image=b"!bad GIF"), "INVALID_ARGUMENT", "IMAGE_UNREADABLE", "image.content"),
        (question(*["a"] * 33), "INVALID_ARGUMENT", "STATEMENTS_TOO_MANY", "statements"),
        (question("a", ""), "INVALID_ARGUMENT", "STATEMENT_EMPTY", "statements[1]"),
        (question("!nan"), "INTERNAL", "NOT_FINITE", ""),
    ],
)
def test_errors_are_those_of_predict(stack: Stack, asked: Question, code: str, reason: str, field: str) -> None:
    """Code, reason, field."""
    with pytest.raises(grpc.RpcError) as caught:
        infer(stack, infer_request(asked))

    assert refusal_of(caught.value).brief == (code, reason, (field,) if field else ())


def test_a_message_that_does_not_parse_is_refused(stack: Stack) -> None:
    """As everywhere: INVALID_ARGUMENT."""
    for method in ("ModelInfer", "ServerLive", "ModelMetadata"):
        with pytest.raises(grpc.RpcError) as caught:
            call_raw(stack, f"/{OPEN_INFERENCE}/{method}", b"\xff")
        assert refusal_of(caught.value).brief == ("INVALID_ARGUMENT", "MESSAGE_MALFORMED", ())


def test_models_and_versions_that_are_not_here(stack: Stack) -> None:
    """NOT_FOUND, with what is unknown."""
    for model, version, reason in (("x", "", "MODEL_UNKNOWN"), ("", "r9", "VERSION_UNKNOWN")):
        with pytest.raises(grpc.RpcError) as caught:
            infer(stack, infer_request(question("a"), model, version))
        assert refusal_of(caught.value).brief[:2] == ("NOT_FOUND", reason)
    assert infer(stack, infer_request(question("a"), version="r1")).model_version == "r1"


def test_calls_are_logged_and_counted_as_others(stack: Stack) -> None:
    """One event a call with the fields of Predict; health knows the service."""
    stub = GRPCInferenceServiceStub(stack.channel)
    metadata = (("x-request-id", "open-inference"),)
    stub.ModelInfer(infer_request(question("a")), timeout=DEADLINE_SECONDS, metadata=metadata)

    row = stack.process.wait_event("call_ended", request_id="open-inference")
    assert (row["rpc_service"], row["rpc_method"], row["grpc_code"]) == (OPEN_INFERENCE, "ModelInfer", "OK")
    assert (row["revision"], row["statements"]) == ("r1", 1)
    assert stack.is_serving(OPEN_INFERENCE)
