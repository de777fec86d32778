"""`hotslot status`: models, slots and health, within 80 columns."""

import io
import json
from datetime import UTC, datetime

import pytest
from rich.console import Console

from cli.endpoint import Endpoint
from cli.status import StatusReport, show_report, watch_status
from hotslot.status.v1 import status_pb2
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer


def test_the_status_is_readable_at_80_columns(hotslot: Hotslot, server: ScriptedServer) -> None:
    """Three layers with their levels, the trial, the committed revision, and both slots side by side."""
    ended = hotslot("status", "--address", f":{server.address.rpartition(':')[2]}")

    assert ended.code == 0
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    rows = [line.split() for line in ended.out.splitlines()]
    assert rows[0][:5] == ["hotslot", "9.8.7", "on", "here", "at"]
    assert rows[2][:2] == ["process", "ok"]
    assert rows[3][:2] == ["resources", "degraded"]
    assert "memory is at 88 %" in ended.out
    assert "shapes  visual-entailment, committed v1.0.0 3f2a91bc3f2a (import)" in ended.out
    assert "slot b on trial (25 %)" in ended.out
    assert "48 s left of its lease" in ended.out
    for row in (
        ["slot", "a", "b", "answers"],
        ["role", "previous", "trial"],
        ["state", "loaded", "loaded"],
        ["revision", "v1.0.0", "mgeo-base-v1-20230815"],
        ["digest", "3f2a91bc3f2a", "000000000000"],
        ["device", "cpu", "cuda:0"],
        ["pid", "123", "124"],
        ["memory", "540", "MiB", "–"],
        ["restarts", "2", "0"],
    ):
        assert row in rows
    assert "slot a failed last: killed by signal 9" in ended.out
    assert "slot b: answers are scored, not searched" in ended.out


def test_a_model_on_its_fallback_device_is_shown() -> None:
    """Both devices, since when, and the reason, within 80 columns."""
    server = status_pb2.GetServerStatusResponse(node="here", version="1")
    capability = server.capabilities.add(
        model="shapes",
        level=status_pb2.HEALTH_LEVEL_DEGRADED,
        ready=True,
        reason="kept on cpu: cuda:0 ran out of memory",
    )
    capability.fallback.device, capability.fallback.fallback_device = "cuda:0", "cpu"
    capability.fallback.since.FromJsonString("2026-01-02T03:04:05Z")
    console = Console(width=80, file=io.StringIO(), record=True)

    console.print(
        show_report(
            StatusReport("here:1", server, status_pb2.ListModelsResponse(), datetime(2026, 1, 2, 3, 5, tzinfo=UTC))
        )
    )

    shown = " ".join(console.export_text().split())
    assert "on cpu instead of cuda:0 for 55" in shown
    assert "kept on cpu: cuda:0 ran out of memory" in shown


def test_columns_of_the_slots_align(hotslot: Hotslot, server: ScriptedServer) -> None:
    """The second slot begins at one column in every line."""
    lines = hotslot("status", "--address", server.address).out.splitlines()
    wanted = {"revision": "mgeo-base-v1-20230815", "digest": "000000000000", "device": "cuda:0", "role": "trial"}
    starts = {line.index(value) for key, value in wanted.items() for line in lines if line.strip().startswith(key)}
    assert len(starts) == 1


def test_json_has_all_fields(hotslot: Hotslot, server: ScriptedServer) -> None:
    """Server status and models are one document, with lower-case enum names and numbers."""
    row = json.loads(hotslot("status", "--address", server.address, "--json").out)
    assert row["server"]["resources"]["level"] == "degraded"
    assert row["server"]["process"]["loop_lag_seconds"] == 0.003
    assert row["models"][0]["slots"][0]["role"] == "previous"
    assert row["models"][0]["slots"][0]["resident_bytes"] == 540 << 20
    assert row["models"][0]["trial"]["term_left_seconds"] == 48


def test_a_refused_connection_is_reported_in_one_sentence(hotslot: Hotslot) -> None:
    """It says how to start a server."""
    ended = hotslot("status", "--address", "127.0.0.1:1")
    assert (ended.code, "start one with `hotslot serve`" in ended.err) == (1, True)


def test_watching_continues_without_the_server(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The error is shown in place of the status, and the watch goes on."""
    rounds = iter((True, True, False))

    def stop_after_the_first() -> bool:
        server.stop()
        return next(rounds)

    watch_status(Endpoint(server.address), stop_after_the_first, as_json=True)

    seen = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [next(iter(row)) for row in seen] == ["address", "error", "error"]
