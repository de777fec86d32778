"""One server with a model of each task: both answer, each with its own health name, status, metrics and slots."""

import json
import signal
from collections.abc import Callable, Iterator

import grpc
import pytest

from cli.main import run
from common.paths import CONTROL_SOCKET, run_folder
from common.sealing import ConvertLimits, run_convert
from dev.harness.answers import AddressQuestion, question
from dev.harness.control import ControlClient
from dev.harness.load import AddressLoad
from dev.harness.metrics import value_of
from dev.harness.pointer import commit_bundle
from dev.harness.process import ROOT
from dev.harness.stack import ADDRESS, DEADLINE_SECONDS, ENTAILMENT, Stack
from dev.harness.waiting import eventually
from hotslot.address.v1 import address_pb2
from hotslot.oip.v2 import open_inference_pb2 as oip
from hotslot.oip.v2.open_inference_pb2_grpc import GRPCInferenceServiceStub
from hotslot.status.v1 import status_pb2
from inference.server.api.tensors import join_elements
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


Hotslot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hotslot(stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hotslot:
    """Runs a command on the settings of the stack; returns its exit code and output."""
    monkeypatch.setenv("HOTSLOT_CONFIG", str(stack.config))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            run(words)
        seen = capsys.readouterr()
        return int(ended.value.code or 0), seen.out, seen.err

    return call


def is_known(stack: Stack, name: str) -> bool:
    """Whether health knows a name."""
    try:
        stack.is_serving(name)
    except grpc.RpcError:
        return False
    return True


def settings_warnings(stack: Stack) -> list[str]:
    """What any caller may read about the settings file, while it is refused."""
    settings = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS).settings
    assert settings.level == status_pb2.HEALTH_LEVEL_DEGRADED
    return list(settings.warnings)


def test_settings_change_under_load_without_a_lost_call(stack: Stack, hotslot: Hotslot) -> None:
    """A model is removed and added, a limit changes, another model is replaced; a file that needs a restart is none."""
    both = stack.config.read_text(encoding="utf-8")
    one = both.replace(ADDRESSES, "")
    with stack.load((stack.check(question()),), clients=4) as load:
        shorter = one.replace("[server]", "[server]\nmax_address_chars = 30")
        stack.config.write_text(shorter, encoding="utf-8")
        assert hotslot("reload", "--check")[1].count("would change") == 1
        assert is_known(stack, "addresses")
        code, shown, _ = hotslot("reload")
        assert (code, "models removed: addresses" in shown, "server.max_address_chars" in shown) == (0, True, True)
        assert not is_known(stack, "addresses")
        with pytest.raises(grpc.RpcError) as error:
            stack.tagging.Predict(address_pb2.PredictRequest(addresses=[TEXT]), timeout=DEADLINE_SECONDS)
        assert refusal_of(error.value).code == "NOT_FOUND"

        stack.config.write_text(both.replace("[runner]", "[runner]\nsilence_seconds = 3.0"), encoding="utf-8")
        stack.process.send(signal.SIGHUP)
        stack.process.wait_event("model_replaced", model="shapes")
        eventually(lambda: is_known(stack, "addresses") and stack.is_serving("addresses"), what="addresses is served")
        response = stack.tagging.Predict(address_pb2.PredictRequest(addresses=[TEXT]), timeout=DEADLINE_SECONDS)
        assert tuple((span.kind, span.start, span.end) for span in response.results[0].spans) == PARTS

        stack.config.write_text(one.replace("metrics_port = 0", "metrics_port = 1"), encoding="utf-8")
        code, _, problem = hotslot("reload")
        assert (code, "needs a restart: server.metrics_port" in problem) == (1, True)
        assert stack.is_serving("addresses")
        assert settings_warnings(stack) == ["the settings file was refused: needs a restart: server.metrics_port"]

        stack.config.write_text(one.replace("[runner]", '[runner]\nthreads = "s3cret"'), encoding="utf-8")
        stack.process.send(signal.SIGHUP)
        told = ["the settings file was refused: `hotslot reload --check` and the log say why"]
        eventually(lambda: settings_warnings(stack) == told, what="the value is not shown to any caller")
        assert hotslot("reload", "--check")[0] == 2

        stack.config.write_text(both, encoding="utf-8")
        assert hotslot("reload")[0] == 0
        eventually(lambda: len(stack.process.events("model_left", model="shapes")) == 2, what="both replaced ones left")
        load.wait_answers(20)
        load.stop()
        report = load.report()
    assert (report.failed, report.wrong) == ([], [])
    assert value_of(stack, "hotslot_settings_reload_successful") == 1.0


def test_addresses_are_tensors_too(stack: Stack) -> None:
    """The Open Inference Protocol: the parts as JSON; with two models a request must name one."""
    request = oip.ModelInferRequest(raw_input_contents=[join_elements([TEXT.encode()])])
    request.inputs.add(name="addresses", datatype="BYTES", shape=[1])
    infer = GRPCInferenceServiceStub(stack.channel).ModelInfer
    with pytest.raises(grpc.RpcError) as caught:
        infer(request, timeout=DEADLINE_SECONDS)
    assert refusal_of(caught.value).reason == "MODEL_REQUIRED"
    request.model_name = "addresses"
    request.outputs.add(name="components")
    request.outputs.add(name="spans")
    response = infer(request, timeout=DEADLINE_SECONDS)

    components, spans = (json.loads(raw[4:]) for raw in response.raw_output_contents)
    assert tuple((span["kind"], span["start"], span["end"]) for span in spans) == PARTS
    assert components["prov"] == "浙江省"
