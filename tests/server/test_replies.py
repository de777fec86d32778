"""A runner's message with a number that it cannot have measured is recognised."""

import math
from collections.abc import Callable

import pytest

from hotslot.runner.v1 import runner_pb2
from inference.server.runner_client.replies import find_impossible_number

Reply = runner_pb2.RunnerReply


def outcome(**fields: float) -> Reply:
    """An outcome with one score, and these fields."""
    reply = Reply()
    added = reply.items.outcomes.add(item_id=1, computed_rows=int(fields.pop("computed_rows", 1)))
    for name in ("prepared_seconds", "computed_seconds"):
        setattr(added, name, fields.pop(name, 0.0))
    added.entailment.scores.add(**{"yes": 0.7, "no": 0.2, "maybe": 0.1, **fields})
    return reply


def call(**fields: float) -> Reply:
    """A device call."""
    reply = Reply()
    reply.items.calls.add(items=1, rows=int(fields.pop("rows", 1)), **fields)
    return reply


BUILDERS: list[tuple[Callable[..., Reply], str]] = [
    *((outcome, name) for name in ("prepared_seconds", "computed_seconds", "yes", "no", "maybe")),
    *((call, name) for name in ("computed_seconds", "cpu_seconds", "idle_seconds")),
    *(
        (lambda **fields: Reply(heartbeat=runner_pb2.Heartbeat(**fields)), name)
        for name in ("seconds_on_step", "seconds_asleep")
    ),
    (lambda **fields: Reply(load_outcome=runner_pb2.LoadOutcome(**fields)), "row_seconds"),
    (lambda **fields: Reply(load_progress=runner_pb2.LoadProgress(**fields)), "fraction"),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.001, 1e12])
@pytest.mark.parametrize(("build", "name"), BUILDERS, ids=range(len(BUILDERS)))
def test_an_impossible_number_is_found(build: Callable[..., Reply], name: str, value: float) -> None:
    """A NaN would be learned as a cost, or hide a hang."""
    assert find_impossible_number(build(**{name: value})) != ""
    assert find_impossible_number(build(**{name: 0.5})) == ""


@pytest.mark.parametrize(
    "reply",
    [
        outcome(computed_rows=-1),
        call(rows=-1),
        outcome(yes=1.1),
        Reply(load_outcome=runner_pb2.LoadOutcome(taken_bytes=-1)),
        Reply(load_progress=runner_pb2.LoadProgress(needed_bytes=-1)),
    ],
    ids=range(5),
)
def test_negative_rows_and_sizes_and_probabilities_above_one_are_found(reply: Reply) -> None:
    """Rows and bytes are counted; a probability is at most 1, but for rounding."""
    assert find_impossible_number(reply) != ""


@pytest.mark.parametrize(
    "reply", [Reply(), Reply(hello=runner_pb2.Hello(pid=1)), outcome(yes=1 + 1e-7), call()], ids=range(4)
)
def test_ordinary_messages_pass(reply: Reply) -> None:
    """All kinds."""
    assert find_impossible_number(reply) == ""
