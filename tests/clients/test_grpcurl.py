"""grpcurl, the pinned one, against the real server: by reflection and by the .proto files."""

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from dev.harness.answers import Question, question
from dev.harness.process import ROOT
from dev.harness.stack import ADDRESS, ENTAILMENT, OPEN_INFERENCE, STATUS, Stack

HEALTH = "grpc.health.v1.Health"
REFLECTION = {"grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"}
FILES = [
    f"-import-path={ROOT / 'protos'}",
    f"-import-path={ROOT / 'dev' / 'third_party' / 'googleapis'}",
    f"-import-path={ROOT / 'dev' / 'third_party'}",
    "-proto=hotslot/entailment/v1/entailment.proto",
    "-proto=hotslot/status/v1/status.proto",
    "-proto=google/rpc/error_details.proto",
    "-proto=grpc/health/v1/health.proto",
]
EXIT_BASE = 64  # grpcurl exits with this and the gRPC code
LIMIT_SECONDS = 30


class Curl:
    """grpcurl on one server."""

    def __init__(self, tool: Path, stack: Stack, options: list[str]) -> None:
        self._line = [str(tool), "-plaintext", "-max-time=20", *options]
        self._address = stack.address

    def __call__(self, *what: str, data: str = "") -> subprocess.CompletedProcess[str]:
        """Run it: `what` is a verb or a method, `data` goes to its standard input."""
        line = [*self._line, *(["-d", "@"] if data else []), self._address, *what]
        return subprocess.run(line, input=data, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    def answers(self, method: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        """Call a method that must succeed; all its answers."""
        done = self(method, data="\n".join(json.dumps(message) for message in messages) or "{}")
        assert done.returncode == 0, done.stderr
        return list(documents(done.stdout))


@pytest.fixture
def reflected(grpcurl: Path, stack: Stack) -> Curl:
    """By reflection."""
    return Curl(grpcurl, stack, [])


@pytest.fixture(params=["reflection", "files"])
def curl(request: pytest.FixtureRequest, grpcurl: Path, stack: Stack) -> Curl:
    """By reflection, then by the .proto files."""
    return Curl(grpcurl, stack, [] if request.param == "reflection" else FILES)


def documents(text: str) -> Iterator[dict[str, Any]]:
    """The JSON documents of a text, one after the other."""
    rest = text.strip()
    while rest:
        document, end = json.JSONDecoder().raw_decode(rest)
        yield document
        rest = rest[end:].strip()


def as_json(asked: Question) -> dict[str, Any]:
    """A request as grpcurl takes it."""
    return {"image": {"content": base64.b64encode(asked.image).decode()}, "statements": list(asked.statements)}


def yes_of(row: dict[str, Any]) -> list[float]:
    """The first scores of a response, however the fields are spelled."""
    return [result["scores"]["yes"] for result in row["results"]]


def test_list_names_every_public_service(reflected: Curl) -> None:
    """What a person types first: nothing is missing, nothing private is shown."""
    assert set(reflected("list").stdout.split()) == {ADDRESS, ENTAILMENT, HEALTH, OPEN_INFERENCE, STATUS} | REFLECTION
    assert f"{ENTAILMENT}.StreamPredict" in reflected("list", ENTAILMENT).stdout.split()


@pytest.mark.parametrize(
    ("symbol", "told"),
    [
        (ENTAILMENT, "rpc Predict ( .hotslot.entailment.v1.PredictRequest )"),
        (f"{ENTAILMENT}.Predict", "rpc Predict ( .hotslot.entailment.v1.PredictRequest )"),
        ("hotslot.entailment.v1.PredictRequest", "repeated string statements = 3;"),
        ("hotslot.entailment.v1.Label", "LABEL_MAYBE = 3;"),
        ("hotslot.entailment.v1.Image.content", "bytes content = 1;"),
        (f"{HEALTH}.Watch", "rpc Watch"),
    ],
)
def test_describe_finds_services_methods_messages_and_fields(reflected: Curl, symbol: str, told: str) -> None:
    """Any symbol can be described by its full name."""
    done = reflected("describe", symbol)

    assert done.returncode == 0, done.stderr
    assert told in done.stdout


@pytest.mark.parametrize("symbol", [f"{ENTAILMENT}.Predict", f"{ENTAILMENT}.StreamPredict", f"{HEALTH}.Check"])
def test_reflection_finds_a_method_by_its_name(stack: Stack, symbol: str) -> None:
    """Tools like ghz ask reflection for a method's own name; the answer is the file of its service."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)

    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)

    assert len(answer.file_descriptor_response.file_descriptor_proto) >= 1, answer


@pytest.mark.parametrize("symbol", ["hotslot.made.up", f"{ENTAILMENT}.", "", "a.b.c.d.e", f"{ENTAILMENT}.Predict.More"])
def test_reflection_says_what_it_does_not_find(stack: Stack, symbol: str) -> None:
    """An unknown symbol is answered NOT_FOUND, and the stream of questions goes on."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(stack.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol),
        reflection_pb2.ServerReflectionRequest(list_services=""),
    ]

    wrong, listed = stub.ServerReflectionInfo(iter(requests), timeout=20)

    assert wrong.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert len(listed.list_services_response.service) == 7


def test_a_unary_call_is_answered(curl: Curl, stack: Stack) -> None:
    """One picture, two statements; the scores are those of the bare engine."""
    asked = question("there are two red circles", "there is a square")

    (answer,) = curl.answers(f"{ENTAILMENT}/Predict", as_json(asked))

    assert yes_of(answer) == [row[0] for row in stack.answers.of("r1", asked)]
    assert answer["results"][0]["label"] in ("LABEL_YES", "LABEL_NO", "LABEL_MAYBE")
    served = answer.get("served_by") or answer["servedBy"]
    assert [served[key] for key in ("model", "revision", "device", "node")] == ["shapes", "r1", "cpu", "test-node"]


def test_a_stream_answers_every_item(curl: Curl, stack: Stack) -> None:
    """Several messages, one with a bad item: every id has its outcome, then OK."""
    good = {name: question(name) for name in ("one", "two", "three")}
    rows = [{"item_id": name, "request": as_json(asked)} for name, asked in good.items()]
    bad = {"item_id": "bad", "request": {"statements": ["no picture"]}}

    answers = curl.answers(f"{ENTAILMENT}/StreamPredict", {"items": rows[:2]}, {"items": [bad]}, {"items": rows[2:]})

    results = {row.get("item_id") or row["itemId"]: row for answer in answers for row in answer["results"]}
    assert set(results) == {*good, "bad"}
    for name, asked in good.items():
        assert yes_of(results[name]["response"]) == [row[0] for row in stack.answers.of("r1", asked)]
    assert results["bad"]["error"]["code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert any(detail.get("reason") == "IMAGE_MISSING" for detail in results["bad"]["error"]["details"])


@pytest.mark.parametrize(
    ("change", "code", "shown"),
    [
        ({"statements": [""]}, grpc.StatusCode.INVALID_ARGUMENT, ["STATEMENT_EMPTY", "hotslot", "statements[0]"]),
        ({"model": "squares"}, grpc.StatusCode.NOT_FOUND, ["MODEL_UNKNOWN", "hotslot", "squares"]),
        ({"image": {}}, grpc.StatusCode.INVALID_ARGUMENT, ["IMAGE_MISSING", "image.content"]),
    ],
)
def test_a_rich_error_is_decoded(curl: Curl, change: dict[str, Any], code: grpc.StatusCode, shown: list[str]) -> None:
    """Reason, domain and field of an error are shown by name, and the exit code contains the gRPC code."""
    done = curl(f"{ENTAILMENT}/Predict", data=json.dumps({**as_json(question()), **change}))

    assert done.returncode == EXIT_BASE + code.value[0]
    assert "google.rpc.ErrorInfo" in done.stderr
    for text in shown:
        assert text in done.stderr


def test_health_is_checked_and_listed(curl: Curl) -> None:
    """Check by name; an unknown name is NOT_FOUND."""
    for name in ("", "shapes", "liveness", ENTAILMENT):
        assert curl.answers(f"{HEALTH}/Check", {"service": name}) == [{"status": "SERVING"}]
    assert curl.answers(f"{HEALTH}/Check", {"service": ADDRESS}) == [{"status": "NOT_SERVING"}]
    unknown = curl(f"{HEALTH}/Check", data='{"service": "squares"}')
    assert unknown.returncode == EXIT_BASE + grpc.StatusCode.NOT_FOUND.value[0]


def test_health_is_watched(grpcurl: Path, make_stack: Callable[..., Stack]) -> None:
    """Watch prints SERVING, then NOT_SERVING when the server drains, and ends with exit code 0."""
    stack = make_stack()
    line = [str(grpcurl), "-plaintext", "-d", '{"service": "shapes"}', stack.address, f"{HEALTH}/Watch"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        first = "".join(watching.stdout.readline() for _ in range(3))
        assert next(documents(first)) == {"status": "SERVING"}

        stack.close()

        # Not `communicate`: it does not return what the file object has read ahead.
        rest, errors = watching.stdout.read(), watching.stderr.read()
    assert list(documents(rest))[-1:] == [{"status": "NOT_SERVING"}], errors
    assert watching.returncode == 0


def test_the_status_service_answers(curl: Curl) -> None:
    """Status and models can be read with grpcurl."""
    (told,) = curl.answers(f"{STATUS}/GetServerStatus")
    assert told["capabilities"][0]["model"] == "shapes"
    (models,) = curl.answers(f"{STATUS}/ListModels")
    assert [model["name"] for model in models["models"]] == ["shapes"]


def test_without_reflection_the_files_are_enough(grpcurl: Path, make_stack: Callable[..., Stack]) -> None:
    """Where reflection is switched off, the server does not describe itself, and answers all the same."""
    stack = make_stack(server={"reflection": False})

    assert Curl(grpcurl, stack, [])("list").returncode != 0
    (answer,) = Curl(grpcurl, stack, FILES).answers(f"{ENTAILMENT}/Predict", as_json(question()))
    assert answer["results"]
