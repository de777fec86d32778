"""A server with an MGeo: calls, streams, health, status and metrics, with a real runner."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common.bundle import Bundle
from common.sealing import seal
from dev.harness.metrics import value_of
from dev.harness.pointer import commit_bundle
from dev.harness.stack import ADDRESS, DEADLINE_SECONDS, Stack
from dev.harness.waiting import eventually
from hotslot.address.v1 import address_pb2 as pb
from hotslot.control.v1 import control_pb2
from hotslot.status.v1 import status_pb2
from inference.runner.conversion.mgeo import convert_mgeo
from inference.runner.engines.base import AddressItem
from inference.runner.engines.mgeo.engine import MgeoEngine
from tests.stack.refusal import refusal_of

TEXTS = ("浙江省杭州市余杭区文一西路969号", "\u3000😀北京大厦 A座", "新桥镇" * 60)
Engines = Callable[[str], MgeoEngine]
MODEL = {"task": "token-classification", "device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def stack(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A server that serves the ordinary made-up model."""
    folder = tmp_path_factory.mktemp("served")
    server = Stack(folder, committed=None, runner={"extra_engines": {}}, models=("addresses",), model=MODEL)
    commit_bundle(folder, sealed(sources("plain"), folder), "addresses")
    with server:
        yield server


def sealed(source: Path, state: Path, revision: str = "v1") -> Bundle:
    """The sealed bundle of a published folder."""
    staging = state / f"staging-{revision}"
    staging.mkdir()
    convert_mgeo(source, staging, revision, "float32")
    return seal(staging, state)


def expected(engine: MgeoEngine, text: str) -> list[tuple[str, int, int]]:
    """The engine's own spans."""
    spans = engine.tag(engine.prepare(AddressItem((text,))).addresses)[0]
    return [(span.kind, span.start, span.end) for span in spans]


def check(engine: MgeoEngine, text: str, result: pb.AddressResult) -> None:
    """A result has the engine's spans, and its places are those of the text."""
    assert [(span.kind, span.start, span.end) for span in result.spans] == expected(engine, text)
    for span in result.spans:
        assert text[span.start : span.end] == span.text
        assert text.encode()[span.start_byte : span.end_byte].decode() == span.text
        assert 0 < span.probability <= 1


def test_a_call_has_a_result_for_each_address(stack: Stack, plain: MgeoEngine) -> None:
    """In order; a long one is read to its end; the model need not be named."""
    response = stack.tagging.Predict(pb.PredictRequest(addresses=TEXTS), timeout=DEADLINE_SECONDS)

    assert (response.served_by.model, response.served_by.revision) == ("addresses", "v1")
    assert len(response.results) == 3
    for text, result in zip(TEXTS, response.results, strict=True):
        check(plain, text, result)
    assert max(span.end for span in response.results[2].spans) > 170


def test_a_stream_has_an_outcome_for_each_item(stack: Stack, plain: MgeoEngine) -> None:
    """A bad item has its error, which names the field, and ends nothing."""
    items = [pb.StreamItem(item_id=str(number), request=pb.PredictRequest(addresses=TEXTS[:2])) for number in range(20)]
    items.append(pb.StreamItem(item_id="bad", request=pb.PredictRequest(addresses=["杭州", " "])))

    call = stack.tagging.StreamPredict(iter([pb.StreamPredictRequest(items=items)]), timeout=DEADLINE_SECONDS)

    results = {result.item_id: result for message in call for result in message.results}
    assert len(results) == 21
    assert "addresses[1] has nothing visible" in results["bad"].error.message
    for number in range(20):
        for text, result in zip(TEXTS, results[str(number)].response.results, strict=False):
            check(plain, text, result)


def request(*addresses: str, model: str = "") -> bytes:
    """An encoded request."""
    return pb.PredictRequest(addresses=addresses, model=model).SerializeToString()


BAD = (
    pytest.param(request("a", "杭" * 501), "ADDRESS_TOO_LONG", "addresses[1]", marks=pytest.mark.fault("I8")),
    pytest.param(request("杭" * 1_000_000), "ADDRESS_TOO_LONG", "addresses[0]", marks=pytest.mark.fault("I8")),
    pytest.param(request("a", ""), "ADDRESS_EMPTY", "addresses[1]", marks=pytest.mark.fault("I8")),
    pytest.param(request(), "ADDRESSES_MISSING", "addresses", marks=pytest.mark.fault("I8")),
    pytest.param(request(*["a"] * 65), "ADDRESSES_TOO_MANY", "addresses", marks=pytest.mark.fault("I8")),
    pytest.param(
        request("路").replace("路".encode(), b"\xff\xfe\xfd"), "MESSAGE_MALFORMED", "", marks=pytest.mark.fault("I8")
    ),
    pytest.param(request("\u200b\u2060\0\ufeff"), "ADDRESS_EMPTY", "addresses[0]", marks=pytest.mark.fault("I9")),
    pytest.param(request("a", model="nobody"), "MODEL_UNKNOWN", "model", marks=pytest.mark.fault("I10")),
    pytest.param(b"\x99" * 40, "MESSAGE_MALFORMED", "", marks=pytest.mark.fault("I19")),
)


