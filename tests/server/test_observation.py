"""Metrics for Prometheus, one JSON log line per event, and no request content in either."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from itertools import pairwise
from typing import Any

import grpc
import pytest

from dev.harness.answers import question
from dev.harness.metrics import families_of, value_of
from dev.harness.process import ROOT
from dev.harness.stack import DEADLINE_SECONDS, ENTAILMENT, Stack
from inference.server.metric_catalog import CATALOG
from tests.stack.wire import one_item, results_of

GO_GRPC_PROMETHEUS = (
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_msg_received_total",
    "grpc_server_msg_sent_total",
    "grpc_server_handling_seconds_bucket",
)
PARTS = ("", "_bucket", "_sum", "_count")


def handled(stack: Stack, method: str, code: str) -> float:
    """The number of completed calls of a method, by code."""
    return value_of(stack, "grpc_server_handled_total", grpc_method=method, grpc_service=ENTAILMENT, grpc_code=code)


def test_the_endpoint_serves_what_the_catalog_lists(stack: Stack) -> None:
    """Every series has a name and the labels that docs/metrics.md gives; dashboards of go-grpc-prometheus work."""
    stack.check(question())
    stack.control.trial(stack.answers.digest_of("r2"))
    labels = {f"{spec.name}{part}": set(spec.labels) for spec in CATALOG.metrics for part in PARTS}

    samples = [row for family in families_of(stack).values() for row in family.samples]

    for row in samples:
        assert set(row.labels) - {"le"} == labels[row.name], row.name
    assert set(GO_GRPC_PROMETHEUS) - {row.name for row in samples} == set()


def test_processes_and_readiness_are_shown(stack: Stack) -> None:
    """CPU time, memory, descriptors and threads of the server and its runners; readiness of each service name."""
    stack.check(question())
    slot = stack.control.active().slot

    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_threads"):
        assert value_of(stack, name) > 0, name
    for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "threads"):
        assert value_of(stack, f"hotslot_runner_{name}", model="shapes", slot=slot) > 0, name
    assert value_of(stack, "hotslot_ready", service="shapes") == 1
    assert value_of(stack, "hotslot_ready", service="hotslot.address.v1.AddressTaggingService") == 0
    assert value_of(stack, "hotslot_build_info", grpc=grpc.__version__) == 1


def test_calls_are_counted_by_method_and_code(stack: Stack) -> None:
    """Started, handled by code, messages and times of unary calls and streams."""
    before = {code: handled(stack, "Predict", code) for code in ("OK", "InvalidArgument", "NotFound")}
    streamed = value_of(stack, "grpc_server_msg_sent_total", grpc_method="StreamPredict")
    for _ in range(3):
        stack.check(question())
    with pytest.raises(grpc.RpcError):
        stack.predict(question(""))
    with pytest.raises(grpc.RpcError):
        stack.entailment.Predict(question().request("squares"), timeout=DEADLINE_SECONDS)
    results_of(
        stack.entailment.StreamPredict(
            iter([one_item(str(number), question().request()) for number in range(5)]), timeout=DEADLINE_SECONDS
        )
    )

    after = {code: handled(stack, "Predict", code) for code in before}
    assert {code: after[code] - before[code] for code in before} == {"OK": 3, "InvalidArgument": 1, "NotFound": 1}
    assert value_of(stack, "grpc_server_msg_sent_total", grpc_method="StreamPredict") - streamed == 5
    started = value_of(stack, "grpc_server_started_total", grpc_method="Predict")
    assert started == value_of(stack, "grpc_server_handling_seconds_count", grpc_method="Predict")


def test_items_are_counted_by_model_and_revision(stack: Stack) -> None:
    """Answered ones by the revision that answered, with their stages; refused ones by their reason."""
    stack.control.trial(stack.answers.digest_of("r2"))
    before = value_of(stack, "hotslot_items_total", model="shapes", revision="r2", outcome="answered")
    failed = value_of(stack, "hotslot_items_total", outcome="failed", reason="ENGINE_FAILED")

    with stack.load(("r1", "r2"), clients=4) as load:
        load.wait_answers(50)
    with pytest.raises(grpc.RpcError):
        stack.predict(question("!error"))

    count = value_of(stack, "hotslot_items_total", model="shapes", revision="r2", outcome="answered") - before
    assert count == load.report().revisions["r2"]
    assert value_of(stack, "hotslot_items_total", outcome="failed", reason="ENGINE_FAILED") == failed + 1
    for stage in ("queue", "prepare", "compute", "total"):
        assert value_of(stack, "hotslot_item_seconds_count", revision="r2", stage=stage) >= count
    assert (
        0
        < value_of(stack, "hotslot_device_call_items_count", revision="r2")
        <= value_of(stack, "hotslot_device_call_items_sum", revision="r2")
    )


def test_swaps_handovers_and_deaths_are_counted(stack: Stack) -> None:
    """Activations, rollbacks, handovers and runner deaths each have a series."""
    names = ("slot_activated", "trial_rolled_back")
    before = [value_of(stack, "hotslot_swaps_total", model="shapes", change=name) for name in names]
    deaths = value_of(stack, "hotslot_runner_deaths_total", model="shapes")
    given = value_of(stack, "hotslot_handovers_total", model="shapes", revision="r2", reason="ENGINE_FAILED")

    stack.control.trial(stack.answers.digest_of("r2"))
    stack.check(question("!error@r2"))
    stack.control.activate(stack.control.status().trial.previous_load_id)
    stack.kill(stack.control.other().pid)
    stack.wait_calm()

    assert [value_of(stack, "hotslot_swaps_total", model="shapes", change=name) for name in names] == [
        count + 1 for count in before
    ]
    assert value_of(stack, "hotslot_runner_deaths_total", model="shapes") == deaths + 1
    assert value_of(stack, "hotslot_handovers_total", revision="r2", reason="ENGINE_FAILED") == given + 1
    assert value_of(stack, "hotslot_slot_info", model="shapes", revision="r1", role="ACTIVE", state="LOADED") == 1
    assert value_of(stack, "hotslot_slot_info", model="shapes") == 2, "one row a slot, old ones are gone"


def test_callers_cannot_create_series(stack: Stack) -> None:
    """Unknown service, method and model names do not become labels."""
    stack.check(question())

    def size() -> int:
        return sum(len(family.samples) for family in families_of(stack).values())

    channel: Any = stack.channel

    def stranger(number: int) -> None:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/made.up.Service{number}/Method{number}")(b"", timeout=DEADLINE_SECONDS)
        with pytest.raises(grpc.RpcError):
            stack.entailment.Predict(question().request(f"made-up-{number}"), timeout=DEADLINE_SECONDS)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{ENTAILMENT}/Method{number}")(b"", timeout=DEADLINE_SECONDS)

    stranger(0)
    before = size()
    for number in range(1, 10):
        stranger(number)

    assert size() == before


def test_the_metrics_port_serves_only_metrics(stack: Stack) -> None:
    """Other paths and methods are refused."""
    url = f"http://127.0.0.1:{stack.metrics_port}"
    with pytest.raises(urllib.error.HTTPError) as wrong:
        urllib.request.urlopen(f"{url}/etc/passwd", timeout=DEADLINE_SECONDS)  # noqa: S310  our own
    wrong.value.close()

    assert wrong.value.code == 404


def test_every_line_of_the_log_is_one_json_event(stack: Stack) -> None:
    """Each has an increasing time, a level, a process, and an event name in past tense."""
    stack.check(question())
    with pytest.raises(grpc.RpcError):
        stack.predict(question("!crash"))
    stack.wait_calm()

    rows = [json.loads(line) for line in stack.process.log_path.read_text().splitlines()]

    assert {row["process"] for row in rows} >= {"server"}
    for row in rows:
        assert {"at", "level", "process", "event"} <= set(row), row
        assert row["event"].replace("_", "").isalpha()
    server = [row["at"] for row in rows if row["process"] == "server"]
    assert all(before <= after for before, after in pairwise(server))


def test_neither_picture_nor_text_is_ever_logged(stack: Stack) -> None:
    """At info level no log line contains request content, whatever the outcome."""
    marks = ("ZEBRAMARK", "OKAPIMARK")
    asked = [question(f"{marks[0]} {fault}", image=marks[1].encode() * 40, premise=marks[0])
             for fault in ("", "!error", "!nan", "!oom", "!refuse", "!crash", "!slow 0.01")]  # fmt: skip
    asked.append(question(marks[0] * 200, image=marks[1].encode()))
    asked.append(question("a", image=b"!bad " + marks[1].encode()))
    for one in asked:
        try:
            stack.predict(one)
        except grpc.RpcError:
            continue
    items = [one_item(f"item {number}", one.request()) for number, one in enumerate(asked)]
    assert len(results_of(stack.entailment.StreamPredict(iter(items), timeout=60))) == len(asked)
    stack.wait_calm()

    stack.process.wait_event("call_ended", grpc_code="OK", text_chars=len("ZEBRAMARK "))
    text = stack.process.log_path.read_text() + stack.process.errors()

    for mark in marks:
        assert mark not in text
    (line,) = stack.process.events("call_ended", grpc_code="OK", text_chars=len("ZEBRAMARK "))
    assert line["image_bytes"] == 9 * 40
    assert {"label", "score", "revision", "seconds", "request_id"} <= set(line)


def test_the_server_does_not_import_torch() -> None:
    """Nor the hub client."""
    heavy = ("torch", "modelscope", "numpy", "PIL")
    script = f"import sys, inference.server.server; print(*sys.modules.keys() & {heavy})"
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}", "PATH": "/usr/bin:/bin"}

    line = [sys.executable, "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60, check=True)

    assert done.stdout.strip() == ""
