"""Tensors of the Open Inference Protocol: what is read, and which mistake is named."""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from common.engine_files import Task
from common.errors import InputRefused
from hotslot.oip.v2 import open_inference_pb2 as pb
from inference.server.api.tensors import TASK_TENSORS, choose_outputs, join_elements, read_inputs

ENTAILMENT = TASK_TENSORS[Task.VISUAL_ENTAILMENT]
ADDRESS = TASK_TENSORS[Task.ADDRESS_TAGGING]
Change = Callable[[pb.ModelInferRequest], object]


def tensor(name: str, *elements: bytes, shape: Sequence[int] | None = None, datatype: str = "BYTES") -> Any:  # noqa: ANN401
    """An input with typed contents."""
    contents = pb.InferTensorContents(bytes_contents=elements)
    dimensions = [len(elements)] if shape is None else shape
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=dimensions, contents=contents)


def typed(*texts: str) -> pb.ModelInferRequest:
    """A request with a picture and statements, as typed contents."""
    return pb.ModelInferRequest(
        inputs=[tensor("image", b"png"), tensor("statements", *(one.encode() for one in texts))]
    )


def raw(*texts: str) -> pb.ModelInferRequest:
    """The same as raw contents."""
    request = typed(*texts)
    for one in request.inputs:
        request.raw_input_contents.append(join_elements(one.contents.bytes_contents))
        one.ClearField("contents")
    return request


@pytest.mark.parametrize("make", [typed, raw])
def test_a_picture_and_statements_are_read(make: Callable[..., pb.ModelInferRequest]) -> None:
    """From typed and raw contents; an empty element is one too."""
    record = ENTAILMENT.build_request("shapes", read_inputs(make("a", "", "线"), ENTAILMENT.inputs))

    assert (record.fields.model, list(record.fields.statements), bytes(record.image)) == (
        "shapes",
        ["a", "", "线"],
        b"png",
    )


@pytest.mark.parametrize("shape", [[3], [1, 3], [3, 1], [1, 1, 3]])
def test_a_shape_counts_elements(shape: list[int]) -> None:
    """Batches in rows or columns are the same elements."""
    request = typed("a", "b", "c")
    request.inputs[1].shape[:] = shape

    assert len(read_inputs(request, ENTAILMENT.inputs)["statements"]) == 3


def add_typed(request: pb.ModelInferRequest) -> None:
    """Typed contents beside raw ones."""
    request.inputs[0].contents.bytes_contents.append(b"png")


def set_raw(place: int, content: bytes) -> Change:
    """Other raw contents."""

    def change(request: pb.ModelInferRequest) -> None:
        request.raw_input_contents[place] = content

    return change


def set_shape(*shape: int) -> Change:
    """Another shape of the statements."""

    def change(request: pb.ModelInferRequest) -> None:
        request.inputs[1].shape[:] = shape

    return change


def set_datatype(request: pb.ModelInferRequest) -> None:
    """Numbers where texts belong."""
    request.inputs[1].datatype = "FP32"


def set_shared_memory(request: pb.ModelInferRequest) -> None:
    """A picture in the caller's memory."""
    request.inputs[0].parameters["shared_memory_region"].string_param = "x"


def length(number: int) -> bytes:
    """The length of an element, as raw contents have it."""
    return struct.pack("<I", number)


