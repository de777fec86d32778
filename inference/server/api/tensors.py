"""Requests and answers of a task as the tensors of the Open Inference Protocol. Pure; the first mistake is refused."""

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from common.engine_files import Task
from common.errors import InputRefused
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2
from hotslot.oip.v2 import open_inference_pb2 as pb
from inference.server.api.address import ADDRESS
from inference.server.api.entailment import ParsedRequest
from inference.server.request import Prediction
from inference.wire import EntailmentScores

BYTES, FP32 = "BYTES", "FP32"
MAX_DIMENSIONS, MAX_ELEMENTS = 8, 1024
_LENGTH = struct.Struct("<I")  # of an element of BYTES
_SHARED_MEMORY = "shared_memory_region"
_REFUSED_OUTPUT = (_SHARED_MEMORY, "classification")

Elements = Sequence[memoryview]  # of one input


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a task."""

    name: str
    datatype: str
    shape: tuple[int, ...]  # -1: any
    is_required: bool = True


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output: its shape, and its elements in order."""

    shape: tuple[int, ...]
    elements: Sequence[float] | Sequence[bytes]


class TaskTensors(Protocol):
    """The tensors of one task."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The input tensors of the task."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The output tensors of the task."""
        ...

    def build_request(self, model: str, inputs: Mapping[str, Elements]) -> Any:  # noqa: ANN401  as of `TaskApi`
        """The record that the task's `TaskApi` parses a request into; its fields are checked there.

        Raises:
            InputRefused: an input has the wrong number of elements, or is not UTF-8.
        """
        ...

    def build_outputs(self, prediction: Prediction) -> Mapping[str, Tensor]:
        """The output tensors of a prediction, by name."""
        ...


class EntailmentTensors:
    """A picture and statements; their scores and labels."""

    inputs = (
        TensorSpec("image", BYTES, (1,)),
        TensorSpec("statements", BYTES, (-1,)),
        TensorSpec("premise", BYTES, (1,), is_required=False),
    )
    outputs = (TensorSpec("scores", FP32, (-1, 3)), TensorSpec("labels", BYTES, (-1,)))

    def build_request(self, model: str, inputs: Mapping[str, Elements]) -> ParsedRequest:
        """See `TaskTensors`."""
        premise = inputs.get("premise")
        fields = entailment_pb2.PredictRequest(
            model=model,
            statements=_decode("statements", inputs["statements"]),
            premise="" if premise is None else _decode("premise", [_only("premise", premise)])[0],
        )
        return ParsedRequest(fields, _only("image", inputs["image"]))

    def build_outputs(self, prediction: Prediction) -> Mapping[str, Tensor]:
        """See `TaskTensors`."""
        scores = [one for one in prediction.outcome if isinstance(one, EntailmentScores)]
        numbers = [number for one in scores for number in (one.yes, one.no, one.maybe)]
        return {
            "scores": Tensor((len(scores), 3), numbers),
            "labels": Tensor((len(scores),), [one.label.encode() for one in scores]),
        }


class AddressTensors:
    """Addresses; their parts as JSON."""

    inputs = (TensorSpec("addresses", BYTES, (-1,)),)
    outputs = (TensorSpec("spans", BYTES, (-1,)), TensorSpec("components", BYTES, (-1,)))

    def build_request(self, model: str, inputs: Mapping[str, Elements]) -> address_pb2.PredictRequest:
        """See `TaskTensors`."""
        return address_pb2.PredictRequest(model=model, addresses=_decode("addresses", inputs["addresses"]))

    def build_outputs(self, prediction: Prediction) -> Mapping[str, Tensor]:
        """See `TaskTensors`."""
        results = ADDRESS.build_response(prediction).results
        spans = [_to_json([_span_row(span) for span in result.spans]) for result in results]
        components = [_to_json(dict(result.components)) for result in results]
        return {"spans": Tensor((len(spans),), spans), "components": Tensor((len(components),), components)}


TASK_TENSORS: Final[Mapping[Task, TaskTensors]] = {
    Task.VISUAL_ENTAILMENT: EntailmentTensors(),
    Task.ADDRESS_TAGGING: AddressTensors(),
}


def read_inputs(request: pb.ModelInferRequest, specs: Iterable[TensorSpec]) -> Mapping[str, Elements]:
    """The elements of each input, by its name.

    Raises:
        InputRefused: names the first tensor that is missing, unknown, of another datatype, or not as its shape says.
    """
    known = {spec.name: spec for spec in specs}
    is_raw = len(request.raw_input_contents) > 0
    if is_raw and len(request.raw_input_contents) != len(request.inputs):
        message = f"raw_input_contents has {len(request.raw_input_contents)} entries, inputs {len(request.inputs)}"
        raise InputRefused(message, reason="TENSOR_CONTENTS", field="raw_input_contents")
    found: dict[str, Elements] = {}
    for place, tensor in enumerate(request.inputs):
        field = f"inputs[{place}]"
        if tensor.name not in known:
            raise _unknown("input", tensor.name, f"{field}.name", known)
        if tensor.name in found:
            raise InputRefused(f"{tensor.name} is given twice", reason="TENSOR_DUPLICATE", field=f"{field}.name")
        count = _check_tensor(tensor, field)
        raw = request.raw_input_contents[place] if is_raw else None
        found[tensor.name] = _read_elements(tensor, raw, count, field)
    for spec in known.values():
        if spec.is_required and spec.name not in found:
            raise InputRefused(f"the input {spec.name} is required", reason="TENSOR_MISSING", field="inputs")
    return found


