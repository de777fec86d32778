"""What operators see of a rollout: the table of changed answers, its advice, and the share of a canary."""

from io import StringIO

from rich.console import Console

from cli.updates_view import show_status, show_update
from hotslot.control.v1 import control_pb2
from hotslot.updates.v1 import updates_pb2 as pb
from tests.updater.core.world import World
from tests.updater.simulators import Quality
from updater.control.snapshot import convert_server_state
from updater.core.comparison import ChangedDirection
from updater.core.facts import CommandKind
from updater.core.record import Stage
from updater.core.rules import Rollout, RolloutRules
from updater.service.convert import build_advice, fill_evidence, to_model_updates
from updater.status import StatusSnapshot


def show(renderable: object) -> str:
    """As a terminal shows it."""
    text = StringIO()
    Console(file=text, width=160).print(renderable)
    return text.getvalue()


def test_changed_answers_are_shown_with_what_to_do() -> None:
    """The kinds of change with callers, golden set and limit; the advice names the commands."""
    world = World(requests_a_second=10.0)
    world.install("1.0.0")
    world.publish("1.1.0", Quality(changes=0.5))
    world.settle()
    evidence = world.last("hold_decided").evidence
    assert evidence is not None
    response = pb.GetUpdateResponse()
    fill_evidence(response, evidence)
    shown = show(show_update(response))
    assert "changed answers" in shown
    assert "all changes" in shown
    assert "beyond" in shown
    advice = build_advice(world.record).sentence
    assert "hotslot updates approve" in advice
    assert "add such questions to the golden set" in advice


def test_the_share_of_a_canary_is_shown() -> None:
    """Beside the stage, while it is not all of the requests."""
    world = World(requests_a_second=10.0)
    world.install("1.0.0")
    world.with_rules(rollout=RolloutRules(Rollout.CANARY))
    world.publish("1.1.0")
    world.tick_until(Stage.OBSERVING)
    state = to_model_updates(StatusSnapshot(world.record))
    assert state.percent == 5
    assert "5 % of the requests" in show(show_status(pb.GetStatusResponse(models=[state])))
    world.command(CommandKind.PROMOTE)
    assert to_model_updates(StatusSnapshot(world.record)).percent == 100


def test_a_comparison_is_read_from_the_server() -> None:
    """Of the trial, else of a candidate that answers copies."""
    counts = control_pb2.Comparison(
        requests_compared=8,
        answers_compared=10,
        answers_equal=7,
        directions=[control_pb2.DirectionCount(before="yes", after="no", count=3)],
        sure_compared=6,
        sure_equal=5,
        dropped={"BUSY": 2, "BUDGET": 1},
        failed={"ENGINE_FAILED": 4},
        judged_answered=5,
        judged_failed={"ENGINE_FAILED": 1, "NOT_FINITE": 2, "RUNNER_DIED": 3, "PREPARE_TIMEOUT": 9},
    )
    candidate = control_pb2.ModelState(shadow=control_pb2.ShadowState(load_id="b", comparison=counts))
    trial = control_pb2.ModelState(trial=control_pb2.TrialState(load_id="c", percent=25, comparison=counts))
    for model, load_id in ((candidate, "b"), (trial, "c")):
        state = convert_server_state(control_pb2.GetStatusResponse(models=[model]), last_ended_orderly=False)
        assert state.shadow is not None
        found = state.shadow.comparison
        assert (state.shadow.load_id, state.shadow.failed, found.dropped) == (load_id, 4, 3)
        assert (found.requests, found.compared, found.changed) == (8, 10, 3)
        assert (found.sure_compared, found.sure_changed) == (6, 1)
        judged = state.shadow.judged
        assert (judged.answered, judged.failed, judged.not_finite) == (5, 3, 2), "deaths are counted apart"
        assert found.directions == (ChangedDirection("yes → no", 3),)
        assert (state.trial is None) or state.trial.percent == 25
