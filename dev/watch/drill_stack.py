"""The stack of the drill: the real one with a scripted engine, Prometheus, Alertmanager, the relay and a chat."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.monitoring.alert import Alert
from cli.monitoring.catalog import list_alerts
from cli.monitoring.rules_file import render_rules
from dev.harness.chat import SimulatedChat, simulated_chat
from dev.harness.memory_group import NoMemoryGroup, memory_group
from dev.harness.process import ROOT, free_port
from dev.harness.revisions import MODEL
from dev.harness.settings import Sections
from dev.harness.supervised import ScriptedStack
from dev.watch.delivery import relaying
from dev.watch.real import RealPrometheus, wait_for

FAST = {"30m": "1s", "1h": "1s", "1d": "1s", "15m": "1s", "10m": "1s", "5m": "1s", "2m": "1s", "1m": "1s"}
WINDOWS = {"[1h]": "[30s]", "[15m]": "[30s]", "[5m]": "[15s]", "[1m]": "[15s]", "offset 15m": "offset 30s"}
OFFSETS = {"offset 1h": "offset 30s", "offset 1d": "offset 60s"}
AGES = {"timestamp_seconds > 900": "timestamp_seconds > 10", "timestamp_seconds > 2592000": "timestamp_seconds > 40"}
FIRE_SECONDS = 300.0  # longest wait for a state: most are there in seconds, on a busy machine in a minute
QUIET_SECONDS = 90.0  # longest wait for the end of an alert of a fault before
COMMAND_SECONDS = 300.0  # longest run of a runbook's command


def fast_rules() -> str:
    """The shipped rules, with windows, pauses and ages of seconds: what they compare stays the same."""
    text = render_rules()
    for long, short in FAST.items():
        text = text.replace(f"        for: {long}\n", f"        for: {short}\n")
    for long, short in (WINDOWS | OFFSETS | AGES).items():
        text = text.replace(long, short)
    return text


@dataclass
class DrillStack:
    """Everything that runs while faults are provoked."""

    folder: Path
    stack: ScriptedStack
    prometheus: RealPrometheus
    chat: SimulatedChat

    def alert(self, name: str) -> Alert:
        """One of the shipped alerts."""
        return next(alert for alert in list_alerts() if alert.name == name)

    def wait_firing(self, name: str, begun: float, provoked: float, limit: float = FIRE_SECONDS) -> float:
        """Wait until an alert fires, or has fired since `begun`; returns the seconds from the fault.

        Args:
            name: of the alert.
            begun: time.time() before anything was done.
            provoked: time.time() when the fault was there.
            limit: longest wait, from now.
        """
        query = f'ALERTS{{alertname="{name}", alertstate="firing"}}'

        def find() -> list[dict[str, Any]]:
            return self.prometheus.query_range(query, time.time() - begun)

        wait_for(find, f"{name} fires", limit)
        return max(0.0, min(float(at) for series in find() for at, _ in series["values"]) - provoked)

    def wait_told(self, name: str, first: int = 0, limit: float = FIRE_SECONDS) -> float:
        """Wait until the chat has been told; seconds."""

        def is_told() -> bool:
            return any(f"FIRING** {name}" in text for text in self.chat.texts()[first:])

        return wait_for(is_told, f"the chat is told of {name}", limit)

    def wait_data(self, query: str, limit: float = FIRE_SECONDS) -> float:
        """Wait until Prometheus has an answer to a query."""
        return wait_for(lambda: self.prometheus.query(query), f"there is data: {query}", limit)

    def wait_quiet(self, name: str, limit: float = QUIET_SECONDS) -> float:
        """Wait until an alert fires no longer."""
        return wait_for(lambda: name not in self.prometheus.firing(), f"{name} ends", limit)


@contextlib.contextmanager
def drill_stack(
    sections: Callable[[Path], Sections] | None = None,
    environment: Mapping[str, str] | None = None,
    prepare: Callable[[Path], AbstractContextManager[Path]] | None = None,
    more: Callable[[Path], str] | None = None,
    *,
    is_limited: bool = False,
) -> Iterator[DrillStack]:
    """Start everything; ended afterwards.

    Args:
        sections: settings beside the drill's, from the folder.
        environment: variables of the stack.
        prepare: makes the state folder, from the folder.
        more: further tables of the settings file, from the folder.
        is_limited: in a control group of its own, if this machine lets one be made.
    """
    with (
        tempfile.TemporaryDirectory(prefix="hotslot-drill-") as place,
        simulated_chat() as chat,
        contextlib.ExitStack() as exits,
    ):
        folder = Path(place)
        server, updater = free_port(), free_port()
        given: dict[str, dict[str, object]] = {
            "server": {"metrics_port": server},
            "updater": {"metrics_port": updater},
        }
        for name, values in (sections(folder) if sections else {}).items():
            given[name] = {**given.get(name, {}), **values}
        (folder / "stack").mkdir(exist_ok=True)
        state = None if prepare is None else exits.enter_context(prepare(folder))
        stack = ScriptedStack(folder / "stack", state, environment, given)
        with contextlib.suppress(NoMemoryGroup):
            stack.group = exits.enter_context(memory_group("hotslot-drill")) if is_limited else None
        with stack.config.open("a", encoding="utf-8") as file:
            file.write("" if more is None else more(folder))
        with (
            relaying(folder, chat, "wecom", messages_a_minute=600) as relay,
            RealPrometheus(
                folder / "prometheus",
                {"hotslot.rules.yml": fast_rules()},
                {"hotslot-server": server, "hotslot-updater": updater, "hotslot-alert-relay": relay},
                f"http://127.0.0.1:{relay}/alerts/ops",
            ) as prometheus,
            stack,
        ):
            yield DrillStack(folder, stack, prometheus, chat)


def run_command(drill: DrillStack, command: str) -> str:
    """Output of a command of a runbook, on the host of the stack."""
    words = command.replace("hotslot.log", str(drill.stack.log_path))
    words = words.replace("relay.log", str(drill.folder / "relay.log"))
    words = words.replace("OWNER/NAME", MODEL)
    line = [sys.executable, "-m", "cli.main", *words.split()[1:]]
    variables = {**os.environ, "HOTSLOT_CONFIG": str(drill.stack.config), "COLUMNS": "200"}
    if drill.stack.group is not None:  # as in the container
        line = drill.stack.group.wrap(line)
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS, env=variables, cwd=ROOT
    )
    return " ".join((done.stdout + done.stderr).split())


def pause(seconds: float) -> None:
    """Let time pass: windows of rules are seconds."""
    time.sleep(seconds)
