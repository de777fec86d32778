"""Health is correct for every service name at all times."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common.address import unix_target
from common.paths import CONTROL_SOCKET, run_folder
from dev.harness.answers import question
from dev.harness.metrics import value_of
from dev.harness.pointer import commit_bundle
from dev.harness.scripted_engine import holding
from dev.harness.stack import ADDRESS, DEADLINE_SECONDS, ENTAILMENT, OPEN_INFERENCE, STATUS, Stack, commit_on_disk
from dev.harness.waiting import eventually
from hotslot.status.v1 import status_pb2
from hotslot_watchdog.monitor import HealthProbe
from inference.server.api.standard_services import HealthApi
from inference.server.health import HealthRegistry, Overall
from tests.stack.fixtures import MakeStack
from tests.stack.refusal import refusal_of

pb: Any = health_pb2  # List is newer than its stubs
READINESS = ("", "shapes", ENTAILMENT, OPEN_INFERENCE)


def listed(stack: Stack) -> dict[str, bool]:
    """The states of all names, by List."""
    health: Any = stack.health
    statuses = health.List(pb.HealthListRequest(), timeout=DEADLINE_SECONDS).statuses
    return {name: row.status == pb.HealthCheckResponse.SERVING for name, row in statuses.items()}


def watched(stack: Stack, name: str) -> Iterator[str]:
    """The states that Watch sends, by name."""
    call = stack.health.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
    return (pb.HealthCheckResponse.ServingStatus.Name(row.status) for row in call)


def test_nothing_is_ready_before_a_model_is_loaded(make_stack: MakeStack) -> None:
    """Without a committed model all names are NOT_SERVING; a first install changes that without a restart."""
    stack = make_stack(committed=None, until_ready=False)

    unready = dict.fromkeys((*READINESS, ADDRESS), False)
    assert listed(stack) == {**unready, STATUS: True, "liveness": True}
    with pytest.raises(grpc.RpcError) as error:
        stack.predict(question())
    refusal = refusal_of(error.value)
    assert (refusal.brief, refusal.retry_seconds) == (("UNAVAILABLE", "NOT_READY", ()), 1.0)
    stack.process.wait_event("boot_without_model")

    bundle = stack.bundle("r1")
    load_id = stack.control.candidate(bundle.bundle_digest)
    assert not stack.is_serving(), "a candidate serves nobody"
    stack.control.activate(load_id)
    stack.wait_ready()
    commit_on_disk(stack, bundle)
    stack.control.commit(load_id)
    assert stack.check(question()) == "r1"


def test_everything_is_not_serving_while_the_first_model_loads(make_stack: MakeStack, tmp_path: Path) -> None:
    """NOT_SERVING from the start of the server until the model has passed its self-test."""
    held = tmp_path / "held"
    with holding(held):
        stack = make_stack(script={"held_by": str(held)}, until_ready=False)
        assert [listed(stack)[name] for name in (*READINESS, "liveness")] == [False, False, False, False, True]
        with pytest.raises(grpc.RpcError) as error:
            stack.predict(question())
    assert refusal_of(error.value).reason == "NOT_READY"
    stack.wait_ready()
    assert stack.check(question()) == "r1"


def test_list_and_check_agree(stack: Stack) -> None:
    """Check returns the state in List for every name."""
    names = listed(stack)

    assert names == {**dict.fromkeys((*READINESS, STATUS, "liveness"), True), ADDRESS: False}
    assert {name: stack.is_serving(name) for name in names} == names


def test_an_unknown_name_is_not_found(stack: Stack) -> None:
    """Check fails with NOT_FOUND; Watch sends SERVICE_UNKNOWN and stays open."""
    with pytest.raises(grpc.RpcError) as error:
        stack.is_serving("squares")
    refusal = refusal_of(error.value)
    assert (refusal.code, refusal.reason, refusal.domain) == ("NOT_FOUND", "SERVICE_UNKNOWN", "hotslot")

    call: Any = stack.health.Watch(health_pb2.HealthCheckRequest(service="squares"), timeout=DEADLINE_SECONDS)
    assert next(call).status == pb.HealthCheckResponse.SERVICE_UNKNOWN
    assert call.is_active()
    call.cancel()


def test_health_answers_while_the_queue_is_full(make_stack: MakeStack, tmp_path: Path) -> None:
    """Check, List and the status service are not subject to admission, and wait for no device call."""
    held, runner = tmp_path / "held", {"min_timeout_seconds": 60.0}
    stack = make_stack(server={"max_waiting_requests": 1}, runner=runner, script={"held_by": str(held)})
    with holding(held):
        busy: Any = stack.entailment.Predict.future(question("!held").request(), timeout=DEADLINE_SECONDS)
        eventually(lambda: value_of(stack, "hotslot_unanswered_requests") == 1, what="the call is accepted")
        with pytest.raises(grpc.RpcError) as error:
            stack.predict(question())
        assert refusal_of(error.value).reason == "QUEUE_FULL"

        assert all(stack.is_serving(name) for name in (*READINESS, "liveness"))
        assert listed(stack)[""]
        status = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)
        assert status.capabilities[0].waiting == 1
    assert busy.result().results


@pytest.mark.fault("K5")
def test_a_death_without_a_standby_is_reported_at_once(make_stack: MakeStack, tmp_path: Path) -> None:
    """NOT_SERVING by the death, without a timeout; SERVING after the reload; a waiting caller is answered."""
    held, runner = tmp_path / "held", {"standby": False, "silence_seconds": 60.0}
    stack = make_stack(runner=runner, script={"held_by": str(held)})
    states = watched(stack, "shapes")
    assert next(states) == "SERVING"
    with holding(held):
        stack.kill(stack.active_pid())
        begun = time.monotonic()

        call: Any = stack.entailment.Predict.future(question().request(), timeout=60)
        assert next(states) == "NOT_SERVING"
        assert time.monotonic() - begun < 30.0  # half of `silence_seconds`
        assert stack.is_serving("liveness")
    assert next(states) == "SERVING"
    assert call.result().served_by.revision == "r1"
    for service in READINESS:
        stack.process.wait_event("health_changed", serving=False, service=service)


def test_a_candidate_does_not_change_health(stack: Stack) -> None:
    """Neither loading, failing nor retiring it."""
    changes = len(stack.process.events("health_changed"))

    stack.control.candidate(stack.bundle("r-slow-load", load_seconds=0.3).bundle_digest)
    stack.control.retire(stack.control.other().load_id)
    stack.wait_calm()
    with pytest.raises(grpc.RpcError):
        stack.control.load(stack.bundle("r-dies", fail_load="crash").bundle_digest)
    stack.wait_calm()

    assert len(stack.process.events("health_changed")) == changes


@pytest.mark.fault("L13")
def test_one_of_three_models_that_never_loads_leaves_the_others_ready(make_stack: MakeStack) -> None:
    """Its own readiness is false, and log, metric and status report that it has given up; liveness stays true."""
    models = ("shapes", "letters", "broken")
    runner = {"respawn_give_up": 3, "respawn_first_seconds": 0.05, "standby": False}
    environment = {"HOTSLOT_HEALTH__OVERALL": "any", "HOTSLOT_HEALTH__PORT": "0"}
    stack = make_stack(is_started=False, models=models, runner=runner, environment=environment)
    commit_bundle(stack.folder, stack.bundle("r-broken", fail_load="error"), "broken")

    with stack:
        stack.process.wait_event("model_given_up")
        eventually(lambda: stack.is_serving("shapes") and stack.is_serving("letters"), what="the others are ready")
        told = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)
        given_up = {model: value_of(stack, "hotslot_model_given_up", model=model) for model in models}

        assert listed(stack) == {
            "shapes": True,
            "letters": True,
            "broken": False,
            "": True,
            ENTAILMENT: True,
            ADDRESS: False,
            OPEN_INFERENCE: True,
            STATUS: True,
            "liveness": True,
        }
        health_port = stack.process.wait_event("server_started")["health_port"]
        assert HealthProbe(f"127.0.0.1:{health_port}", DEADLINE_SECONDS).is_live(), "also on the health port"
        assert HealthProbe(unix_target(run_folder(stack.folder) / CONTROL_SOCKET), DEADLINE_SECONDS).is_live(), (
            "the watchdog restarts nothing"
        )
        assert [row["model"] for row in stack.process.events("model_given_up")] == ["broken"]
        assert given_up == {"shapes": 0.0, "letters": 0.0, "broken": 1.0}
        assert "times in a row" in told.capabilities[2].reason


@pytest.mark.parametrize(
    ("ready", "every", "some"),
    [
        ((True, True, True), True, True),
        ((True, True, False), False, True),
        ((False, False, False), False, False),
        ((), False, False),
    ],
)
def test_a_name_that_stands_for_several_models(ready: tuple[bool, ...], every: object, some: object) -> None:
    """By the setting, every model must be ready or one."""
    assert (Overall.ALL.combine(ready), Overall.ANY.combine(ready)) == (every, some)


def test_without_traffic_self_tests_run(make_stack: MakeStack) -> None:
    """While no requests arrive, a self-test runs periodically."""
    stack = make_stack(server={"self_test_seconds": 0.3})
    last = eventually(lambda: inference_time(stack), what="an inference went all the way")

    assert eventually(lambda: inference_time(stack) > last, what="self-tests go on without callers")
    assert stack.is_serving("shapes")


def test_the_status_service_reports_three_levels(stack: Stack) -> None:
    """Process, resources and capabilities, and the limits for callers."""
    with stack.load(clients=2) as load:
        load.wait_answers(10)
        told = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)

    assert (told.node, told.process.level, told.process.draining) == ("test-node", status_pb2.HEALTH_LEVEL_OK, False)
    assert told.resources.memory_total_bytes > told.resources.memory_used_bytes > 0
    assert told.resources.descriptors_limit > told.resources.descriptors_used > 0
    assert told.resources.disk_total_bytes > 0
    (shapes,) = told.capabilities
    assert (shapes.model, shapes.level, shapes.ready, shapes.reason) == ("shapes", status_pb2.HEALTH_LEVEL_OK, True, "")
    assert shapes.last_inference_latency.ToTimedelta().total_seconds() > 0
    assert (told.limits.max_image_bytes, told.limits.max_statements) == (16 << 20, 32)


def test_the_models_are_listed_with_slots_trial_and_committed(stack: Stack) -> None:
    """ListModels shows both slots, a trial in progress and the committed revision."""
    stack.control.trial(stack.answers.digest_of("r2"))

    (model,) = stack.status.ListModels(status_pb2.ListModelsRequest(), timeout=DEADLINE_SECONDS).models

    by_name = {slot.name: slot for slot in model.slots}
    assert (model.name, model.task, sorted(by_name)) == ("shapes", "visual-entailment", ["a", "b"])
    active = by_name[model.active_slot]
    assert (active.revision, active.state) == ("r2", status_pb2.SLOT_STATE_LOADED)
    assert list(active.notes) == ["r2 answers by a script"]
    assert model.trial.slot == model.active_slot
    assert model.trial.term_left.ToTimedelta().total_seconds() > 0
    assert model.committed.revision
    assert {slot.role for slot in model.slots} == {status_pb2.SLOT_ROLE_TRIAL, status_pb2.SLOT_ROLE_PREVIOUS}


def test_two_models_have_separate_names_and_health(make_stack: MakeStack) -> None:
    """Callers must name a model; the health of "" needs both."""
    stack = make_stack(models=("shapes", "letters"))

    with pytest.raises(grpc.RpcError) as error:
        stack.predict(question())
    assert refusal_of(error.value).brief == ("INVALID_ARGUMENT", "MODEL_REQUIRED", ("model",))
    for model in ("shapes", "letters"):
        answer = stack.entailment.Predict(question().request(model), timeout=DEADLINE_SECONDS)
        assert answer.served_by.model == model
    stack.kill(stack.active_pid())
    assert stack.is_serving("letters")
    stack.wait_ready()


def inference_time(stack: Stack) -> float:
    """Time of the last successful inference, in seconds."""
    told = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS)
    return told.capabilities[0].last_inference_at.ToNanoseconds() / 1e9


class DrainedDuringWrite:
    """A call whose first write ends after the server has drained."""

    def __init__(self, health: HealthRegistry) -> None:
        self.health = health
        self.written: list[int] = []

    async def write(self, response: Any) -> None:  # noqa: ANN401  no stubs
        """Keep the state; the server drains meanwhile."""
        self.written.append(response.status)
        if not self.health.is_closed:
            self.health.update({"shapes": False})
            self.health.close()


async def test_a_watcher_is_told_of_a_drain_during_its_write() -> None:
    """The last state is sent before the stream ends, also if the server drains while the state before is sent."""
    health = HealthRegistry(["shapes"])
    health.update({"shapes": True})
    call = DrainedDuringWrite(health)

    await HealthApi(health).watch(pb.HealthCheckRequest(service="shapes"), call)  # type: ignore[arg-type]

    assert call.written == [pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING]
