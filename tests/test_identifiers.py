"""Replaced identifiers do not come back: exact tokens of code, contracts, settings, file names, metrics.

Prose is a matter of review. docs/explanation/glossary.md has the words with their meaning.
"""

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Identifier that is gone → what stands in its place.
REPLACED = {
    "Ask": "AdmissionRequest",
    "Asked": "a name of its own a room",
    "Assembly": "compose",
    "Bench": "ExecutionContext",
    "Board": "StatusPublisher",
    "Charge": "Attribution",
    "Chunk": "RowRange",
    "Concluded": "a transition's result",
    "Courier": "DeliveryWorker",
    "CourierObserver": "DeliveryObserver",
    "Cut": "RowRange",
    "DeviceFallback": "CpuFallback",
    "DeviceSeen": "DeviceSnapshot",
    "Door": "HubHttpClient",
    "DoorRules": "HubHttpOptions",
    "Entrance": "AdmissionController",
    "Eyes": "ImageEncoder",
    "FrontAsked": "the server's liveness probe",
    "FrontPlace": "ServerEndpoint",
    "FrontSection": "ServerSection",
    "FrontServer": "InferenceServer",
    "FrontSettings": "ServerSettings",
    "FrontState": "ServerState",
    "Granted": "CommandResult",
    "HoldRequest": "PauseRequest",
    "HoldResponse": "PauseResponse",
    "ManagerKit": "ModelOptions",
    "ON_HOLD": "PAUSED",
    "Obey": "a command that is applied",
    "Opener": "Connector",
    "Outlet": "FrameWriter",
    "Overdue": "a timeout that names its phase",
    "Patience": "Timeouts",
    "ReleaseQuarantine": "Unquarantine",
    "RevisionSeen": "RevisionSnapshot",
    "Shown": "StatusSnapshot",
    "SlotParts": "SlotDependencies",
    "SlotSeen": "SlotSnapshot",
    "Standing": "Priority",
    "Surroundings": "LoadContext",
    "TERM_EXPIRED": "LEASE_EXPIRED",
    "Ticket": "PendingRequest",
    "TrialEndSeen": "TrialEndSnapshot",
    "TrialSeen": "TrialSnapshot",
    "UNDER_FLOOR": "BELOW_MIN_ACCURACY",
    "BELOW_FLOOR": "BELOW_MIN_VERSION",
    "RowCost": "CallCost",
    "UnitCost": "CallCost",
    "WatchParts": "options of the watchdog",
    "Way": "RedirectChain",
    "Wish": "OperatorCommand",
    "WishKind": "CommandKind",
    "Wishes": "CommandQueue",
    "accuracy_floor": "min_accuracy",
    "assembly": "compose",
    "bench_front": "bench-server",
    "check_term": "a trial lease's end",
    "conclude": "apply_result",
    "credit": "in_flight_limit",
    "doors": "protocol",
    "floor_seconds": "min_timeout_seconds",
    "front": "server",
    "front_life": "server_incarnation",
    "front_started": "server_started",
    "front_started_at": "server_started_at",
    "front_stopped": "server_stopped",
    "granted": "result",
    "hold_reason": "pause_reason",
    "jump_cap": "max_major_jump",
    "kit": "options or dependencies",
    "let_go": "release",
    "limit_floor_seconds": "min_timeout_seconds",
    "max_batch_units": "max_call_rows",
    "max_call_units": "max_call_rows",
    "may_obey_now": "may_apply_now",
    "obey": "apply",
    "on_hold": "paused",
    "on_settled": "on_done",
    "returning": "failback",
    "runner_terms": "protocol",
    "server_life": "server_incarnation",
    "slot_seen": "a snapshot",
    "standin": "hubserver",
    "telling": "events",
    "term_ends": "lease_ends",
    "term_seconds": "trial_lease_seconds",
    "row_cost": "call_cost",
    "unit_seconds": "row_seconds",
    "wiring": "compose",
    "wish": "command",
    "wishes": "commands",
}
# Where an old name is read, or is the name of something else.
ALLOWED = {
    "updater/store/record_json.py": "reads records of the build before",
    "tests/updater/core/test_upgrade.py": "checks that it does",
    "tests/test_identifiers.py": "the list itself",
}
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRING_OF_ONE_WORD = re.compile(r"[rbf]*[\"']+([A-Za-z_][A-Za-z0-9_]*)[\"']+")


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows, less generated and foreign ones."""
    command = ["git", "ls-files", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return [
        path
        for path in paths
        if "_pb2" not in path.name and "third_party" not in path.parts and (ROOT / path).is_file()
    ]


def names_in_python(text: str) -> Iterator[tuple[int, str]]:
    """Names, and words of strings that are one identifier: keys, reasons, events, metrics."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string
        elif token.type == tokenize.STRING and (match := _STRING_OF_ONE_WORD.fullmatch(token.string)):
            yield token.start[0], match[1]


def names_in_contract(text: str) -> Iterator[tuple[int, str]]:
    """Identifiers of a .proto file, comments left out."""
    for number, line in enumerate(text.splitlines(), 1):
        yield from ((number, word) for word in _WORD.findall(line.partition("//")[0]))


def old_names(path: Path, text: str) -> list[str]:
    """Each replaced identifier with its place and what replaced it."""
    if path.suffix == ".proto":
        found = names_in_contract(text)
    elif path.suffix == ".py":
        found = names_in_python(text)
    else:  # settings and supervisor.conf: keys and section names
        found = (
            (number, word)
            for number, line in enumerate(text.splitlines(), 1)
            for word in _WORD.findall(re.split(r"[#;]", line)[0])
        )
    return [f"{path}:{number} {name} is called {REPLACED[name]}" for number, name in found if name in REPLACED]


def test_replaced_identifiers_do_not_come_back() -> None:
    """Code, contracts and settings use today's names."""
    paths = tracked("*.py", "*.proto", "*.toml", "*.conf")
    assert len(paths) > 300
    broken = [
        row
        for path in paths
        if str(path) not in ALLOWED
        for row in old_names(path, (ROOT / path).read_text(encoding="utf-8"))
    ]
    assert broken == [], "\n".join(broken)


def test_replaced_names_of_files_and_folders_do_not_come_back() -> None:
    """Folders, files and documents carry today's names."""
    parts = {part.partition(".")[0].replace("-", "_"): path for path in tracked() for part in path.parts}
    assert {part: str(parts[part]) for part in parts if part in REPLACED} == {}


@pytest.mark.parametrize(
    ("path", "text", "line"),
    [
        ("a.py", "x = 1\nticket = Ticket()\n", 2),
        ("a.py", 'emit("front_started")\n', 1),
        ("a.proto", "// a Ticket\nmessage Ticket {}\n", 2),
        ("a.toml", "# [front]\n[front]\n", 2),
    ],
)
def test_an_old_name_is_found_where_it_stands(path: str, text: str, line: int) -> None:
    """In code, in strings that name something, in contracts and settings; not in comments."""
    (row,) = old_names(Path(path), text)
    assert row.startswith(f"{path}:{line} ")