RAW_MISTAKES: list[tuple[Change, str, str]] = [
    (add_typed, "TENSOR_CONTENTS", "inputs[0].contents"),
    (lambda request: request.raw_input_contents.pop(), "TENSOR_CONTENTS", "raw_input_contents"),
    (lambda request: request.raw_input_contents.append(b""), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_raw(1, b""), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_raw(1, b"\1\0\0"), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_raw(1, length(1) + b"a" + length(0xFFFFFFFF) + b"b"), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_raw(1, length(1) + b"a" + length(2) + b"b"), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_raw(1, length(1) + b"a" + length(1) + b"bc"), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_shape(3), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_shape(1), "TENSOR_CONTENTS", "raw_input_contents"),
    (set_shape(), "TENSOR_SHAPE", "inputs[1].shape"),
    (set_shape(-1), "TENSOR_SHAPE", "inputs[1].shape"),
    (set_shape(-1, -2), "TENSOR_SHAPE", "inputs[1].shape"),
    (set_shape(*[1] * 9), "TENSOR_SHAPE", "inputs[1].shape"),
    (set_shape(1 << 62, 1 << 62), "TENSOR_SHAPE", "inputs[1].shape"),
    (set_datatype, "TENSOR_DATATYPE", "inputs[1].datatype"),
    (set_shared_memory, "TENSOR_CONTENTS", "inputs[0].parameters"),
]
TYPED_MISTAKES: list[tuple[Change, str, str]] = [
    (set_shape(3), "TENSOR_SHAPE", "inputs[1].shape"),
    (lambda request: request.inputs[0].contents.fp32_contents.append(1), "TENSOR_CONTENTS", "inputs[0].contents"),
    (lambda request: request.inputs.pop(), "TENSOR_MISSING", "inputs"),
    (lambda request: request.inputs.add(name="x"), "TENSOR_UNKNOWN", "inputs[2].name"),
    (lambda request: request.inputs.append(request.inputs[0]), "TENSOR_DUPLICATE", "inputs[2].name"),
]


@pytest.mark.parametrize(("change", "reason", "field"), RAW_MISTAKES)
def test_a_mistake_in_raw_contents_is_refused(change: Change, reason: str, field: str) -> None:
    """Lengths that lie, both kinds of contents, wrong shapes and datatypes: named, and nothing large is allocated."""
    request = raw("a", "b")
    change(request)

    with pytest.raises(InputRefused) as refused:
        read_inputs(request, ENTAILMENT.inputs)
    assert (refused.value.reason, refused.value.field) == (reason, field)


@pytest.mark.parametrize(("change", "reason", "field"), TYPED_MISTAKES)
def test_a_mistake_in_typed_contents_is_refused(change: Change, reason: str, field: str) -> None:
    """Of a tensor, or of the list of them."""
    request = typed("a", "b")
    change(request)

    with pytest.raises(InputRefused) as refused:
        read_inputs(request, ENTAILMENT.inputs)
    assert (refused.value.reason, refused.value.field) == (reason, field)


def test_a_picture_is_one_element_and_texts_are_utf8() -> None:
    """What the shape of a tensor cannot say."""
    two = pb.ModelInferRequest(inputs=[tensor("image", b"a", b"b"), tensor("statements", b"a")])
    with pytest.raises(InputRefused) as refused:
        ENTAILMENT.build_request("", read_inputs(two, ENTAILMENT.inputs))
    assert (refused.value.reason, refused.value.field) == ("TENSOR_SHAPE", "image")

    other = pb.ModelInferRequest(inputs=[tensor("addresses", "北京".encode(), b"\xff")])
    with pytest.raises(InputRefused) as refused:
        ADDRESS.build_request("", read_inputs(other, ADDRESS.inputs))
    assert (refused.value.reason, refused.value.field) == ("TENSOR_CONTENTS", "addresses[1]")


@pytest.mark.parametrize(
    ("names", "reason"), [(("labels", "nothing"), "TENSOR_UNKNOWN"), (("labels", "labels"), "TENSOR_DUPLICATE")]
)
def test_wanted_outputs_must_be_known(names: tuple[str, ...], reason: str) -> None:
    """And each is wanted once."""
    request = pb.ModelInferRequest()
    for name in names:
        request.outputs.add(name=name)
    with pytest.raises(InputRefused) as refused:
        choose_outputs(request, ENTAILMENT.outputs)
    assert (refused.value.reason, refused.value.field) == (reason, "outputs[1].name")


def test_outputs_in_a_form_that_is_not_there_are_refused() -> None:
    """Classes of a classification, shared memory."""
    request = pb.ModelInferRequest()
    request.outputs.add(name="labels").parameters["classification"].int64_param = 1

    with pytest.raises(InputRefused) as refused:
        choose_outputs(request, ENTAILMENT.outputs)
    assert refused.value.reason == "TENSOR_CONTENTS"
