"""`hotslot predict`: answers for people and machines, and failures that say what to do."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

from cli import predict
from tests.cli.conftest import Hotslot
from tests.cli.standin import DIGEST, StandIn


def test_a_question_gets_a_table(hotslot: Hotslot, server: StandIn, picture: str) -> None:
    """Statement, answer and three probabilities a line; revision, device, slot and time below."""
    ended = hotslot("predict", picture, "yes it is", "maybe [so]", "--address", server.address, "--premise", "p")

    lines = [line.split() for line in ended.out.splitlines()]
    assert ended.code == 0
    assert lines[0] == ["statement", "answer", "yes", "no", "maybe"]
    assert lines[1] == ["yes", "it", "is", "yes", "90.0%", "5.0%", "5.0%"]
    assert lines[2] == ["maybe", "[so]", "maybe", "5.0%", "5.0%", "90.0%"]
    assert "shapes v1.0.0 · cpu, slot a · computed in 12 ms · " in ended.out
    assert server.requests[0].image.content == b"\x89PNG and more"
    assert server.requests[0].premise == "p"


def test_json_holds_everything(hotslot: Hotslot, server: StandIn, picture: str) -> None:
    """One document on one line, with plain words and numbers."""
    ended = hotslot("predict", picture, "no", "--address", server.address, "--json")

    row = json.loads(ended.out)
    assert len(ended.out.splitlines()) == 1
    assert row["results"] == [{"statement": "no", "label": "no", "scores": {"yes": 0.05, "no": 0.9, "maybe": 0.05}}]
    assert row["served_by"]["digest"] == DIGEST
    assert row["timing"]["computed_seconds"] == 0.012
    assert row["timing"]["queued_seconds"] is None
    assert 0 < row["round_trip_seconds"] < 10


def test_a_picture_may_come_through_a_pipe(hotslot: Hotslot, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is standard input."""
    pipe = SimpleNamespace(buffer=io.BytesIO(b"piped"), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", pipe)

    assert hotslot("predict", "-", "yes", "--address", server.address).code == 0
    assert server.requests[0].image.content == b"piped"


def test_a_pipe_has_a_limit(hotslot: Hotslot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops where no server would take more."""
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
        ("loading", "the model is being loaded (NOT_READY); `hotslot status` says what it waits for"),
        ("blind", "no picture at all (IMAGE_UNREADABLE, image.content)"),
    ],
)
def test_a_refusal_is_told_in_the_server_s_words(
    hotslot: Hotslot, server: StandIn, picture: str, model: str, sentence: str
) -> None:
    """Sentence, reason and field of the server, and the next step."""
    ended = hotslot("predict", picture, "yes", "--address", server.address, "--model", model)
    assert (ended.code, ended.out, ended.err) == (1, "", f"error: {sentence}\n")


def test_nobody_there_is_one_sentence(hotslot: Hotslot, picture: str) -> None:
    """It says where nobody answered and what may be missing."""
    ended = hotslot("predict", picture, "yes", "--address", "127.0.0.1:1")
    assert ended.code == 1
    assert ended.err.startswith("error: nothing answers at 127.0.0.1:1; is `make serve` running?")


def test_too_little_time_is_one_sentence(hotslot: Hotslot, server: StandIn, picture: str) -> None:
    """It says how long was waited and how to wait longer."""
    ended = hotslot("predict", picture, "yes", "-a", server.address, "-m", "slow", "-t", "0.05")
    server.released.set()
    assert ended.code == 1
    assert "within 0.05 s; allow more time with --timeout" in ended.err


def test_a_stranger_is_recognised(hotslot: Hotslot, picture: str) -> None:
    """A gRPC server that is not ours is said to be none."""
    bare = StandIn(has_services=False)
    ended = hotslot("predict", picture, "yes", "-a", bare.address)
    bare.stop()
    assert ended.code == 1
    assert "is no hotslot server" in ended.err


def test_a_picture_that_is_not_there_is_one_sentence(hotslot: Hotslot) -> None:
    """Nothing is sent."""
    ended = hotslot("predict", "nope.png", "yes")
    assert (ended.code, ended.err.startswith("error: cannot read nope.png: no such file or directory")) == (1, True)


def test_the_address_follows_the_settings(
    hotslot: Hotslot, server: StandIn, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HOTSLOT_ADDRESS` is used where no address is given."""
    monkeypatch.setenv("HOTSLOT_ADDRESS", server.address)
    assert hotslot("predict", picture, "yes").code == 0
