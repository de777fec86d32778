"""`hotslot doctor`: what is wrong is found, and an archive has no secrets, pictures or texts."""

import fcntl
import json
import os
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.doctor_archive import choose_lines
from cli.doctor_checks import Finding, Level, judge_memory
from cli.doctor_remote import judge_report, judge_updates
from cli.status import StatusReport
from common.cgroup import Memory
from common.paths import CONTROL_SOCKET, HEARTBEAT, SERVER_LOCK, UPDATER_LOCK, UPDATES_SOCKET
from dev.harness.certificates import Authority
from hotslot.status.v1 import status_pb2
from hotslot.updates.v1 import updates_pb2
from tests.cli.conftest import Hotslot
from tests.cli.scripted_server import ScriptedServer, healthy_status

SETTINGS = """
state_dir = "state"

[[models]]
name = "shapes"

[server]
port = {port}
metrics_port = -1
{server}

[updater]
metrics_port = -1
{updater}

[updater.models.shapes]
hub_folder = "hub"
{model}
"""
TEXT, TOKEN, HASH = "浙江省杭州市余杭区文一西路969号", "hotslot_" + "Ab3" * 12, "sha256:" + "5e" * 32


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder and an empty hub."""
    (tmp_path / "state" / "run").mkdir(parents=True)
    (tmp_path / "hub").mkdir()
    return tmp_path / "state"


def write(folder: Path, port: int = 50999, server: str = "", updater: str = "", model: str = "") -> None:
    """A settings file."""
    text = SETTINGS.format(port=port, server=server, updater=updater, model=model)
    (folder / "hotslot.toml").write_text(text, encoding="utf-8")


def rows_of(out: str, area: str) -> list[tuple[str, str, str]]:
    """Level, found and action of an area's findings, printed as JSON."""
    return [(row["level"], row["found"], row["action"]) for row in json.loads(out) if row["area"] == area]


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """A program that holds its lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """A socket that accepts."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield


def test_a_stack_that_does_not_run_is_told_with_what_to_do(hotslot: Hotslot, state: Path) -> None:
    """And the exit code says that something is wrong."""
    write(state.parent)
    ended = hotslot("doctor", "--json")
    assert ended.code == 1
    assert rows_of(ended.out, "processes") == [
        ("wrong", "nothing runs on this state folder", "`hotslot serve` starts it")
    ]
    assert rows_of(ended.out, "golden set")[0][:2] == ("look", "shapes has none")
    assert rows_of(ended.out, "hub")[0][0] in ("look", "wrong")
    assert "to look at" in hotslot("doctor", "--no-hub").out


def test_mistakes_in_the_settings_are_all_that_is_told(hotslot: Hotslot, state: Path) -> None:
    """Each with its key; exit code 2."""
    write(state.parent, server="reflectoin = true\nmax_image_pixels = -1")
    ended = hotslot("doctor", "--json")
    assert ended.code == 2
    assert [row[0] for row in rows_of(ended.out, "settings")] == ["wrong", "wrong"]


def test_programs_are_found_by_their_locks_and_asked_by_their_sockets(
    hotslot: Hotslot, state: Path, server: ScriptedServer
) -> None:
    """A socket that nobody accepts at is wrong; so is an updater that makes no progress."""
    write(state.parent, port=int(server.address.rpartition(":")[2]))
    run = state / "run"
    (run / HEARTBEAT).touch()
    old = datetime.now(UTC).timestamp() - 600
    os.utime(run / HEARTBEAT, (old, old))
    with holding(run / SERVER_LOCK), holding(run / UPDATER_LOCK), listening(run / CONTROL_SOCKET):
        ended = hotslot("doctor", "--json", "--no-hub")
    found = {row[1]: row[0] for row in rows_of(ended.out, "processes")}
    assert found[f"the server runs as process {os.getpid()}"] == "good"
    assert found["the stack does not run"] == "look"
    assert found["the updater has made no progress for 10 min"] == "wrong"
    sockets = {row[1].split()[0]: row[0] for row in rows_of(ended.out, "sockets")}
    assert sockets == {CONTROL_SOCKET: "good", UPDATES_SOCKET: "wrong"}
    assert rows_of(ended.out, "models")[0][0] == "good"
    assert rows_of(ended.out, "updates")[0][0] == "wrong"


def test_files_from_the_future_mean_that_the_clock_has_gone_back(hotslot: Hotslot, state: Path) -> None:
    """Certificates and times depend on it."""
    write(state.parent)
    later = (datetime.now(UTC) + timedelta(hours=3)).timestamp()
    (state / "journal.db").touch()
    os.utime(state / "journal.db", (later, later))
    assert rows_of(hotslot("doctor", "--json", "--no-hub").out, "clock")[0][0] == "wrong"


