"""`hotslot predict`: answers as a table or JSON, and errors that say what to do."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from cli import predict
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import DIGEST, ScriptedServer


def test_answers_are_shown_as_a_table(hotslot: Hotslot, server: ScriptedServer, picture: str) -> None:
    """Each line has statement, answer and three probabilities; revision, device, slot and time follow."""
    ended = hotslot("predict", picture, "yes it is", "maybe [so]", "--address", server.address, "--premise", "p")

    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.code == 0
    assert lines[0] == ["statement", "answer", "yes", "no", "maybe"]
    assert lines[1] == ["yes", "it", "is", "yes", "90.0%", "5.0%", "5.0%"]
    assert lines[2] == ["maybe", "[so]", "maybe", "5.0%", "5.0%", "90.0%"]
    assert "shapes v1.0.0 · cpu, slot a · computed in 12 ms · " in ended.out
    assert server.requests[0].image.content == b"\x89PNG and more"
    assert server.requests[0].premise == "p"


def test_json_has_all_fields(hotslot: Hotslot, server: ScriptedServer, picture: str) -> None:
    """One document on one line, with lower-case enum names and numbers."""
    ended = hotslot("predict", picture, "no", "--address", server.address, "--json")

    row = json.loads(ended.out)
    assert len(ended.out.splitlines()) == 1
    assert row["results"] == [{"statement": "no", "label": "no", "scores": {"yes": 0.05, "no": 0.9, "maybe": 0.05}}]
    assert row["served_by"]["digest"] == DIGEST
    assert row["timing"]["computed_seconds"] == 0.012
    assert row["timing"]["queued_seconds"] is None
    assert 0 < row["round_trip_seconds"] < 10


def test_a_picture_may_come_from_standard_input(
    hotslot: Hotslot, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is `-`."""
    pipe = SimpleNamespace(buffer=io.BytesIO(b"piped"), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)

    assert hotslot("predict", "-", "yes", "--address", server.address).code == 0
    assert server.requests[0].image.content == b"piped"


def test_standard_input_is_limited(hotslot: Hotslot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops at the largest size that any server accepts."""
    pipe = SimpleNamespace(buffer=io.BytesIO(bytes(65)), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)
    monkeypatch.setattr(predict, "MAX_PICTURE_BYTES", 64)

    ended = hotslot("predict", "-", "yes")
    assert ended.code == 1
    assert "send a smaller picture" in ended.err


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("nobody", "no model 'nobody' here (MODEL_UNKNOWN); `hotslot status` lists the models that are served"),
        ("loading", "the model is being loaded (NOT_READY); `hotslot status` shows the state of its slots"),
        ("blind", "no picture at all (IMAGE_UNREADABLE, image.content)"),
    ],
)
def test_an_error_of_the_server_is_shown_with_its_reason(
    hotslot: Hotslot, server: ScriptedServer, picture: str, model: str, sentence: str
) -> None:
    """The server's message, reason and field, and the next step."""
    ended = hotslot("predict", picture, "yes", "--address", server.address, "--model", model)
    assert (ended.code, ended.out, ended.err) == (1, "", f"error: {sentence}\n")


def test_a_refused_connection_is_reported_in_one_sentence(hotslot: Hotslot, picture: str) -> None:
    """It names the address and says how to start a server."""
    ended = hotslot("predict", picture, "yes", "--address", "127.0.0.1:1")
    assert ended.code == 1
    assert ended.err.startswith("error: no server answers at 127.0.0.1:1; start one with `hotslot serve`")


def test_a_timeout_is_reported_in_one_sentence(hotslot: Hotslot, server: ScriptedServer, picture: str) -> None:
    """It names the timeout and the option for a longer one."""
    ended = hotslot("predict", picture, "yes", "-a", server.address, "-m", "slow", "-t", "0.05")
    server.released.set()
    assert ended.code == 1
    assert "within 0.05 s; give a longer --timeout" in ended.err


def test_another_grpc_server_is_recognised(hotslot: Hotslot, picture: str) -> None:
    """The error says that it is not hotslot."""
    bare = ScriptedServer(has_services=False)
    ended = hotslot("predict", picture, "yes", "-a", bare.address)
    bare.stop()
    assert ended.code == 1
    assert "is not hotslot" in ended.err


def test_a_missing_picture_is_reported_in_one_sentence(hotslot: Hotslot) -> None:
    """No request is sent."""
    ended = hotslot("predict", "nope.png", "yes")
    assert (ended.code, ended.err.startswith("error: cannot read nope.png: no such file or directory")) == (1, True)


def test_the_address_may_come_from_the_environment(
    hotslot: Hotslot, server: ScriptedServer, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HOTSLOT_ADDRESS` is used if no address is given."""
    monkeypatch.setenv("HOTSLOT_ADDRESS", server.address)
    assert hotslot("predict", picture, "yes").code == 0


@pytest.mark.parametrize("command", [["predict", "PICTURE", "yes"], ["tag", "北京市"]])
def test_a_call_names_its_version_and_its_key(
    hotslot: Hotslot, server: ScriptedServer, picture: str, command: list[str]
) -> None:
    """As metadata; without the options it has none."""
    asked = [picture if word == "PICTURE" else word for word in command]
    options = ["--model-version", "canary", "--routing-key", "shop-17"]
    codes = [hotslot(*asked, "--address", server.address, *more).code for more in (options, [])]

    assert codes == [0, 0]
    assert server.tags == [{"x-model-version": "canary", "x-routing-key": "shop-17"}, {}]


@pytest.mark.parametrize("value", ["Müller", " a", "a\n", "x" * 257])
@pytest.mark.parametrize("flag", ["--model-version", "--routing-key"])
def test_a_version_or_key_that_cannot_be_sent_is_wrong_use(
    hotslot: Hotslot, server: ScriptedServer, picture: str, flag: str, value: str
) -> None:
    """The server would get another one, or none."""
    ended = hotslot("predict", picture, "yes", "--address", server.address, flag, value)
    assert ended.code == 2
    assert f"{flag} is at most 256 printable ASCII characters" in ended.err
    assert server.requests == []
