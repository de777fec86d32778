"""Which slot answers, for every order of events: the shipped transitions explored, and their rules shown to bite."""

import time
from datetime import UTC, datetime

import pytest

from common.errors import Conflict
from dev.scripts.pair import PICTURE, draw
from inference.server.model import messages as m
from inference.server.model.pair import CPU_DEVICE, Pair, SlotEvent, SlotState, next_state
from inference.server.model.step import Now
from inference.server.model.transitions import HANDLERS, apply
from tests.server import pair_mutations, pair_traffic
from tests.server.pair_model import CARD, SETUPS, explore, new_load

MIN_STATES = 20_000  # fewer would say that the exploration has lost a part of its world
MIN_TRAFFIC_STATES = 6_500
MIN_BRIDGE_STATES = 3_000
MIN_GAP_STATES = 800
NOW = Now(1.0, datetime(2030, 1, 1, tzinfo=UTC))
RULES = SETUPS[0].rules


@pytest.mark.timeout(240)
def test_every_rule_holds_in_every_state() -> None:
    """Two slots, card and CPU, trials, fallback and failback, with a caller waiting or not: no order breaks a rule."""
    began = time.process_time()
    report = explore()

    seconds = time.process_time() - began
    print(f"{report.states} states of the pair, {report.steps} steps, {seconds:.1f} s of CPU")  # noqa: T201
    assert report.states > MIN_STATES
    assert report.violations == {}


@pytest.mark.timeout(240)
def test_every_rule_holds_with_shadows_and_canaries() -> None:
    """Copies, percentages of none, some and all, and callers that name a version, in every order with the rest."""
    began = time.process_time()
    report = explore(pair_traffic.SMALL_SETUPS, make=pair_traffic.TrafficExplorer)

    print(f"{report.states} states of the pair, {time.process_time() - began:.1f} s of CPU")  # noqa: T201
    assert report.states > MIN_TRAFFIC_STATES
    assert report.violations == {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", pair_traffic.MUTATIONS)
def test_a_defence_of_traffic_that_is_taken_out_is_noticed(name: str) -> None:
    """Each defence of shadows and canaries is there for a rule that fails without it."""
    with pair_traffic.MUTATIONS[name]():
        report = explore(pair_traffic.SMALL_SETUPS, is_patient=False, make=pair_traffic.TrafficExplorer)

    assert len(report.violations) == 1


@pytest.mark.timeout(240)
def test_every_rule_holds_over_the_cpu_bridge() -> None:
    """The active model moves between card and CPU, and the other revision is loaded on either, in every order."""
    report = explore(pair_traffic.BRIDGE_SETUPS, make=pair_traffic.BridgeExplorer)
    print(f"{report.states} states of the pair, {report.steps} steps")  # noqa: T201

    assert report.states > MIN_BRIDGE_STATES
    assert report.violations == {}


@pytest.mark.timeout(240)
def test_every_rule_holds_with_a_gap() -> None:
    """The active model is unloaded by command, whatever else is under way: what was accepted is answered."""
    report = explore(pair_traffic.BRIDGE_SETUPS, make=pair_traffic.GapExplorer)
    print(f"{report.states} states of the pair, {report.steps} steps")  # noqa: T201

    assert report.states > MIN_GAP_STATES
    assert report.violations == {}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", pair_traffic.GAP_MUTATIONS)
def test_a_defence_of_the_gap_that_is_taken_out_is_noticed(name: str) -> None:
    """Each is there for a rule that fails without it."""
    with pair_traffic.GAP_MUTATIONS[name]():
        report = explore(pair_traffic.BRIDGE_SETUPS, is_patient=False, make=pair_traffic.GapExplorer)

    assert len(report.violations) == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", pair_traffic.BRIDGE_MUTATIONS)
def test_a_defence_of_the_bridge_that_is_taken_out_is_noticed(name: str) -> None:
    """Each is there for a rule that fails without it."""
    with pair_traffic.BRIDGE_MUTATIONS[name]():
        report = explore(pair_traffic.BRIDGE_SETUPS, is_patient=False, make=pair_traffic.BridgeExplorer)

    assert len(report.violations) == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", pair_mutations.ALL)
def test_a_defence_that_is_taken_out_is_noticed(name: str) -> None:
    """Each defence of the transitions is there for a rule that fails without it."""
    with pair_mutations.ALL[name]():
        report = explore(is_patient=False)

    assert len(report.violations) == 1


def test_every_event_has_its_transition() -> None:
    """The table of handlers names each event once."""
    assert set(HANDLERS) == set(m.Event.__args__)


def test_a_refused_command_changes_nothing() -> None:
    """Both slots hold a load: a third is refused, and the pair is a value that nothing has touched."""
    pair, _ = apply(Pair(), m.Boot(new_load("r1", CARD), None), NOW, RULES)
    pair, _ = apply(pair, m.LoadBundle(new_load("r2", CPU_DEVICE)), NOW, RULES)

    with pytest.raises(Conflict) as error:
        apply(pair, m.LoadBundle(new_load("r2", CARD)), NOW, RULES)

    assert error.value.reason == "NO_FREE_SLOT"
    assert pair.generation == 1


def test_an_event_that_cannot_happen_raises() -> None:
    """An empty slot cannot end its load."""
    with pytest.raises(RuntimeError, match="EMPTY cannot handle LOAD_ENDED"):
        next_state(SlotState.EMPTY, SlotEvent.LOAD_ENDED)


def test_the_picture_of_the_slot_states_is_up_to_date() -> None:
    """It is drawn from the table: `python -m dev.scripts.pair`."""
    assert PICTURE.read_text(encoding="utf-8") == draw()