def test_a_certificate_that_has_ended_is_wrong(hotslot: Hotslot, state: Path) -> None:
    """With what to do."""
    made = Authority(state.parent).sign("server", days=0)
    write(state.parent)
    with (state.parent / "hotslot.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[tls]\ncertificate_file = "{made.certificate}"\nkey_file = "{made.key}"\n')
    level, _, action = rows_of(hotslot("doctor", "--json", "--no-hub").out, "certificate")[0]
    assert (level, "renew" in action) == ("wrong", True)


def levels(findings: Iterator[Finding]) -> list[tuple[str, Level]]:
    """Area and level of each."""
    return [(finding.area, finding.level) for finding in findings]


def test_memory_that_ran_out_is_told_when_some_is_free_again() -> None:
    """After the kernel has ended a runner, its memory is free, and was called good."""
    memory = Memory(256 << 20, 189 << 20)
    assert judge_memory(memory, 19 << 20, 0) == Finding("memory", Level.GOOD, "67 MiB of 256 MiB free")
    found = "67 MiB of 256 MiB free; it ran out, and the kernel has ended 20 processes since the start"
    advice = "raise the limit of the container, or end what else runs"
    assert judge_memory(memory, 19 << 20, 20) == Finding("memory", Level.DOUBTFUL, found, advice)


def test_what_the_server_says_of_its_health_is_judged() -> None:
    """Warnings with what to do, models with their reason."""
    server = healthy_status()
    server.process.dropped_log_lines = 3
    server.resources.level = status_pb2.HEALTH_LEVEL_FAILED
    server.resources.warnings.append("disk 99% used, limits 90% and 98%")
    server.capabilities.add(model="m", level=status_pb2.HEALTH_LEVEL_FAILED, reason="no model", poison_inputs=1)
    found = levels(judge_report(StatusReport("", server, status_pb2.ListModelsResponse(), datetime.now(UTC))))
    assert ("server", Level.DOUBTFUL) in found
    assert ("server", Level.BAD) in found
    assert ("models", Level.BAD) in found
    assert found[-1] == ("models", Level.DOUBTFUL)


def test_what_the_updater_says_is_judged() -> None:
    """A fault is wrong; what waits for a person is to be looked at."""
    state = updates_pb2.ModelUpdates(model="m", stage=updates_pb2.UPDATE_STAGE_HELD, advice="approve it")
    state.breakers.add(name="hub", state="OPEN", reason="three failures")
    assert [finding.level for finding in judge_updates(state)] == [Level.DOUBTFUL, Level.DOUBTFUL]
    assert next(judge_updates(state)).action == "approve it"
    broken = updates_pb2.ModelUpdates(model="m", fault="the journal is damaged")
    assert [finding.level for finding in judge_updates(broken)] == [Level.BAD]


def test_an_archive_has_no_secret_and_no_text(hotslot: Hotslot, state: Path) -> None:
    """Whatever the settings name, and whatever a library has logged."""
    folder = state.parent
    secrets = {"hub.token": "hub-token-9x8y7z", "hook.token": "hook-token-1a2b3c", "tokens": f"shop {HASH} 2026-01-01"}
    for name, content in secrets.items():
        (folder / name).write_text(content + "\n", encoding="utf-8")
    (folder / "golden").mkdir()
    (folder / "golden" / "golden.jsonl").write_text(json.dumps({"addresses": [TEXT]}), encoding="utf-8")
    write(
        folder,
        server='tokens_file = "tokens"',
        updater='hub_token_file = "hub.token"\n[[updater.webhooks]]\nurl = "https://chat.example/send?key=robot-key-77"\n'
        'token_file = "hook.token"\n',
        model='golden = "golden"',
    )
    lines: list[dict[str, Any]] = [
        {"event": "call_ended", "grpc_code": "OK", "seconds": 0.1, "statements": [TEXT], "detail": TEXT},
        {"event": "library_logged", "message": f"Authorization: Bearer {TOKEN}", "reason": "hub-token-9x8y7z"},
        {"event": "runner_printed", "text": TEXT, "exception": "-----BEGIN PRIVATE KEY-----x"},
    ]
    log = "\n".join(json.dumps(row, ensure_ascii=False) for row in lines) + f"\n{TEXT} {TOKEN}\n"
    (folder / "hotslot.log").write_text(log, encoding="utf-8")

    ended = hotslot("doctor", "--no-hub", "--archive", "report.tar.gz", "--log", "hotslot.log")

    assert "read it before you send it" in ended.out
    with tarfile.open(folder / "report.tar.gz") as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        members = {name: file.read().decode() for name, file in files.items() if file is not None}
    whole = "\n".join(members.values())
    for forbidden in (TEXT, TOKEN, HASH, "hub-token", "hook-token", "robot-key", "PRIVATE KEY", "chat.example"):
        assert forbidden not in whole
    assert '"grpc_code": "OK"' in members["hotslot-doctor/log.jsonl"]
    assert "(left out)" in members["hotslot-doctor/settings.json"]
    assert (folder / "report.tar.gz").stat().st_mode & 0o077 == 0


def test_log_lines_that_are_none_are_left_out() -> None:
    """Tracebacks of other programs may hold anything."""
    lines = ["Traceback", '{"event": "a", "model": "m", "text": "x"}', "[1]"]
    assert choose_lines(lines) == '{"event": "a", "model": "m"}\n'