@pytest.mark.parametrize(("raw", "reason", "field"), BAD)
def test_an_invalid_request_is_refused_with_its_field(raw: bytes, reason: str, field: str, stack: Stack) -> None:
    """Empty, too long, not UTF-8, invisible, too many, of an unknown model, or no message at all."""
    predict: Any = stack.channel.unary_unary(f"/{ADDRESS}/Predict")
    with pytest.raises(grpc.RpcError) as error:
        predict(raw, timeout=DEADLINE_SECONDS)

    refusal = refusal_of(error.value)
    assert (refusal.reason, refusal.fields) == (reason, (field,) if field else ())


@pytest.mark.fault("I9")
def test_odd_characters_are_ordinary_ones(stack: Stack, plain: MgeoEngine) -> None:
    """Zero-width, control and right-to-left characters, emoji, and tokens of the model's own as text."""
    texts = (
        "浙江\u200b省\u2060杭州",
        "路\x01\x7f9号",
        "\u202e杭州\u202c שלום",
        "👩\u200d👩\u200d👧楼",
        "[CLS]路[SEP][UNK][PAD]",
    )

    response = stack.tagging.Predict(pb.PredictRequest(addresses=texts), timeout=DEADLINE_SECONDS)

    for text, result in zip(texts, response.results, strict=True):
        check(plain, text, result)


def test_health_status_and_metrics_know_the_model(stack: Stack, plain: MgeoEngine) -> None:
    """The service is healthy, the limits are advertised, and kinds are counted."""
    stack.tagging.Predict(pb.PredictRequest(addresses=TEXTS), timeout=DEADLINE_SECONDS)
    kind = expected(plain, TEXTS[0])[0][0]
    state = stack.health.Check(health_pb2.HealthCheckRequest(service=ADDRESS), timeout=DEADLINE_SECONDS)
    limits = stack.status.GetServerStatus(status_pb2.GetServerStatusRequest(), timeout=DEADLINE_SECONDS).limits
    models = stack.status.ListModels(status_pb2.ListModelsRequest(), timeout=DEADLINE_SECONDS).models

    assert state.status == health_pb2.HealthCheckResponse.SERVING
    assert (limits.max_addresses, limits.max_address_chars) == (64, 500)
    assert [(model.name, model.task) for model in models] == [("addresses", "token-classification")]
    assert value_of(stack, "hotslot_answers_total", model="addresses", revision="v1", label=kind) > 0


def test_the_updater_s_probes_are_answered(stack: Stack, plain: MgeoEngine) -> None:
    """ProbeSlot takes addresses on a named slot; a probe of another task is refused."""
    load = stack.control.status().active_load_id
    request = control_pb2.ProbeSlotRequest(model="addresses", load_id=load)
    request.address.requests.add(addresses=TEXTS[:1])
    request.address.requests.add(addresses=[""])

    response = stack.control.stub.ProbeSlot(request, timeout=DEADLINE_SECONDS)

    check(plain, TEXTS[0], response.outcomes[0].address.results[0])
    assert "addresses[0] is empty" in response.outcomes[1].error.message
    wrong = control_pb2.ProbeSlotRequest(model="addresses", load_id=load)
    wrong.entailment.requests.add()
    with pytest.raises(grpc.RpcError) as error:
        stack.control.stub.ProbeSlot(wrong, timeout=DEADLINE_SECONDS)
    assert refusal_of(error.value).reason == "ITEMS_MISSING"


@pytest.mark.fault("S1")
@pytest.mark.fault("S2")
def test_a_swap_loses_no_item_of_a_stream(stack: Stack, sources: Callable[[str], Path], engines: Engines) -> None:
    """Items keep coming while another revision is loaded, activated and taken back: each is answered by one of both."""
    bundle = sealed(sources("old"), stack.folder, "v2")
    is_over = threading.Event()
    sent: list[str] = []

    def items() -> Iterator[pb.StreamPredictRequest]:
        while not is_over.is_set():
            sent.append(str(len(sent)))
            request = pb.PredictRequest(addresses=TEXTS[:2])
            yield pb.StreamPredictRequest(items=[pb.StreamItem(item_id=sent[-1], request=request)])

    def swap() -> None:
        try:
            active = stack.control.status().active_load_id
            stack.control.activate(stack.control.candidate(bundle.bundle_digest))
            eventually(lambda: "v2" in answered)
            stack.control.activate(active, trial_lease_seconds=0.0)
        finally:
            is_over.set()

    answered: dict[str, list[pb.AddressResult]] = {}
    call = stack.tagging.StreamPredict(items(), timeout=60.0)
    swapping = threading.Thread(target=swap)
    swapping.start()
    results = []
    for message in call:
        for result in message.results:
            results.append(result)
            answered.setdefault(result.response.served_by.revision, list(result.response.results))
    swapping.join()

    assert sorted(result.item_id for result in results) == sorted(sent)
    assert set(answered) == {"v1", "v2"}
    for revision, variant in (("v1", "plain"), ("v2", "old")):
        for text, found in zip(TEXTS, answered[revision], strict=False):
            check(engines(variant), text, found)
