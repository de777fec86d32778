"""One server with a model of each task: both answer, each with its own health name, status, metrics and slots."""

from collections.abc import Iterator

import grpc
import pytest

from common.paths import CONTROL_SOCKET, run_folder
from common.sealing import ConvertLimits, run_convert
from dev.harness.answers import AddressQuestion, question
from dev.harness.control import ControlClient
from dev.harness.load import AddressLoad
from dev.harness.metrics import value_of
from dev.harness.pointer import commit_bundle
from dev.harness.process import ROOT
from dev.harness.stack import ADDRESS, DEADLINE_SECONDS, ENTAILMENT, Stack
from hotslot.address.v1 import address_pb2
from hotslot.status.v1 import status_pb2
from tests.stack.refusal import refusal_of

ADDRESSES = """
[[models]]
name = "addresses"
task = "token-classification"
device = "cpu"
precision = "float32"
"""
TEXT = "浙江省杭州市余杭区五常街道文一西路969号"
PARTS = (("prov", 0, 3), ("city", 3, 6), ("district", 6, 9), ("town", 9, 13), ("road", 13, 17), ("roadno", 17, 21))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The demo model of addresses beside a scripted model of statements."""
    folder = tmp_path_factory.mktemp("both")
    server = Stack(folder, runner={"standby": False})
    with server.config.open("a", encoding="utf-8") as file:
        file.write(ADDRESSES)
    source = ROOT / "examples" / "addresses" / "v1.0.0"
    commit_bundle(folder, run_convert(source, folder, "v1.0.0", ConvertLimits(), "float32"), "addresses")
    with server:
        yield server


def test_a_call_finds_the_model_of_its_task(stack: Stack) -> None:
    """No call needs to name its model; a model of the other task is not found."""
    response = stack.tagging.Predict(address_pb2.PredictRequest(addresses=[TEXT]), timeout=DEADLINE_SECONDS)
    assert response.served_by.model == "addresses"
    assert tuple((span.kind, span.start, span.end) for span in response.results[0].spans) == PARTS
    assert stack.check(question()) == "r1"

    with pytest.raises(grpc.RpcError) as error:
        stack.tagging.Predict(address_pb2.PredictRequest(model="shapes", addresses=[TEXT]), timeout=DEADLINE_SECONDS)
    assert refusal_of(error.value).code == "NOT_FOUND"


def test_health_status_and_metrics_have_both(stack: Stack) -> None:
    """A name for each model and service; slots and counters for each model."""
    stack.tagging.Predict(address_pb2.PredictRequest(addresses=[TEXT]), timeout=DEADLINE_SECONDS)
    names = ["", "shapes", "addresses", ENTAILMENT, ADDRESS]
    models = stack.status.ListModels(status_pb2.ListModelsRequest(), timeout=DEADLINE_SECONDS).models
    assert [stack.is_serving(name) for name in names] == [True] * 5
    assert [(model.name, model.task) for model in models] == [
        ("shapes", "visual-entailment"),
        ("addresses", "token-classification"),
    ]
    assert value_of(stack, "hotslot_answers_total", model="addresses", revision="v1.0.0", label="town") >= 1


def test_a_swap_and_a_crash_of_one_model_cost_the_other_nothing(stack: Stack) -> None:
    """Callers of addresses get all their answers while the other model is swapped, and its runner is killed."""
    asked = AddressQuestion((TEXT,))
    addresses = ControlClient(str(run_folder(stack.folder) / CONTROL_SOCKET), "addresses")
    before = addresses.status()
    with AddressLoad(stack.address, [asked], {("v1.0.0", asked): (PARTS,)}, clients=2) as load:
        stack.control.swap(stack.bundle("r2").bundle_digest)
        stack.kill(stack.active_pid())
        stack.control.wait_ready()
        load.wait_answers(10)
        load.stop()
        report = load.report()
    addresses_after = addresses.status()
    addresses.close()
    assert stack.check(question()) == "r2"
    assert (report.failed, report.wrong) == ([], [])
    assert addresses_after.active_load_id == before.active_load_id