def choose_outputs(request: pb.ModelInferRequest, specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The outputs that a request wants, in its order; all if it names none.

    Raises:
        InputRefused: one is unknown, named twice, or wanted in a form that this server does not have.
    """
    known = {spec.name: spec for spec in specs}
    found: dict[str, TensorSpec] = {}
    for place, wanted in enumerate(request.outputs):
        field = f"outputs[{place}]"
        if wanted.name not in known:
            raise _unknown("output", wanted.name, f"{field}.name", known)
        if wanted.name in found:
            raise InputRefused(f"{wanted.name} is named twice", reason="TENSOR_DUPLICATE", field=f"{field}.name")
        for name in _REFUSED_OUTPUT:
            if name in wanted.parameters:
                message = f"the parameter {name} is not supported"
                raise InputRefused(message, reason="TENSOR_CONTENTS", field=f"{field}.parameters")
        found[wanted.name] = known[wanted.name]
    return tuple(found.values() or known.values())


def fill_outputs(
    response: pb.ModelInferResponse, tensors: Mapping[str, Tensor], wanted: Iterable[TensorSpec], *, is_raw: bool
) -> None:
    """Add outputs to a response."""
    for spec in wanted:
        tensor = tensors[spec.name]
        output = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=tensor.shape)
        if is_raw:
            response.raw_output_contents.append(_to_raw(tensor))
        elif spec.datatype == FP32:
            output.contents.fp32_contents.extend(one for one in tensor.elements if isinstance(one, float))
        else:
            output.contents.bytes_contents.extend(one for one in tensor.elements if isinstance(one, bytes))


def join_elements(elements: Iterable[bytes]) -> bytes:
    """BYTES as raw contents."""
    return b"".join(_LENGTH.pack(len(one)) + one for one in elements)


def _to_raw(tensor: Tensor) -> bytes:
    if all(isinstance(one, bytes) for one in tensor.elements):
        return join_elements(one for one in tensor.elements if isinstance(one, bytes))
    return struct.pack(f"<{len(tensor.elements)}f", *tensor.elements)


def _check_tensor(tensor: pb.ModelInferRequest.InferInputTensor, field: str) -> int:
    """The number of elements that the shape of an input says."""
    if tensor.datatype != BYTES:
        message = f"{tensor.name} has datatype {tensor.datatype[:16]!r}, not BYTES"
        raise InputRefused(message, reason="TENSOR_DATATYPE", field=f"{field}.datatype")
    shape = tensor.shape
    if not 1 <= len(shape) <= MAX_DIMENSIONS or min(shape) < 0:
        message = f"the shape of {tensor.name} must have 1 to {MAX_DIMENSIONS} dimensions, none of them negative"
        raise InputRefused(message, reason="TENSOR_SHAPE", field=f"{field}.shape")
    count = math.prod(shape)
    if count > MAX_ELEMENTS:
        message = f"the shape of {tensor.name} has {count} elements, limit {MAX_ELEMENTS}"
        raise InputRefused(message, reason="TENSOR_SHAPE", field=f"{field}.shape")
    if _SHARED_MEMORY in tensor.parameters:
        message = "shared memory is not supported"
        raise InputRefused(message, reason="TENSOR_CONTENTS", field=f"{field}.parameters")
    return count


def _read_elements(
    tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None, count: int, field: str
) -> Elements:
    if raw is not None:
        if tensor.HasField("contents"):
            message = f"{tensor.name} has contents beside raw_input_contents"
            raise InputRefused(message, reason="TENSOR_CONTENTS", field=f"{field}.contents")
        return _split(tensor.name, raw, count)
    contents = tensor.contents
    if any(name != "bytes_contents" for name in (one.name for one, _ in contents.ListFields())):
        message = f"{tensor.name} has contents of another datatype than BYTES"
        raise InputRefused(message, reason="TENSOR_CONTENTS", field=f"{field}.contents")
    if len(contents.bytes_contents) != count:
        message = f"{tensor.name} has {len(contents.bytes_contents)} elements, its shape says {count}"
        raise InputRefused(message, reason="TENSOR_SHAPE", field=f"{field}.shape")
    return [memoryview(one) for one in contents.bytes_contents]


def _split(name: str, raw: bytes, count: int) -> Elements:
    """The elements of a raw input, as views of it."""
    view, at = memoryview(raw), 0
    found = []
    for number in range(count):
        start = at + _LENGTH.size
        at = start + (_LENGTH.unpack_from(view, at)[0] if start <= len(view) else 0)
        if start > len(view) or at > len(view):
            message = f"{name} ends within element {number} of {count}"
            raise InputRefused(message, reason="TENSOR_CONTENTS", field="raw_input_contents")
        found.append(view[start:at])
    if at != len(view):
        message = f"{name} has {len(view) - at} bytes after its {count} elements"
        raise InputRefused(message, reason="TENSOR_CONTENTS", field="raw_input_contents")
    return found


def _only(name: str, elements: Elements) -> memoryview:
    if len(elements) != 1:
        message = f"{name} has {len(elements)} elements, one is needed"
        raise InputRefused(message, reason="TENSOR_SHAPE", field=name)
    return elements[0]


def _decode(name: str, elements: Elements) -> list[str]:
    found = []
    for place, element in enumerate(elements):
        try:
            found.append(str(element, "utf-8"))
        except UnicodeDecodeError as error:
            field = f"{name}[{place}]"
            raise InputRefused(f"{field} is not UTF-8", reason="TENSOR_CONTENTS", field=field) from error
    return found


def _unknown(what: str, name: str, field: str, known: Iterable[str]) -> InputRefused:
    message = f"there is no {what} {name[:64]!r}; there are {', '.join(known)}"
    return InputRefused(message, reason="TENSOR_UNKNOWN", field=field)


def _span_row(span: address_pb2.Span) -> dict[str, object]:
    names = ("kind", "text", "start", "end", "start_byte", "end_byte", "probability")
    return {name: getattr(span, name) for name in names}


def _to_json(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()
