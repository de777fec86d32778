"""HTTP and JSON through a real Envoy with the file that ships: answers, and errors that name their reason."""

import base64
import json
import os
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from dev.harness.answers import question
from dev.harness.envoy import running_http_json
from dev.harness.process import ROOT
from dev.harness.stack import Stack
from tests.cli.scripted_server import ScriptedServer

PAGE = ROOT / "docs" / "how-to" / "http-json.md"
Answer = tuple[int, dict[str, Any]]
_OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # whatever the machine's proxy is
PICTURE = base64.b64encode(b"\x89PNG one").decode()


def send(url: str, body: object = None) -> Answer:
    """Status and JSON of a request; a POST if it has a body."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, raw, {"content-type": "application/json"})  # noqa: S310  this machine's
    try:
        with _OPEN(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def ask(*statements: str, **fields: object) -> dict[str, object]:
    """The body of a request."""
    return {"image": {"content": PICTURE}, "statements": statements, **fields}


def reasons_of(answer: Answer) -> tuple[int, list[str]]:
    """Status, and the reasons in the details."""
    status, body = answer
    return status, [detail["reason"] for detail in body["details"] if "reason" in detail]


@pytest.fixture(scope="module")
def scripted() -> Iterator[ScriptedServer]:
    """A server with fixed answers and refusals."""
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def url(scripted: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An Envoy in front of it."""
    port = int(scripted.address.rpartition(":")[2])
    with running_http_json(port, tmp_path_factory.mktemp("envoy")) as base:
        yield base


@pytest.fixture(scope="module")
def real_url(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An Envoy in front of the real server."""
    with running_http_json(shared_stack.port, tmp_path_factory.mktemp("envoy")) as base:
        yield base


def test_statements_about_a_picture(stack: Stack, real_url: str) -> None:
    """The real server's answer: labels by name, durations as text, the picture in base64, up to 16 MiB."""
    picture = bytes(16 << 20)
    body = {"image": {"content": base64.b64encode(picture).decode()}, "statements": ["a", "b"]}
    status, found = send(f"{real_url}/v1/models/shapes/entailment:predict", body)
    refusal = send(f"{real_url}/v1/entailment:predict", ask("a", ""))
    health = send(f"{real_url}/v1/status")

    expected = stack.answers.of("r1", question("a", "b", image=picture))
    assert (status, found["servedBy"]["revision"]) == (200, "r1")
    assert [tuple(one["scores"].values()) for one in found["results"]] == [pytest.approx(row) for row in expected]
    assert found["results"][0]["label"] in {"LABEL_YES", "LABEL_NO", "LABEL_MAYBE"}
    assert found["timing"]["computed"].endswith("s")
    assert reasons_of(refusal) == (400, ["STATEMENT_EMPTY"])
    assert refusal[1]["details"][1]["fieldViolations"][0]["field"] == "statements[1]"
    assert (health[0], health[1]["capabilities"][0]["ready"]) == (200, True)


def test_the_commands_of_the_page_run_as_pasted(stack: Stack, real_url: str) -> None:
    """With curl, but for the port; the first block starts the proxy. This server has no model for addresses."""
    assert stack.is_serving()
    _, *calls = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    script = "".join(calls).replace("http://127.0.0.1:8080", real_url)
    environment = {"PATH": os.environ["PATH"], "no_proxy": "127.0.0.1"}
    shown = subprocess.run(
        ["/usr/bin/env", "bash", "-e"],
        input=script,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout

    assert (shown.count('"servedBy"'), shown.count('"MODEL_UNKNOWN"')) == (1, 4)
    assert shown.endswith("404\n")


def test_parts_of_addresses(url: str, scripted: ScriptedServer) -> None:
    """Of a named model too."""
    status, found = send(f"{url}/v1/addresses:tag", {"addresses": ["浙江省 杭州"]})

    assert (status, found["results"][0]["components"]) == (200, {"prov": "浙江省", "city": "杭州"})
    assert send(f"{url}/v1/models/addresses/addresses:tag", {"addresses": ["北京市"]})[0] == 200
    assert [request.model for request in scripted.tagged] == ["", "addresses"]


def test_models_and_status(url: str) -> None:
    """Without a body."""
    status, found = send(f"{url}/v1/models")

    assert (status, found["models"][0]["name"], found["models"][0]["trial"]["slot"]) == (200, "shapes", "b")
    assert send(f"{url}/v1/status")[1]["version"] == "9.8.7"


@pytest.mark.parametrize(
    ("model", "status", "reason"),
    [
        ("blind", 400, "IMAGE_UNREADABLE"),
        ("nobody", 404, "MODEL_UNKNOWN"),
        ("busy", 429, "QUEUE_FULL"),
        ("loading", 503, "NOT_READY"),
        ("anonymous", 401, "TOKEN_MISSING"),
        ("broken", 500, "ENGINE_FAILED"),
        ("late", 504, "DEADLINE_EXPIRED"),
    ],
)
def test_errors_name_their_reason(url: str, model: str, status: int, reason: str) -> None:
    """As HTTP statuses, with the same details as over gRPC."""
    answer = send(f"{url}/v1/models/{model}/entailment:predict", ask("yes"))

    assert reasons_of(answer)[0] == status
    assert reason in reasons_of(answer)[1]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/entailment:predict", b"{", 400),
        ("/v1/entailment:predict", {"image": {"content": "=="}, "statements": ["a"]}, 400),
        ("/v1/models?x=1", None, 400),
        ("/v1/nothing", None, 404),
        ("/hotslot.entailment.v1.EntailmentService/StreamPredict", {}, 404),
    ],
)
def test_what_is_no_call_is_refused_by_the_proxy(url: str, path: str, body: object, status: int) -> None:
    """JSON that is none, unknown parameters and paths: the server is not asked."""
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", raw, {"content-type": "application/json"})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as caught:
        _OPEN(request, timeout=20)

    with caught.value:
        assert caught.value.code == status
